"""Pictures: what an uploaded file must be, and what of it is kept.

A JPEG, PNG, GIF or WebP keeps its compressed pixels bit for bit: the file is walked part by part
and only the parts that make pixels are copied, so that whatever a camera or an editor wrote
beside them, and whatever follows them, stays behind by construction; what is stored is what was
decoded, to its last row. Encoding every upload again would cost size or visible quality instead.
Pixels are written anew only where they must be: turned by their orientation, brought to sRGB, and
every AVIF, whose metadata is woven into its index. Of an animated PNG the still picture is kept.
"""

import asyncio
import os
import re
import struct
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import pyvips

from services.containers import Malformed, gif_parts, jpeg_parts, png_parts, webp_parts, whole
from services.errors import DamagedImage, ImageTooLarge, UnsupportedImage

# For the whole process: loaders that libvips holds unfit for hostile files stay shut, the only
# parallelism is that of our workers, and no finished operation stays in memory.
pyvips.block_untrusted_set(True)
pyvips.concurrency_set(1)
pyvips.cache_set_max(0)

MAX_FRAMES = 1_000
# Chunks, segments or blocks; libpng takes 20 µs for each, and a hostile file can have a million.
MAX_PARTS = 50_000
# Over all frames; libvips needs up to 4 µs for a row, however narrow it is.
MAX_ROWS = 1_000_000
# All frames together may have this many times the pixels of a still; 200 Mpx decode in 1 to 5 s.
ANIMATION_FACTOR = 4
# Beyond these pixels one picture at a time: some formats are held whole, at up to 25 bytes a pixel.
_LARGE = 16_000_000
_one_large_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """The most that one file may have: bytes as uploaded, pixels of a still or of one frame."""

    bytes: int
    pixels: int


@dataclass(frozen=True)
class Picture:
    """A cleaned picture in an unnamed file on disk; width and height are pixels of one frame."""

    file: BinaryIO
    extension: str
    content_type: str
    width: int
    height: int
    bytes: int


class Cleaner:
    """Cleans uploads in threads of its own, never more at once than it has workers."""

    def __init__(self, limits: Limits, threads: ThreadPoolExecutor) -> None:
        self._limits = limits
        self._threads = threads

    @asynccontextmanager
    async def cleaned(
        self, uploads: Iterable[tuple[BinaryIO, str]]
    ) -> AsyncGenerator[list[Picture]]:
        """Lend the pictures of some (file, client's name for it), in order, and close them after.

        Raises what `clean` raises, for the first upload that is refused. On a refusal or a
        cancellation uploads that wait are dropped; those in work are closed as they finish.
        """
        jobs = [self._threads.submit(clean, *upload, self._limits) for upload in uploads]
        try:
            yield [await asyncio.wrap_future(job) for job in jobs]
        finally:
            for job in jobs:
                job.cancel()
                job.add_done_callback(_close)


@asynccontextmanager
async def open_cleaner(limits: Limits, *, workers: int) -> AsyncGenerator[Cleaner]:
    """One cleaner for the process's life."""
    threads = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    try:
        yield Cleaner(limits, threads)
    finally:
        await asyncio.to_thread(threads.shutdown, cancel_futures=True)


def clean(upload: BinaryIO, name: str, limits: Limits) -> Picture:
    """Check one upload and keep its pixels alone; blocks. The caller closes the picture's file.

    Raises `UnsupportedImage`, `ImageTooLarge` or `DamagedImage`, naming the file and the limit.
    """
    name = _printable(name)
    size = upload.seek(0, os.SEEK_END)
    if size > limits.bytes:
        raise ImageTooLarge(f"{name} has {size:,} bytes; the limit is {limits.bytes:,} bytes.")
    upload.seek(0)
    data = upload.read()
    kind = next((kind for kind in _KINDS if re.match(kind.magic, data, re.DOTALL)), None)
    if kind is None:
        raise UnsupportedImage(f"{name} is not a JPEG, PNG, GIF, WebP or AVIF image.")
    try:
        parts = list(islice(kind.pixel_parts(data), MAX_PARTS + 1))
        if len(parts) > MAX_PARTS:
            raise ImageTooLarge(f"{name} has too many parts; the limit is {MAX_PARTS:,} parts.")
        header = kind.open(data)
        width, height = _canvas(header, data)
        _check_pixels(width, height, _frames(header), name, limits)
        with _one_large_at_a_time if width * height > _LARGE else nullcontext():
            return _keep_pixels(kind, b"".join(parts), header)
    except (pyvips.Error, Malformed) as error:
        raise DamagedImage(f"{name} is damaged or cut off.") from error


@dataclass(frozen=True)
class _Kind:
    extension: str
    content_type: str
    magic: bytes
    loader: str
    pixel_parts: Callable[[bytes], Iterator[bytes]]  # b"" for what is left behind.
    animated: bool = False

    def open(self, data: bytes, **options: object) -> pyvips.Image:
        """Read the header. The loader is named, so that libvips never guesses one by itself."""
        source = pyvips.Source.new_from_memory(data)
        image = pyvips.Operation.call(self.loader, source, **options)
        if self.extension == "avif" and image.get("heif-compression") != "av1":
            raise Malformed("claims to be AVIF and is not AV1-coded")
        return image


def _check_pixels(width: int, height: int, frames: int, name: str, limits: Limits) -> None:
    """Judge what the header promises, before any pixel is decoded."""
    size, total = f"{width:,} x {height:,} pixels", limits.pixels * ANIMATION_FACTOR
    if width * height > limits.pixels:
        raise ImageTooLarge(f"{name} is {size}; the limit is {limits.pixels:,} pixels in all.")
    if frames > MAX_FRAMES:
        raise ImageTooLarge(f"{name} has {frames:,} frames; the limit is {MAX_FRAMES:,} frames.")
    if width * height * frames > total:
        sentence = f"{name} has {frames:,} frames of {size}; the limit is {total:,} pixels in all."
        raise ImageTooLarge(sentence)
    if height * frames > MAX_ROWS:
        raise ImageTooLarge(f"{name} has {height * frames:,} rows; the limit is {MAX_ROWS:,} rows.")


def _canvas(image: pyvips.Image, data: bytes) -> tuple[int, int]:
    """One frame's width and height in pixels, as a browser would lay it out."""
    width, height = image.width, image.get_page_height()
    if data.startswith(b"GIF"):
        # libvips distrusts the canvas that some GIFs claim; browsers allocate it all the same.
        claimed = struct.unpack_from("<HH", data, 6)
        return max(width, claimed[0]), max(height, claimed[1])
    return width, height


def _frames(image: pyvips.Image) -> int:
    # Not get_n_pages(), which calls 10 000 frames and more insane, and answers 1.
    count: int = image.get("n-pages") if image.get_typeof("n-pages") else 1
    return count


def _keep_pixels(kind: _Kind, kept: bytes, header: pyvips.Image) -> Picture:
    # Turning reads pixels out of order; libvips then holds them, on disk when they are many.
    turned = header.get_typeof("orientation") and 2 <= header.get("orientation") <= 8
    # The walk has caught what ends early. "warning" alone catches a JPEG that was cut and closed
    # again, unless only its last 8 rows are missing.
    options: dict[str, object] = {
        "fail_on": "warning",
        "access": "random" if turned else "sequential",
    }
    original = kind.open(kept, **options, **({"n": -1} if kind.animated else {})).copy()
    if _frames(original) != _frames(header):
        raise Malformed("frames are missing")
    for field in ("orientation", "icc-profile-data"):
        if header.get_typeof(field):
            original.set_type(header.get_typeof(field), field, header.get(field))
    image = _in_srgb(_upright(original) if turned else original)
    with ExitStack() as opened:
        file = opened.enter_context(tempfile.TemporaryFile())
        if image is original and kind.extension != "avif":
            image.avg()  # Decodes every row and keeps none.
            file.write(kept)
        else:
            _encode(kind, image, header, file, lossless=b"VP8L" in kept[:100])
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        opened.pop_all()
        return Picture(file, kind.extension, kind.content_type, *_canvas(image, kept), size)


def _encode(
    kind: _Kind, image: pyvips.Image, header: pyvips.Image, file: BinaryIO, *, lossless: bool
) -> None:
    """Encode pixels anew: without loss where the format is lossless, else with little (> 40 dB)."""
    target = pyvips.Target.new_to_descriptor(file.fileno())
    options: dict[str, object] = {"keep": "none"}
    match kind.extension:
        case "jpg":
            halved = header.get("jpeg-chroma-subsample") == "4:2:0"
            chroma = "on" if halved else "off"
            image.jpegsave_target(target, Q=95, subsample_mode=chroma, **options)
        case "png":
            image.pngsave_target(target, **options)
        case "webp":
            options |= {"lossless": lossless, "exact": True}
            image.webpsave_target(target, Q=95, effort=2, **options)
        case "avif":
            # Any effort above 0 takes at least twice the time for a quarter of the bytes.
            options |= {"compression": "av1", "Q": 80, "effort": 0}
            image.heifsave_target(target, bitdepth=header.get("bits-per-sample"), **options)


def _upright(image: pyvips.Image) -> pyvips.Image:
    """Turn each frame by EXIF's orientation."""
    first, *others = [page.autorot() for page in image.pagesplit()]
    return first.pagejoin(others) if others else first


def _in_srgb(image: pyvips.Image) -> pyvips.Image:
    """Bring other colour spaces to sRGB; what is sRGB by its profile comes back as it is."""
    depth = 16 if image.format == "ushort" else 8
    if image.interpretation == "cmyk":
        return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
    if not image.get_typeof("icc-profile-data"):
        return image
    noise = [pyvips.Image.gaussnoise(32, 32, mean=128, sigma=64, seed=band) for band in range(3)]
    sample = noise[0].bandjoin(noise[1:]) if image.bands > 2 else noise[0]
    sample = sample.cast("uchar").copy(interpretation="srgb" if image.bands > 2 else "b-w")
    profile = image.get("icc-profile-data")
    sample.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    try:
        if (sample.icc_transform("srgb", embedded=True) - sample).abs().max() <= 3:
            return image
        return image.icc_transform("srgb", embedded=True, depth=depth)
    except pyvips.Error:
        return image  # A broken profile, or one for other images: browsers ignore it too.


def _close(job: Future[Picture]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().file.close()


def _printable(name: str) -> str:
    """A client's file name, fit for a sentence: one line, at most 60 characters."""
    name = name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"
    return "".join(letter if letter.isprintable() else "?" for letter in name) or "The file"


_KINDS = (
    _Kind("jpg", "image/jpeg", rb"\xff\xd8\xff", "jpegload_source", jpeg_parts),
    _Kind("png", "image/png", rb"\x89PNG\r\n\x1a\n", "pngload_source", png_parts),
    _Kind("gif", "image/gif", rb"GIF8[79]a", "gifload_source", gif_parts, animated=True),
    _Kind("webp", "image/webp", rb"RIFF....WEBP", "webpload_source", webp_parts, animated=True),
    # One of the brands that the file says it is compatible with (ISO/IEC 14496-12, 4.3).
    _Kind("avif", "image/avif", rb"....ftyp(....){0,16}?avi[fs]", "heifload_source", whole),
)
