"""Variants: a picture in smaller widths, and what a page may show before any of them is there.

One pass over the picture draws the largest variant and sees every row, so that it is the check of
the whole file as well; each smaller one is drawn from the one before. For a 12 Mpx JPEG that takes
83 ms instead of 218 for a check and three loads, and comes within 47 dB of them. Shrinking while a
JPEG is loaded would save 20 ms more, but lets many a cut file pass.

WebP's quality and effort: a photo 1,920 pixels wide, at quality 80, took

    effort   0        1        2        3        4        6
    time     70 ms    88 ms    110 ms   246 ms   249 ms   580 ms
    size     351 kB   343 kB   310 kB   298 kB   299 kB   283 kB   (36.6 to 36.1 dB)
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import BinaryIO

import pyvips

from services import thumbhash

WIDTHS = (320, 960, 1920)
# An animation's variants move when it has no more frames, and its largest variant no more pixels
# in all frames together: they take 3 s. Else all of them are stills, so that they look alike.
MOVING_FRAMES = 300
MOVING_PIXELS = 25_000_000
_QUALITY = 80
_EFFORT = 2
_TALLEST = 16_383  # WebP has no more rows.
_HELD_IN_MEMORY = 4 * 2**20  # Bytes; more is held in a temporary file.
_GLIMPSE = 32
_NEAR = 48

Open = Callable[..., pyvips.Image]
"""Opens the picture anew, for one sequential pass, in `n` frames (-1 for all)."""


@dataclass(frozen=True)
class Variant:
    """A smaller WebP in an unnamed file on disk; width and height are pixels of one frame."""

    file: BinaryIO
    extension: str
    content_type: str
    width: int
    height: int
    bytes: int


@dataclass(frozen=True)
class Drawing:
    """The variants, narrowest first; a colour as "#rrggbb"; a ThumbHash as base64 text."""

    variants: tuple[Variant, ...]
    color: str
    placeholder: str


class Stop:
    """A way to end a job from another thread: at the next rows that it reads."""

    def __init__(self) -> None:
        self._asked = False
        self._image: pyvips.Image | None = None

    def ask(self) -> None:
        self._asked = True
        if self._image is not None:
            self._image.set_kill(True)

    def watch(self, image: pyvips.Image) -> None:
        """From here on the job reads this image, and no other that it has not made of it."""
        self._image = image
        if self._asked:
            image.set_kill(True)


def draw(picture: Open, widths: Iterable[int], stop: Stop) -> Drawing:
    """Read every row of the picture and draw what is smaller than it.

    Raises pyvips.Error if any row is damaged. The caller closes the variants' files.
    """
    image = picture(n=-1)
    width, height = image.width, image.get_page_height()
    fitting = [w for w in widths if w < width and round(height * w / width) <= _TALLEST]
    descending = sorted(set(fitting), reverse=True)
    if image.height > height and not _moves(image, descending):
        image.avg()
        image = picture(n=1)
    variants: list[Variant] = []
    with ExitStack() as opened:
        for narrower in descending:
            image = _shrunk(image, narrower)
            stop.watch(image)
            variants.insert(0, _encode(image, opened.enter_context(TemporaryFile())))
        color, placeholder = _glimpse(image)
        opened.pop_all()
    return Drawing(tuple(variants), color, placeholder)


def _moves(animation: pyvips.Image, descending: Sequence[int]) -> bool:
    if not descending or animation.height > MOVING_FRAMES * animation.get_page_height():
        return False
    shrunk = descending[0] / animation.width
    pixels: float = animation.width * animation.height * shrunk**2
    return pixels <= MOVING_PIXELS


def _shrunk(image: pyvips.Image, width: int) -> pyvips.Image:
    """Shrink each frame by itself, so that none bleeds into the next, and hold what comes out."""
    # One after the other: 300 frames in one pipeline would take 300 MB.
    first, *others = [_held(_scaled(page, width)) for page in image.pagesplit()]
    return first.pagejoin(others).copy() if others else first


def _scaled(frame: pyvips.Image, width: int, height: int = 10_000_000) -> pyvips.Image:
    """Fit one frame into width and height, in 8-bit sRGB."""
    small = frame.thumbnail_image(width, height=height, size="down", no_rotate=True)
    return small.colourspace("srgb")


def _held(frame: pyvips.Image) -> pyvips.Image:
    if frame.width * frame.height * frame.bands <= _HELD_IN_MEMORY:
        return frame.copy_memory()
    file = pyvips.Image.new_temp_file("%s.v")
    frame.write(file)
    return file


def _encode(image: pyvips.Image, file: BinaryIO) -> Variant:
    target = pyvips.Target.new_to_descriptor(file.fileno())
    image.webpsave_target(target, Q=_QUALITY, effort=_EFFORT, keep="none")
    size = file.tell()
    file.seek(0)
    return Variant(file, "webp", "image/webp", image.width, image.get_page_height(), size)


def _glimpse(image: pyvips.Image) -> tuple[str, str]:
    """The dominant colour and the placeholder, both from the first frame in 32 pixels."""
    frame = image.crop(0, 0, image.width, image.get_page_height())
    small = _scaled(frame, _GLIMPSE, _GLIMPSE)
    rgba = bytes((small if small.hasalpha() else small.addalpha()).write_to_memory())
    placeholder = thumbhash.encode(small.width, small.height, rgba)
    return _dominant(rgba), b64encode(placeholder).decode()


def _dominant(rgba: bytes) -> str:
    """The colour where the picture's colours lie densest, found by mean shift.

    A mean of all would be a colour that the picture may not have: purple for red beside blue.
    """
    pixels = zip(rgba[::4], rgba[1::4], rgba[2::4], rgba[3::4], strict=True)
    seen = [(red, green, blue) for red, green, blue, alpha in pixels if alpha >= 128]
    if not seen:
        return "#ffffff"
    cells = Counter((red >> 5, green >> 5, blue >> 5) for red, green, blue in seen)
    ((densest, _),) = cells.most_common(1)
    red, green, blue = (16 + 32 * cell for cell in densest)
    for _ in range(4):
        near = [
            (r, g, b)
            for r, g, b in seen
            if (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2 <= _NEAR**2
        ]
        red, green, blue = (round(sum(band) / len(near)) for band in zip(*near, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
