"""What is drawn of a picture beside itself: its smaller sizes, its colour, its placeholder."""

import asyncio
import base64
import time
from collections.abc import Sequence
from contextlib import closing
from io import BytesIO
from typing import NamedTuple

import pytest
import pyvips

from services import pictures, variants
from services.errors import DamagedImage
from services.pictures import Limits, Picture
from services.variants import Stop
from tests import pictures as make

LIMITS = Limits(bytes=100 * 2**20, pixels=50_000_000)


class Drawn(NamedTuple):
    """What came out, and each variant decoded, narrowest first."""

    picture: Picture
    images: list[pyvips.Image]
    files: list[bytes]


def drawn(data: bytes, widths: Sequence[int] = variants.WIDTHS) -> Drawn:
    with closing(pictures.clean(BytesIO(data), "photo.jpg", LIMITS, widths)) as picture:
        files = [variant.file.read() for variant in picture.variants]
    for variant, file in zip(picture.variants, files, strict=True):
        image = make.decode(file)
        assert file.startswith(b"RIFF")
        assert variant.content_type == "image/webp"
        assert variant.bytes == len(file)
        assert (variant.width, variant.height) == (image.width, image.get_page_height())
    return Drawn(picture, [make.decode(file) for file in files], files)


def sizes(picture: Picture) -> list[tuple[int, int]]:
    return [(variant.width, variant.height) for variant in picture.variants]


def flat(red: int, green: int, blue: int, width: int = 96, height: int = 64) -> pyvips.Image:
    image = pyvips.Image.black(width, height).new_from_image([red, green, blue])
    return image.cast("uchar").copy(interpretation="srgb")


@pytest.mark.parametrize(
    ("width", "height", "shown"),
    [
        (2_400, 1_600, [(320, 213), (960, 640), (1920, 1280)]),
        (1_920, 1_080, [(320, 180), (960, 540)]),
        (961, 2_000, [(320, 666), (960, 1998)]),
        (321, 3, [(320, 3)]),
        (320, 900, []),
        (1, 1, []),
    ],
)
def test_a_picture_is_drawn_in_every_width_that_is_smaller_than_its_own(
    width: int, height: int, shown: list[tuple[int, int]]
) -> None:
    picture, _, _ = drawn(make.jpeg(make.photo(width, height)))

    assert sizes(picture) == shown


def test_the_widths_are_given_and_come_in_order_without_repeats() -> None:
    picture, _, _ = drawn(make.png(), [60, 24, 60, 500])

    assert sizes(picture) == [(24, 16), (60, 40)]


def test_no_variant_is_taller_than_webp_can_be() -> None:
    picture, _, _ = drawn(make.png(flat(1, 2, 3, 1_000, 20_000)))

    assert sizes(picture) == [(320, 6_400)]


def blinking(
    count: int, width: int, height: int
) -> tuple[pyvips.Image, list[tuple[int, int, int]], list[int]]:
    """An animation of one colour after the other, those colours, and its times."""
    colours = ([(250, 10, 10), (10, 250, 10), (10, 10, 250)] * count)[:count]
    first, *others = [flat(*colour, width, height) for colour in colours]
    animation = first.pagejoin(others).copy()
    delays = [100 + 10 * number for number in range(count)]
    animation.set_type(pyvips.GValue.array_int_type, "delay", delays)
    animation.set_type(pyvips.GValue.gint_type, "loop", 3)
    return animation, colours, delays


SMALLER = {
    "photo.jpg": make.jpeg(make.photo(600, 400), Q=95),
    "progressive.jpg": make.jpeg(make.photo(600, 400), Q=95, interlace=True),
    "photo.png": make.png(make.photo(600, 400)),
    "interlaced.png": make.png(make.photo(600, 400), interlace=True),
    "deep.png": make.png(
        (make.photo(600, 400).cast("ushort") * 257).cast("ushort").copy(interpretation="rgb16")
    ),
    "photo.gif": make.photo(600, 400).gifsave_buffer(keep="none"),
    "photo.webp": make.photo(600, 400).webpsave_buffer(keep="none", Q=95),
    "photo.avif": make.avif(make.photo(600, 400), Q=90),
}


@pytest.mark.parametrize("name", SMALLER)
def test_a_variant_looks_like_the_picture(name: str) -> None:
    _, images, _ = drawn(SMALLER[name], [150, 300])

    for image in images:
        expected = make.photo(600, 400).resize(image.width / 600)
        assert make.difference(image, expected) < 4


def test_a_grey_picture_stays_grey() -> None:
    grey = make.photo(600, 400)[0]
    deep = (grey.cast("ushort") * 257).cast("ushort").copy(interpretation="grey16")

    for upload in (make.jpeg(grey), make.png(deep)):
        picture, [image], _ = drawn(upload, [300])

        assert make.difference(image, image.colourspace("b-w").colourspace("srgb")) < 1
        assert make.difference(image[1], grey.resize(0.5)) < 4
        assert picture.color[1:3] == picture.color[3:5] == picture.color[5:7]


@pytest.mark.parametrize("orientation", [3, 6])
def test_variants_are_upright_in_srgb_and_without_camera_data(orientation: int) -> None:
    wide = make.photo(600, 400).icc_transform("p3", input_profile="srgb", embedded=False)
    upload = make.camera_jpeg(orientation, wide, Q=95, keep="icc")

    picture, [image], [file] = drawn(upload, [100])

    upright = make.photo(600, 400).rot180() if orientation == 3 else make.photo(600, 400).rot90()
    assert sizes(picture) == [(100, 67 if orientation == 3 else 150)]
    assert make.SECRET not in file
    fields = image.get_fields()
    assert not [field for field in fields if "exif" in field or "xmp" in field or "icc" in field]
    assert make.difference(image, upright.resize(100 / upright.width)) < 6


def test_transparency_is_kept_and_its_hidden_colours_do_not_shine_through() -> None:
    left = flat(250, 250, 250, 200, 200).bandjoin(0)
    right = flat(200, 30, 30, 200, 200).bandjoin(255)

    picture, [image], _ = drawn(make.png(left.join(right, "horizontal")), [101])

    assert image.hasalpha()
    assert image(10, 50)[3] == 0
    assert image(90, 50)[3] == 255
    for x in range(101):
        red, green, blue, alpha = image(x, 50)
        if alpha > 60:
            assert (red, green, blue) == pytest.approx((200, 30, 30), abs=20)
    assert picture.color == "#c81e1e"


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_stays_one_and_no_frame_bleeds_into_the_next(kind: str) -> None:
    animation, colours, delays = blinking(9, 61, 41)
    save = animation.gifsave_buffer if kind == "gif" else animation.webpsave_buffer

    picture, [image], _ = drawn(save(keep="none"), [20])

    assert sizes(picture) == [(20, 13)]
    assert image.get_n_pages() == len(colours)
    assert image.get("delay") == delays
    assert image.get("loop") == 3
    for page, colour in zip(image.pagesplit(), colours, strict=True):
        for row in (0, 6, 12):
            assert page(10, row)[:3] == pytest.approx(colour, abs=12)


def test_a_turned_animation_has_upright_moving_variants() -> None:
    upload = make.annotated_webp(make.frames(3), orientation=6, lossless=True)

    picture, [image], _ = drawn(upload, [16])

    assert sizes(picture) == [(16, 24)]
    assert image.get_n_pages() == 3
    for page, frame in zip(image.pagesplit(), make.frames(3).pagesplit(), strict=True):
        assert make.difference(page[:3], frame.rot90().resize(0.5)) < 12


@pytest.mark.parametrize("budget", ["MOVING_FRAMES", "MOVING_PIXELS"])
def test_an_animation_beyond_the_budget_is_drawn_as_stills_of_its_first_frame(
    budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exactly = {"MOVING_FRAMES": 4, "MOVING_PIXELS": 4 * 24 * 16}[budget]
    upload = blinking(4, 48, 32)[0].webpsave_buffer(keep="none")
    for limit, pages in ((exactly, 4), (exactly - 1, 1)):
        monkeypatch.setattr(variants, budget, limit)

        picture, images, _ = drawn(upload, [12, 24])

        assert [image.get_n_pages() for image in images] == [pages, pages]
        assert sizes(picture) == [(12, 8), (24, 16)]
        for image in images:
            assert image(5, 5)[:3] == pytest.approx((250, 10, 10), abs=12)


@pytest.mark.parametrize("widths", [[], [20]])
def test_damage_in_the_last_frame_is_found_even_if_variants_are_stills(
    widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "MOVING_FRAMES", 2)
    upload = bytearray(make.frames(4).webpsave_buffer(keep="none"))
    last = upload.rindex(b"VP8 ")
    upload[last + 11 : last + 14] = b"\0\0\0"

    with pytest.raises(DamagedImage):
        drawn(bytes(upload), widths)


@pytest.mark.parametrize("height", [400, 407, 408, 409, 415])
def test_rows_missing_at_the_end_are_found_while_the_picture_is_shrunk(height: int) -> None:
    upload = make.jpeg(make.photo(600, height))

    for widths in ([], [50], [100, 550]):
        with pytest.raises(DamagedImage):
            drawn(upload[:-600] + b"\xff\xd9", widths)


def test_a_gif_on_a_canvas_that_only_browsers_believe_has_no_variants() -> None:
    upload = make.dots_gif(1, 60_000, 100)

    picture, images, _ = drawn(upload, [20])

    assert (picture.width, picture.height) == (60_000, 100)
    assert images == []


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (flat(0x12, 0x34, 0x56), "#123456"),
        (flat(255, 255, 255), "#ffffff"),
        (flat(0, 0, 0), "#000000"),
        (flat(1, 2, 3).bandjoin(0), "#ffffff"),
        (flat(200, 40, 40, 60).join(flat(40, 40, 200, 36), "horizontal"), "#c82828"),
    ],
    ids=["one colour", "white", "black", "clear", "red beside less blue"],
)
def test_the_colour_is_one_that_the_picture_has(image: pyvips.Image, color: str) -> None:
    assert drawn(make.png(image)).picture.color == color


def test_a_gradient_that_crosses_many_colours_has_one_near_its_middle() -> None:
    sky = pyvips.Image.xyz(96, 64)[1]
    image = (sky + 90).bandjoin([sky + 130, sky * 0 + 220]).cast("uchar")

    color = drawn(make.png(image.copy(interpretation="srgb"))).picture.color

    red, green, blue = bytes.fromhex(color[1:])
    assert (red, green, blue) == pytest.approx((122, 162, 220), abs=16)


def test_the_placeholder_is_a_thumbhash_of_the_picture_with_its_shape_and_alpha() -> None:
    opaque = base64.b64decode(drawn(make.png()).picture.placeholder)
    tall = base64.b64decode(drawn(make.png(make.photo(64, 96))).picture.placeholder)
    clear = make.png(make.photo().bandjoin(make.photo()[0]))
    see_through = base64.b64decode(drawn(clear).picture.placeholder)

    assert 20 <= len(opaque) <= 25
    assert opaque[4] & 0x80
    assert not tall[4] & 0x80
    assert see_through[2] & 0x80
    assert not opaque[2] & 0x80


async def test_a_job_that_is_told_to_stop_ends_long_before_it_would_be_done() -> None:
    large = make.png(make.photo(4_000, 3_000))
    started = time.perf_counter()
    pictures.clean(BytesIO(large), "large.png", LIMITS).close()
    whole = time.perf_counter() - started

    stop = Stop()
    started = time.perf_counter()
    job = asyncio.to_thread(
        pictures.clean, BytesIO(large), "large.png", LIMITS, variants.WIDTHS, stop
    )
    asyncio.get_running_loop().call_later(whole / 10, stop.ask)
    with pytest.raises(DamagedImage):
        await job

    assert time.perf_counter() - started < whole / 2
