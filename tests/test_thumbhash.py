"""The placeholder: a ThumbHash as the reference implementation makes it (npm, thumbhash 0.1.1)."""

import base64

import pytest

from services import thumbhash


def waves(width: int, height: int, *, clear: bool) -> bytes:
    """Pixels from whole numbers alone, so that any language makes the same."""
    return bytes(
        value
        for y in range(height)
        for x in range(width)
        for value in (
            (x * 7 + y * 3) % 256,
            (x * x + 5 * y) % 256,
            (x * 2 + y * y) % 200,
            (x * 5 + y * 9) % 256 if clear else 255,
        )
    )


@pytest.mark.parametrize(
    ("width", "height", "clear", "expected"),
    [
        (32, 24, False, "HBkKJYxQZohUaHmFh2d4iEBbC4hn"),
        (24, 32, False, "HAkKLQ5QhlCHaYdYd4d3mGB3C1uK"),
        (32, 32, True, "HhmGFQYXQFYoa6VJaSA9DLV1hoc7dRBLfQ=="),
        (32, 1, False, "ExomiYp1h4iIiAiKdYgAjic="),
        (1, 32, True, "VbepMRJ3CIeIiHj3hniPeAj3hYqGiWg="),
        (100, 57, False, "3QgGDIKGhiZXZgZldXftdGB/gg=="),
        (1, 1, False, "AAgCBwAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ],
)
def test_a_thumbhash_is_what_the_reference_makes_of_the_same_pixels(
    width: int, height: int, clear: bool, expected: str
) -> None:
    pixels = waves(width, height, clear=clear)

    assert base64.b64encode(thumbhash.encode(width, height, pixels)).decode() == expected


def test_a_thumbhash_is_made_of_whole_small_images_only() -> None:
    for width, height, pixels in ((101, 1, bytes(404)), (2, 2, bytes(15))):
        with pytest.raises(ValueError, match="are not an RGBA image"):
            thumbhash.encode(width, height, pixels)
