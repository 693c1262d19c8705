"""Copies of objects of any size, from one place to another."""

import hashlib
import os

import pytest

from config.places import board_place, open_place
from config.s3 import open_s3, require_bucket
from services.backups.copying import CHUNK, Damaged, copy, read
from services.several import each
from tests.conftest import make_settings


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 12_345])
async def test_objects_of_any_size_arrive_whole_or_not_at_all(each_store, settings, tmp_path, size):
    bucket = make_settings(**each_store | {"s3_bucket": "copies"})
    async with open_s3(bucket) as s3:
        await require_bucket(s3, bucket)
    folder, there = open_place(str(tmp_path), bucket), board_place(bucket)
    body = os.urandom(size)
    digest = hashlib.sha256(body).hexdigest()
    (tmp_path / "one").write_bytes(body)
    kept = {"Content-Type": "image/png", "Cache-Control": "immutable"}

    given, _ = await copy(folder, "one", there, "a/one", sha256=digest, attributes=kept)
    await copy(there, "a/one", folder, "two")
    with pytest.raises(Damaged, match="one is damaged"):
        await copy(folder, "one", there, "a/two", sha256="0" * 64)

    assert (given.size, given.sha256) == (size, digest)
    assert (tmp_path / "two").read_bytes() == body
    found = await there.get_async("a/one")
    assert kept.items() <= found.attributes.items()
    with pytest.raises(FileNotFoundError):
        await read(there, "a/two")


async def test_what_fails_ends_the_others_and_is_raised_as_it_is():
    async def fail(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        await each(fail, range(100))
