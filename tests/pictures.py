"""Makes pictures to upload: sound ones with a camera's data in them, cut ones, and bombs."""

import struct
import zlib
from itertools import pairwise
from typing import Any

import pyvips

SECRET = b"GPS:37.5665N,126.9780E"
"""Stands in everything that a picture must lose: EXIF, XMP, comments, previews, tails."""


def photo(width: int = 96, height: int = 64, *, seed: int = 1) -> pyvips.Image:
    """An sRGB image with noise, a gradient and four corners that differ."""
    noise = pyvips.Image.gaussnoise(width, height, sigma=12, mean=0, seed=seed).gaussblur(1)
    place = pyvips.Image.xyz(width, height)
    red, green = place[0] * (220 / width), place[1] * (220 / height)
    image = (red + noise).bandjoin([green + noise, noise + 90]).cast("uchar")
    return image.copy(interpretation="srgb").copy_memory()


def frames(count: int, width: int = 48, height: int = 32) -> pyvips.Image:
    """An animation of photos that differ, each shown for a different time in milliseconds."""
    first, *others = [photo(width, height, seed=number) for number in range(count)]
    animation = first.pagejoin(others).copy() if others else first.copy()
    delays = [100 + 10 * number for number in range(count)]
    animation.set_type(pyvips.GValue.array_int_type, "delay", delays)
    animation.set_type(pyvips.GValue.gint_type, "loop", 3)
    return animation


def decode(data: bytes, **options: Any) -> pyvips.Image:
    """All frames of a picture, in memory, not turned."""
    if data[:4] in (b"GIF8", b"RIFF"):
        options["n"] = -1
    return pyvips.Image.new_from_buffer(data, "", **options).copy_memory()


def difference(one: pyvips.Image, other: pyvips.Image) -> float:
    """The mean difference of two images' samples, 0 to 255."""
    assert (one.width, one.height, one.bands) == (other.width, other.height, other.bands)
    mean: float = (one.cast("double") - other.cast("double")).abs().avg()
    return mean


def exif(orientation: int = 1) -> bytes:
    """A TIFF block with an orientation, a maker's name and a GPS position, written by hand."""
    entry = "<HHII"
    names = 8 + 2 + 3 * 12 + 4
    gps = names + len(SECRET)
    return b"".join(
        [
            b"II*\0" + struct.pack("<IH", 8, 3),
            struct.pack(entry, 0x010F, 2, len(SECRET), names),
            struct.pack(entry, 0x0112, 3, 1, orientation),
            struct.pack(entry, 0x8825, 4, 1, gps),
            struct.pack("<I", 0),
            SECRET,
            struct.pack("<H", 1) + struct.pack(entry, 0x001B, 2, len(SECRET), gps + 18),
            struct.pack("<I", 0) + SECRET,
        ]
    )


def jpeg(image: pyvips.Image | None = None, **options: Any) -> bytes:
    """A JPEG that holds nothing beside its pixels, unless told to `keep` it."""
    options = {"keep": "none", "Q": 85} | options
    data: bytes = (image or photo()).jpegsave_buffer(**options)
    return data


def png(image: pyvips.Image | None = None, **options: Any) -> bytes:
    """A PNG that holds nothing beside its pixels."""
    data: bytes = (image or photo()).pngsave_buffer(**({"keep": "none"} | options))
    return data


def camera_jpeg(orientation: int = 1, image: pyvips.Image | None = None, **options: Any) -> bytes:
    """A JPEG as a telephone writes it: EXIF, XMP, a comment, previews, a second image behind."""
    data = jpeg(image, **options)
    preview = b"JFIF\0\1\2\0\0\1\0\1\4\4" + SECRET * 3
    return b"".join(
        [
            data[:2],
            segment(0xE0, preview[:62]),
            segment(0xE1, b"Exif\0\0" + exif(orientation)),
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRET),
            segment(0xE2, b"MPF\0" + SECRET),
            segment(0xED, b"Photoshop 3.0\08BIM" + SECRET),
            segment(0xFE, SECRET),
            data[2:],
            jpeg(photo(16, 16)) + SECRET,
        ]
    )


def segment(code: int, payload: bytes) -> bytes:
    """One marker segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, code, 2 + len(payload)) + payload


def png_chunk(name: bytes, payload: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(payload)) + name + payload + png_checksum(name + payload)


def png_checksum(data: bytes) -> bytes:
    """CRC-32 as PNG stores it."""
    return struct.pack(">I", zlib.crc32(data))


def annotated_png(image: pyvips.Image | None = None, *, orientation: int = 1) -> bytes:
    """A PNG with text, EXIF, a date and a private chunk."""
    data = png(image)
    notes = [
        png_chunk(b"tEXt", b"Comment\0" + SECRET),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + SECRET),
        png_chunk(b"eXIf", exif(orientation)),
        png_chunk(b"tIME", b"\x07\xea\1\2\3\4\5"),
        png_chunk(b"prVt", SECRET),
    ]
    return data[:33] + b"".join(notes) + data[33:] + SECRET


def annotated_gif(animation: pyvips.Image) -> bytes:
    """A GIF with a comment and XMP between its frames."""
    data: bytes = animation.gifsave_buffer(keep="none")
    table = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)
    comment = b"!\xfe" + bytes([len(SECRET)]) + SECRET + b"\0"
    xmp = b"!\xff\x0bXMP DataXMP" + bytes([len(SECRET)]) + SECRET + b"\0"
    return data[:table] + comment + xmp + data[table:-1] + comment + b";" + SECRET


def annotated_webp(image: pyvips.Image, *, orientation: int = 1, **options: Any) -> bytes:
    """A WebP with EXIF and XMP chunks and a tail."""
    data: bytes = image.webpsave_buffer(keep="none", **options)
    chunks = data[12:]
    if not chunks.startswith(b"VP8X"):
        size = (image.width - 1).to_bytes(3, "little") + (image.height - 1).to_bytes(3, "little")
        chunks = webp_chunk(b"VP8X", b"\0\0\0\0" + size) + chunks
    chunks = chunks[:8] + bytes([chunks[8] | 0b1100]) + chunks[9:]
    chunks += webp_chunk(b"EXIF", exif(orientation)) + webp_chunk(b"XMP ", SECRET)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks + SECRET


def webp_chunk(name: bytes, payload: bytes) -> bytes:
    """One chunk of a WebP's RIFF container."""
    return name + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def avif(image: pyvips.Image | None = None, **options: Any) -> bytes:
    """An AVIF with EXIF and XMP items, unless told not to `keep` them."""
    image = (image or photo()).copy()
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta>" + SECRET)
    image.set_type(pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + exif())
    options = {"compression": "av1", "effort": 0, "keep": "all"} | options
    data: bytes = image.heifsave_buffer(**options)
    return data


def bomb_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """20 kB that claim to be 60 000 x 60 000 pixels."""
    rows = zlib.compress(bytes(20_000_000), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def dots_gif(count: int, width: int = 1, height: int = 1) -> bytes:
    """A GIF of many frames of one pixel on a canvas of any size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    timing = b"!\xf9\x04\0\1\0\0\0"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + (timing + frame) * count + b";"


def cuts(data: bytes) -> list[bytes]:
    """The file without its last bytes: one, a few, a tenth, half, nearly all."""
    size = len(data)
    ends = [size - missing for missing in (1, 2, 3, 4, 8, 9, 12, 13, 20)]
    ends += [size * tenths // 10 for tenths in (9, 7, 5, 3)] + [40, 20]
    kept = sorted({end for end in ends if 16 < end < size}, reverse=True)
    assert all(longer > shorter for longer, shorter in pairwise(kept))
    return [data[:end] for end in kept]
