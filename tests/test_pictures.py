"""What is taken as a picture, and what of it is kept."""

import asyncio
import random
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import closing, suppress
from io import BytesIO
from typing import Any, BinaryIO

import pytest
import pytest_asyncio
import pyvips

from services import pictures
from services.errors import DamagedImage, ImageTooLarge, UnsupportedImage
from services.pictures import Cleaner, Limits, Picture
from tests import pictures as make

LIMITS = Limits(bytes=10 * 2**20, pixels=50_000_000)
# Most pictures here are 96 x 64 or 48 x 32 pixels: a variant is drawn of each.
WIDTHS = (20, 40)


def cleaned(data: bytes, name: str = "photo.jpg", limits: Limits = LIMITS) -> tuple[bytes, Picture]:
    with closing(pictures.clean(BytesIO(data), name, limits, WIDTHS)) as picture:
        kept = picture.file.read()
    assert picture.bytes == len(kept)
    return kept, picture


SOUND = {
    "baseline.jpg": make.jpeg(),
    "progressive.jpg": make.jpeg(interlace=True),
    "grey.jpg": make.jpeg(make.photo()[0]),
    "restarts.jpg": make.jpeg(restart_interval=2),
    "plain.png": make.photo().pngsave_buffer(keep="none"),
    "interlaced.png": make.photo().pngsave_buffer(keep="none", interlace=True),
    "palette.png": make.photo().pngsave_buffer(keep="none", palette=True),
    "deep.png": (make.photo().cast("ushort") * 257).cast("ushort").pngsave_buffer(keep="none"),
    "still.gif": make.photo().gifsave_buffer(keep="none"),
    "moving.gif": make.frames(4).gifsave_buffer(keep="none"),
    "lossy.webp": make.photo().webpsave_buffer(keep="none"),
    "lossless.webp": make.photo().webpsave_buffer(keep="none", lossless=True),
    "clear.webp": make.photo().bandjoin(make.photo()[0]).webpsave_buffer(keep="none"),
    "moving.webp": make.frames(4).webpsave_buffer(keep="none"),
    "picture.avif": make.avif(keep="none"),
}
ANNOTATED = {
    "camera.jpg": make.camera_jpeg(),
    "turned.jpg": make.camera_jpeg(6),
    "progressive.jpg": make.camera_jpeg(interlace=True),
    "annotated.png": make.annotated_png(),
    "turned.png": make.annotated_png(orientation=3),
    "annotated.gif": make.annotated_gif(make.frames(3)),
    "annotated.webp": make.annotated_webp(make.photo()),
    "turned.webp": make.annotated_webp(make.photo(), orientation=8),
    "moving.webp": make.annotated_webp(make.frames(3)),
    "annotated.avif": make.avif() + struct.pack(">I4s", 30, b"free") + make.SECRET,
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_picture_is_taken_for_what_its_bytes_say_and_shown_in_its_size(name: str) -> None:
    _, picture = cleaned(SOUND[name], "misleading.txt")

    extension = name.rpartition(".")[2]
    assert picture.extension == extension
    assert picture.content_type == "image/" + extension.replace("jpg", "jpeg")
    assert (picture.width, picture.height) == ((48, 32) if name.startswith("moving") else (96, 64))


@pytest.mark.parametrize("name", [name for name in SOUND if not name.endswith("avif")])
def test_a_picture_without_anything_to_lose_is_stored_as_it_came(name: str) -> None:
    kept, _ = cleaned(SOUND[name])

    assert kept == SOUND[name]


@pytest.mark.parametrize("name", ANNOTATED)
def test_camera_data_comments_previews_and_tails_are_gone(name: str) -> None:
    assert make.SECRET in ANNOTATED[name]

    kept, _ = cleaned(ANNOTATED[name])

    assert make.SECRET not in kept
    fields = make.decode(kept).get_fields()
    assert not [field for field in fields if "exif" in field or "xmp" in field or "iptc" in field]
    assert "orientation" not in fields


@pytest.mark.parametrize("name", [name for name in ANNOTATED if "turned" not in name])
def test_what_is_lost_costs_no_pixel(name: str) -> None:
    kept, _ = cleaned(ANNOTATED[name])

    loss = make.difference(make.decode(kept), make.decode(ANNOTATED[name]))
    assert loss < 3 if name.endswith("avif") else loss == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_a_picture_comes_out_upright(extension: str, orientation: int) -> None:
    upload = {
        "jpg": make.camera_jpeg(orientation),
        "png": make.annotated_png(orientation=orientation),
        "webp": make.annotated_webp(make.photo(), orientation=orientation, lossless=True),
    }[extension]

    kept, picture = cleaned(upload)

    upright = pyvips.Image.new_from_buffer(upload, "").autorot()
    assert (picture.width, picture.height) == ((96, 64) if orientation < 5 else (64, 96))
    loss = make.difference(make.decode(kept), upright)
    assert loss < 1.5 if extension == "jpg" else loss == 0


def test_a_turned_jpeg_keeps_its_kind_of_chroma_and_about_its_size() -> None:
    for subsampling in ("on", "off"):
        upload = make.camera_jpeg(6, make.photo(600, 400), Q=90, subsample_mode=subsampling)

        kept, _ = cleaned(upload)

        before, after = make.decode(upload), make.decode(kept)
        assert after.get("jpeg-chroma-subsample") == before.get("jpeg-chroma-subsample")
        assert len(kept) < 1.5 * len(upload)


def test_an_animation_keeps_its_frames_their_times_and_its_loops() -> None:
    for upload in (make.annotated_gif(make.frames(5)), make.annotated_webp(make.frames(5))):
        kept, picture = cleaned(upload)

        before, after = make.decode(upload), make.decode(kept)
        assert after.get_n_pages() == 5
        assert after.get("delay") == before.get("delay")
        assert after.get("loop") == before.get("loop") == 3
        assert (picture.width, picture.height) == (48, 32)


def test_each_frame_of_a_turned_animation_comes_out_upright() -> None:
    upload = make.annotated_webp(make.frames(3), orientation=6, lossless=True)

    kept, picture = cleaned(upload)

    after = make.decode(kept)
    assert (picture.width, picture.height, after.get_n_pages()) == (32, 48, 3)
    for before, turned in zip(make.frames(3).pagesplit(), after.pagesplit(), strict=True):
        assert make.difference(turned[:3], before.rot90()) == 0
    assert after.get("delay") == [100, 110, 120]


def test_the_still_picture_of_an_animated_png_is_kept() -> None:
    png = make.photo().pngsave_buffer(keep="none")
    control = make.png_chunk(b"acTL", b"\0\0\0\1\0\0\0\0")

    kept, _ = cleaned(png[:33] + control + png[33:])

    assert kept == png


def test_colours_of_a_wide_gamut_profile_come_out_in_srgb() -> None:
    wide = make.photo().icc_transform("p3", input_profile="srgb", embedded=False)
    uploads = [wide.jpegsave_buffer(Q=95), wide.pngsave_buffer(), wide.webpsave_buffer(Q=95)]
    uploads.append(wide.heifsave_buffer(compression="av1", Q=90, effort=0))
    assert make.difference(wide, make.photo()) > 4

    for upload in uploads:
        kept, _ = cleaned(upload)

        assert "icc-profile-data" not in make.decode(kept).get_fields()
        assert make.difference(make.decode(kept), make.photo()) < 3


def test_a_profile_that_says_srgb_is_dropped_and_every_pixel_stays() -> None:
    for image in (make.photo(), make.photo()[0]):
        for upload in (image.jpegsave_buffer(profile="srgb"), image.pngsave_buffer(profile="srgb")):
            kept, _ = cleaned(upload)

            assert "icc-profile-data" not in make.decode(kept).get_fields()
            assert make.difference(make.decode(kept), make.decode(upload)) == 0


def test_a_broken_profile_does_not_hold_a_picture_back() -> None:
    plain = make.jpeg()
    profile = make.segment(0xE2, b"ICC_PROFILE\0\1\1" + b"no profile" * 20)

    kept, _ = cleaned(plain[:2] + profile + plain[2:])

    assert kept == plain


def test_a_jpeg_in_printing_colours_comes_out_in_srgb() -> None:
    inks = make.photo().icc_transform("cmyk", input_profile="srgb", embedded=False)
    for upload in (inks.jpegsave_buffer(Q=95), inks.jpegsave_buffer(Q=95, keep="none")):
        kept, _ = cleaned(upload)

        assert make.decode(kept).interpretation == "srgb"
        assert make.difference(make.decode(kept), make.photo()) < 30


def test_sixteen_bits_and_transparency_are_kept() -> None:
    deep = (make.photo().cast("ushort") * 257).cast("ushort").copy(interpretation="rgb16")
    clear = deep.bandjoin(deep[0])
    upload = make.annotated_png(clear, orientation=3)

    kept, _ = cleaned(upload)

    assert make.decode(kept).format == "ushort"
    assert make.difference(make.decode(kept), clear.rot180()) == 0


@pytest.mark.parametrize("name", SOUND)
def test_a_cut_file_is_refused_wherever_it_was_cut(name: str) -> None:
    for cut in make.cuts(SOUND[name]):
        with pytest.raises(DamagedImage, match=f"^{name} is damaged or cut off"):
            cleaned(cut, name)


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive.jpg", "restarts.jpg"])
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(name: str) -> None:
    for missing in (20, len(SOUND[name]) // 2):
        with pytest.raises(DamagedImage):
            cleaned(SOUND[name][:-missing] + b"\xff\xd9")


def test_an_animation_that_lacks_its_last_frames_is_refused() -> None:
    for upload in (SOUND["moving.gif"], SOUND["moving.webp"]):
        for tenths in range(3, 10):
            with pytest.raises(DamagedImage):
                cleaned(upload[: len(upload) * tenths // 10])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"<!doctype html><script>alert(1)</script>",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n1 0 obj",
        b"PK\x03\x04" + bytes(60),
        b"BM" + bytes(60),
        make.photo().tiffsave_buffer(),
        b"P6\n2 2\n255\n" + bytes(12),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60),
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(60),
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(60),
        b"GIF88a" + bytes(60),
    ],
    ids=lambda data: ascii(data[:12]),
)
def test_anything_else_is_refused_whatever_it_is_called(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match=r"^photo.jpg is not a JPEG, PNG, "):
        cleaned(data)


def test_a_heif_that_only_claims_to_be_avif_is_refused() -> None:
    with pytest.raises(DamagedImage):
        cleaned(SOUND["picture.avif"].replace(b"av01", b"hvc1"))


def test_a_file_of_too_many_bytes_is_refused_unread() -> None:
    class Unreadable(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("it was read")

    with pytest.raises(ImageTooLarge, match=r"^photo.jpg has 2,000 bytes; the limit is 1,999 b"):
        pictures.clean(Unreadable(bytes(2_000)), "photo.jpg", Limits(1_999, 50_000_000))


def test_pixels_are_limited_exactly() -> None:
    cleaned(SOUND["plain.png"], limits=Limits(LIMITS.bytes, 96 * 64))

    with pytest.raises(ImageTooLarge, match=r"^a.png is 96 x 64 pixels; the limit is 6,143 pix"):
        cleaned(SOUND["plain.png"], "a.png", Limits(LIMITS.bytes, 96 * 64 - 1))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (make.bomb_png(), "is 60,000 x 60,000 pixels; the limit is 50,000,000 pixels"),
        (make.dots_gif(1, 60_000, 60_000), "is 60,000 x 60,000 pixels; the limit is 50,000,000"),
        (make.dots_gif(10_000), "has 10,000 frames; the limit is 1,000 frames"),
        (make.dots_gif(400_000), "has too many parts; the limit is 50,000 parts"),
        (
            make.dots_gif(900, 700, 700),
            "has 900 frames of 700 x 700 pixels; the limit is 200,000,000 pixels in all",
        ),
        (make.bomb_png(1, 50_000_000), "has 50,000,000 rows; the limit is 1,000,000 rows"),
        (make.dots_gif(999, 2, 60_000), "has 59,940,000 rows; the limit is 1,000,000 rows"),
    ],
    ids=["png", "canvas", "frames", "more frames", "frames by pixels", "rows", "rows by frames"],
)
def test_a_bomb_is_refused_at_once_by_its_header(data: bytes, sentence: str) -> None:
    started = time.process_time()
    with pytest.raises(ImageTooLarge, match=f"^bomb.bin {sentence}"):
        cleaned(data, "bomb.bin")
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "The file"),
        ("my photo.jpg", "my photo.jpg"),
        ("a\r\nSet-Cookie: b\x00.jpg", "a??Set-Cookie: b?.jpg"),
        ("gpj.\N{RIGHT-TO-LEFT OVERRIDE}exe", "gpj.?exe"),
        ("\ud800.jpg", "?.jpg"),
        ("사진.png", "사진.png"),
        ("x" * 10_000 + ".jpg", "x" * 40 + "…" + "x" * 11 + ".jpg"),
    ],
)
def test_a_refusal_names_the_file_in_one_printable_line(name: str, shown: str) -> None:
    with pytest.raises(UnsupportedImage) as refused:
        cleaned(b"no picture", name)

    assert refused.value.detail == f"{shown} is not a JPEG, PNG, GIF, WebP or AVIF image."


def test_garbled_files_are_refused_and_nothing_worse() -> None:
    chance = random.Random(20)
    for _ in range(600):
        data = bytearray(chance.choice([*SOUND.values(), *ANNOTATED.values()]))
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(data) if chance.random() < 0.5 else min(200, len(data)))
            data[place] = chance.choice([0, 0xFF, 0x7F, chance.randrange(256)])
        with suppress(DamagedImage, ImageTooLarge, UnsupportedImage):
            cleaned(bytes(data))


@pytest_asyncio.fixture
async def cleaner() -> AsyncGenerator[Cleaner]:
    async with pictures.open_cleaner(LIMITS, workers=2, widths=WIDTHS) as opened:
        yield opened


def uploads(*names: str) -> list[tuple[BinaryIO, str]]:
    everything = SOUND | ANNOTATED | {"page.html": b"<html>", "cut.jpg": SOUND["baseline.jpg"][:-9]}
    return [(BytesIO(everything[name]), name) for name in names]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """Every picture that was cleaned while the test ran."""
    seen: list[Picture] = []
    clean = pictures.clean

    def watched(*job: Any) -> Picture:
        picture = clean(*job)
        seen.append(picture)
        return picture

    monkeypatch.setattr(pictures, "clean", watched)
    return seen


def files(picture: Picture) -> list[BinaryIO]:
    return [picture.file, *(variant.file for variant in picture.variants)]


async def test_pictures_come_in_the_order_of_their_uploads_and_are_closed_after(
    cleaner: Cleaner, made: list[Picture]
) -> None:
    names = ["turned.jpg", "palette.png", "moving.gif", "lossy.webp", "picture.avif"] * 2

    async with cleaner.cleaned(uploads(*names)) as lent:
        assert [picture.extension for picture in lent] == ["jpg", "png", "gif", "webp", "avif"] * 2
        assert all(file.read() for picture in lent for file in files(picture))

    assert len(made) == 10
    assert all(file.closed for picture in made for file in files(picture))


async def test_the_first_refusal_is_raised_and_every_file_closed(
    cleaner: Cleaner, made: list[Picture]
) -> None:
    names = ["plain.png", "moving.gif", "cut.jpg", "page.html", "palette.png", "lossy.webp"]

    with pytest.raises(DamagedImage, match=r"^cut.jpg "):
        async with cleaner.cleaned(uploads(*names)):
            raise AssertionError("it was lent")

    await all_workers_idle(cleaner)
    assert made
    assert all(file.closed for picture in made for file in files(picture))


@pytest.mark.parametrize("after", [0, 0.003, 0.03])
async def test_a_client_that_goes_away_leaves_no_file_open(
    cleaner: Cleaner, made: list[Picture], after: float
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after), cleaner.cleaned(uploads(*["picture.avif"] * 20)):
            raise AssertionError("it was lent")

    await all_workers_idle(cleaner)
    assert len(made) < 20
    assert all(file.closed for picture in made for file in files(picture))


async def test_no_more_files_are_cleaned_at_once_than_there_are_workers(
    cleaner: Cleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, running, most = pictures.clean, 0, 0

    def counted(*job: Any) -> Picture:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.002)
        try:
            return clean(*job)
        finally:
            running -= 1

    monkeypatch.setattr(pictures, "clean", counted)

    async def post() -> None:
        async with cleaner.cleaned(uploads("plain.png", "palette.png")):
            pass

    await asyncio.gather(*(post() for _ in range(10)))

    assert most == 2


async def test_the_event_loop_goes_on_while_pictures_are_cleaned(cleaner: Cleaner) -> None:
    large = make.avif(make.photo(1_000, 800))
    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - started)

    beating = asyncio.create_task(heartbeat())
    started = time.perf_counter()
    async with cleaner.cleaned([(BytesIO(large), "large.avif")] * 1):
        took = time.perf_counter() - started
    beating.cancel()

    assert longest < took / 2


async def all_workers_idle(cleaner: Cleaner) -> None:
    """Wait until every job that was handed in before is done."""
    async with cleaner.cleaned(uploads("plain.png", "plain.png", "plain.png")):
        await asyncio.sleep(0.05)
