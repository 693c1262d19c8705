"""Containers: the parts of an image file that make its pixels, without all that lies beside them.

What is not on a list of the known does not pass: what a camera or an editor wrote (EXIF, XMP,
comments, previews), and whatever follows the image's end, is left behind by construction.
"""

import re
import struct
from collections.abc import Iterator

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
# Frame headers and tables, start of scan, quantisation, number of lines, restart interval.
_JPEG_KEPT = frozenset({*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD} - {0xC8})
_PNG_KEPT = frozenset(b"IHDR PLTE tRNS gAMA cHRM sRGB cICP mDCV cLLI sBIT pHYs IDAT IEND".split())
_GIF_LOOP = re.compile(rb"!\xff\x0b(NETSCAPE2\.0|ANIMEXTS1\.0)\x03\x01..\x00", re.DOTALL)
_WEBP_FRAME_KEPT = frozenset({b"VP8 ", b"VP8L", b"ALPH"})
_WEBP_KEPT = _WEBP_FRAME_KEPT | {b"VP8X", b"ANIM", b"ANMF"}


class Malformed(Exception):
    """A file's structure ends too early, or makes no sense."""


def jpeg_parts(data: bytes) -> Iterator[bytes]:
    """Yield the segments and scans that make pixels, up to the first end-of-image (ITU T.81, B)."""
    position, in_scan = 2, False
    yield data[:2]
    while marker := _JPEG_MARKER.search(data, position):
        if in_scan:
            yield data[position : marker.start()]
        code, start = data[marker.start() + 1], marker.end()
        if code == 0xD9:
            yield marker[0]
            return
        length = int.from_bytes(_take(data, start, 2))
        segment = _take(data, start, max(length, 2))
        position, in_scan = start + len(segment), code == 0xDA
        if code in _JPEG_KEPT:
            yield marker[0] + segment
        elif code == 0xE0 and segment[2:7] == b"JFIF\0" and length >= 16:
            yield marker[0] + b"\0\x10" + segment[2:14] + b"\0\0"  # Without its thumbnail.
        elif code == 0xEE and segment[2:7] == b"Adobe" and length >= 14:
            yield marker[0] + b"\0\x0e" + segment[2:14]  # Says how colours are coded.
        elif 0xE0 <= code <= 0xFE:
            yield b""
        else:
            raise Malformed(f"JPEG marker {code:#x}")
    raise Malformed("a JPEG without its end")


def png_parts(data: bytes) -> Iterator[bytes]:
    """Yield the chunks that make pixels and say their colours (PNG, third edition, 5.6)."""
    yield data[:8]
    position, name = 8, b""
    while name != b"IEND":
        length = int.from_bytes(_take(data, position, 4))
        name = _take(data, position + 4, 4)
        yield _take(data, position, 12 + length) if name in _PNG_KEPT else b""
        position += 12 + length


def gif_parts(data: bytes) -> Iterator[bytes]:
    """Yield the frames, their timing and the loop count (GIF89a, 17 to 27)."""
    position = 13 + _gif_table(_take(data, 0, 13)[10])
    yield _take(data, 0, position)
    while (code := _take(data, position, 1)) != b";":
        start = position
        if code == b",":
            position += 11 + _gif_table(_take(data, start, 10)[9])
        elif code == b"!":
            position += 2
        else:
            raise Malformed(f"GIF block {code!r}")
        while length := _take(data, position, 1)[0]:
            position += 1 + length
        position += 1
        block = data[start:position]
        yield block if code == b"," or block[1] == 0xF9 or _GIF_LOOP.fullmatch(block) else b""
    yield code


def _gif_table(flags: int) -> int:
    """The bytes of the colour table that a GIF's flags announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def webp_parts(data: bytes) -> Iterator[bytes]:
    """Yield the RIFF container anew, with the chunks that make pixels (RFC 9649, 2)."""
    body = _take(data, 12, max(int.from_bytes(data[4:8], "little") - 4, 0))
    chunks = b"".join(_webp_chunks(body, _WEBP_KEPT))
    yield struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WEBP")
    yield chunks


def _webp_chunks(data: bytes, kept: frozenset[bytes]) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        name, length = struct.unpack("<4sI", _take(data, position, 8))
        payload = _take(data, position + 8, length)
        position += 8 + length + length % 2
        if name not in kept:
            continue
        if name == b"VP8X":  # The flags for a profile, EXIF and XMP go with these.
            payload = bytes([_take(payload, 0, 10)[0] & 0b0001_0010]) + payload[1:]
        elif name == b"ANMF":
            payload = payload[:16] + b"".join(_webp_chunks(payload[16:], _WEBP_FRAME_KEPT))
        yield struct.pack("<4sI", name, len(payload)) + payload + b"\0" * (len(payload) % 2)


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def _take(data: bytes, start: int, length: int) -> bytes:
    piece = data[start : start + length]
    if len(piece) < length:
        raise Malformed("the file is cut off")
    return piece
