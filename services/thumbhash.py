"""ThumbHash: a picture's shapes and colours in some 25 bytes, to show until it has been loaded.

After the reference encoder of Evan Wallace (MIT), https://github.com/evanw/thumbhash: the lowest
frequencies of brightness, of two colour differences and of transparency, 4 bits each. The packages
on PyPI need Pillow or a compiler, or are younger than the format is simple.
"""

from functools import cache
from itertools import chain
from math import cos, pi
from operator import mul

LARGEST = 100
"""The most pixels that width and height may have; 32 cost 2 ms and look the same."""


def encode(width: int, height: int, rgba: bytes) -> bytes:
    """Encode pixels, row by row, four bytes each, colours not multiplied by their alpha."""
    if max(width, height) > LARGEST or len(rgba) != width * height * 4:
        raise ValueError(f"{len(rgba)} bytes are not an RGBA image of {width} x {height} pixels")
    alpha = [value / 255 for value in rgba[3::4]]
    seen = sum(alpha)
    clear = seen < len(alpha)
    red, green, blue = (_on_average(rgba[band::4], alpha, seen) for band in range(3))
    light = [(r + g + b) / 3 for r, g, b in zip(red, green, blue, strict=True)]
    yellow_blue = [(r + g) / 2 - b for r, g, b in zip(red, green, blue, strict=True)]
    red_green = [r - g for r, g in zip(red, green, strict=True)]

    finest = 5 if clear else 7
    across = max(1, _rounded(finest * width / max(width, height)))
    down = max(1, _rounded(finest * height / max(width, height)))
    l_mean, l_scale, l_waves = _waves(light, width, max(3, across), max(3, down))
    p_mean, p_scale, p_waves = _waves(yellow_blue, width, 3, 3)
    q_mean, q_scale, q_waves = _waves(red_green, width, 3, 3)

    wide = width > height
    colour = _rounded(63 * l_mean) | _rounded(31.5 + 31.5 * p_mean) << 6
    colour |= _rounded(31.5 + 31.5 * q_mean) << 12 | _rounded(31 * l_scale) << 18 | clear << 23
    shape = (down if wide else across) | _rounded(63 * p_scale) << 3
    shape |= _rounded(63 * q_scale) << 9 | wide << 15
    head = colour.to_bytes(3, "little") + shape.to_bytes(2, "little")
    waves = [l_waves, p_waves, q_waves]
    if clear:
        a_mean, a_scale, a_waves = _waves(alpha, width, 5, 5)
        head += bytes([_rounded(15 * a_mean) | _rounded(15 * a_scale) << 4])
        waves.append(a_waves)
    return head + _nibbles([_rounded(15 * wave) for wave in chain(*waves)])


def _on_average(band: bytes, alpha: list[float], seen: float) -> list[float]:
    """One colour of every pixel, 0 to 1, as it looks on the picture's average colour."""
    values = [value / 255 for value in band]
    average = sum(map(mul, values, alpha)) / seen if seen else 0.0
    return [
        average * (1 - opaque) + value * opaque for value, opaque in zip(values, alpha, strict=True)
    ]


def _waves(
    channel: list[float], width: int, across: int, down: int
) -> tuple[float, float, list[float]]:
    """The mean, the largest other coefficient of the cosine transform, and all others by it."""
    height = len(channel) // width
    rows = [channel[start : start + width] for start in range(0, len(channel), width)]
    # Along the rows first: what is left to do for each wave is one column.
    columns = [[sum(map(mul, row, _cosines(width, x))) for row in rows] for x in range(across)]
    mean, *waves = (
        sum(map(mul, columns[x], _cosines(height, y))) / len(channel)
        for y in range(down)
        for x in range(across)
        if x * down < across * (down - y)
    )
    scale = max(map(abs, waves))
    return mean, scale, [0.5 + 0.5 * wave / scale if scale else wave for wave in waves]


@cache
def _cosines(length: int, frequency: int) -> list[float]:
    return [cos(pi / length * frequency * (place + 0.5)) for place in range(length)]


def _nibbles(values: list[int]) -> bytes:
    """Two values to a byte, the first in the lower half."""
    values = values + [0] * (len(values) % 2)
    return bytes(low | high << 4 for low, high in zip(values[::2], values[1::2], strict=True))


def _rounded(value: float) -> int:
    """Halves upwards, as the reference does."""
    return int(value + 0.5)
