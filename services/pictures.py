"""Pictures: what an uploaded file must be, and what of it is kept.

A JPEG, PNG, GIF or WebP keeps its compressed pixels bit for bit: the file is walked part by part
and only the parts that make pixels are copied, so that whatever a camera or an editor wrote
beside them, and whatever follows them, stays behind by construction; what is stored is what was
decoded, to its last row. Encoding every upload again would cost size or visible quality instead.
Pixels are written anew only where they must be: turned by their orientation, brought to sRGB, and
every AVIF, whose metadata is woven into its index. Of an animated PNG the still picture is kept.
`services.variants` draws the smaller ones from what is kept.
"""

import asyncio
import os
import re
import struct
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import pyvips

from config.turns import Use
from services import pixels
from services.allocator import Trimmer
from services.containers import Malformed, gif_parts, jpeg_parts, png_parts, webp_parts, whole
from services.errors import DamagedImage, ImageTooLarge, UnsupportedImage
from services.variants import WIDTHS, Stop, Variant, draw

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
# Beyond these pixels, in all frames, one picture at a time: some formats are held whole, at up to
# 25 bytes a pixel, and so are an animation's variants.
_LARGE = 16_000_000
_one_large_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """The most that one file may have: bytes as uploaded, pixels of a still or of one frame."""

    bytes: int
    pixels: int


@dataclass(frozen=True)
class Picture:
    """A cleaned picture in an unnamed file on disk; width and height are pixels of one frame.

    Variants come narrowest first; color is "#rrggbb", placeholder a ThumbHash as base64 text.
    """

    file: BinaryIO
    extension: str
    content_type: str
    width: int
    height: int
    bytes: int
    variants: tuple[Variant, ...]
    color: str
    placeholder: str

    def close(self) -> None:
        """Close its file and those of its variants, which frees their place on the disk."""
        for file in (self.file, *(variant.file for variant in self.variants)):
            file.close()


class Cleaner:
    """Cleans uploads in threads of its own, never more at once than it has workers."""

    def __init__(self, limits: Limits, workers: int, widths: Sequence[int]) -> None:
        self._limits = limits
        self._workers = workers
        self._widths = widths
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self._trimmer = Trimmer()
        self._jobs: set[Future[Picture]] = set()

    def use(self) -> Use:
        working = sum(job.running() for job in self._jobs)
        waiting = sum(not job.done() for job in self._jobs) - working
        return Use(working, self._workers - working, waiting, self._workers)

    @asynccontextmanager
    async def cleaned(
        self, uploads: Iterable[tuple[BinaryIO, str]]
    ) -> AsyncGenerator[list[Picture]]:
        """Lend the pictures of some (file, client's name for it), in order, and close them after.

        Raises what `clean` raises, for the first upload that is refused. On a refusal or a
        cancellation uploads that wait are dropped, and those in work end soon and are closed.
        """
        work = [(upload, Stop()) for upload in uploads]
        jobs = [
            self.threads.submit(clean, *upload, self._limits, self._widths, stop)
            for upload, stop in work
        ]
        self._jobs.update(jobs)
        try:
            yield [await asyncio.wrap_future(job) for job in jobs]
        finally:
            for job, (_, stop) in zip(jobs, work, strict=True):
                self._jobs.discard(job)
                job.cancel()
                stop.ask()
                job.add_done_callback(_close)
            if jobs:
                self._trimmer.soon()


@asynccontextmanager
async def open_cleaner(
    limits: Limits, *, workers: int, widths: Sequence[int] = WIDTHS
) -> AsyncGenerator[Cleaner]:
    """One cleaner for the process's life; it draws variants of these widths, in pixels."""
    cleaner = Cleaner(limits, workers, widths)
    try:
        yield cleaner
    finally:
        await asyncio.to_thread(cleaner.threads.shutdown, cancel_futures=True)


def clean(
    upload: BinaryIO,
    name: str,
    limits: Limits,
    widths: Sequence[int] = WIDTHS,
    stop: Stop | None = None,
) -> Picture:
    """Check one upload, keep its pixels alone, draw its variants; blocks. The caller closes it.

    Raises `UnsupportedImage`, `ImageTooLarge` or `DamagedImage`, naming the file and the limit;
    the last also when it is told to stop, since then nobody listens.
    """
    name = _printable(name)
    data = _read(upload, name, limits)
    kind = next((kind for kind in _KINDS if re.match(kind.magic, data, re.DOTALL)), None)
    if kind is None:
        raise UnsupportedImage(f"{name} is not a JPEG, PNG, GIF, WebP or AVIF image.")
    try:
        parts = list(islice(kind.pixel_parts(data), MAX_PARTS + 1))
        if len(parts) > MAX_PARTS:
            raise ImageTooLarge(f"{name} has too many parts; the limit is {MAX_PARTS:,} parts.")
        header = kind.open(data)
        width, height = _canvas(header, data)
        frames = _frames(header)
        _check_pixels(width, height, frames, name, limits)
        with _one_large_at_a_time if width * height * frames > _LARGE else nullcontext():
            return _keep_pixels(kind, b"".join(parts), header, widths, stop or Stop())
    except (pyvips.Error, Malformed) as error:
        raise DamagedImage(f"{name} is damaged or cut off.") from error


def _read(upload: BinaryIO, name: str, limits: Limits) -> bytes:
    size = upload.seek(0, os.SEEK_END)
    if size > limits.bytes:
        raise ImageTooLarge(f"{name} has {size:,} bytes; the limit is {limits.bytes:,} bytes.")
    upload.seek(0)
    return upload.read()


@dataclass(frozen=True)
class _Kind:
    extension: str
    content_type: str
    magic: bytes
    loader: str
    pixel_parts: Callable[[bytes], Iterator[bytes]]  # b"" for what is left behind.
    animated: bool = False

    def open(self, data: bytes | BinaryIO, **options: object) -> pyvips.Image:
        """Read the header. The loader is named, so that libvips never guesses one by itself."""
        if isinstance(data, bytes):
            source = pyvips.Source.new_from_memory(data)
        else:
            source = pyvips.Source.new_from_descriptor(data.fileno())
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


def _keep_pixels(
    kind: _Kind, kept: bytes, header: pyvips.Image, widths: Sequence[int], stop: Stop
) -> Picture:
    # Turning reads pixels out of order; libvips then holds them, on disk when they are many.
    turned = header.get_typeof("orientation") and 2 <= header.get("orientation") <= 8
    original = _open_whole(kind, kept, access="random" if turned else "sequential")
    if _frames(original) != _frames(header):
        raise Malformed("frames are missing")
    stop.watch(original)
    original = _as_told(original, header)
    image = pixels.in_srgb(pixels.upright(original) if turned else original)
    anew = image is not original or kind.extension == "avif"
    with ExitStack() as opened:
        file = opened.enter_context(tempfile.TemporaryFile())
        if anew:
            lossless = b"VP8L" in kept[:100]
            pixels.encode(kind.extension, image, header, file, lossless=lossless)
        else:
            file.write(kept)
        size = file.seek(0, os.SEEK_END)

        def reopened(n: int) -> pyvips.Image:
            again = _open_whole(kind, file if anew else kept, n=n, access="sequential")
            stop.watch(again)
            return again

        width, height = _canvas(image, kept)
        doubted = (width, height) != (image.width, image.get_page_height())
        drawing = draw(reopened, () if doubted else widths, stop)
        file.seek(0)
        opened.pop_all()
    look = (drawing.variants, drawing.color, drawing.placeholder)
    return Picture(file, kind.extension, kind.content_type, width, height, size, *look)


def _as_told(image: pyvips.Image, header: pyvips.Image) -> pyvips.Image:
    """The kept pixels, with what the upload said of their turn and their colours."""
    image = image.copy()
    for field in ("orientation", "icc-profile-data"):
        if header.get_typeof(field):
            image.set_type(header.get_typeof(field), field, header.get(field))
    return image


def _open_whole(kind: _Kind, data: bytes | BinaryIO, *, access: str, n: int = -1) -> pyvips.Image:
    """Open for reading rows that are all there, in `n` frames (-1 for all)."""
    # The walk has caught what ends early. "warning" alone catches a JPEG that was cut and closed
    # again, unless only its last 8 rows are missing.
    frames = {"n": n} if kind.animated else {}
    return kind.open(data, fail_on="warning", access=access, **frames)


def _close(job: Future[Picture]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().close()


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
