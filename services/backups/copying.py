"""Copies of objects from one place to another, summed up on the way; memory does not grow with
them, and what does not add up is not written."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from obstore.exceptions import BaseError
from obstore.store import ObjectStore

if TYPE_CHECKING:
    from obstore import Attributes

# Bytes that a request carries at most, of a longer object only a part.
CHUNK = 8 * 1024 * 1024
# What a place's fault raises; a missing object is a FileNotFoundError.
PlaceError = (BaseError, OSError)


def told(error: Exception) -> str:
    """What a place's error says, without what it tells programmers after that."""
    return str(error).partition("\n")[0]


class Watch(Protocol):
    """Hears how much there is to do, and how much was done."""

    def expect(self, objects: int, size: int) -> None: ...

    def advance(self, objects: int, size: int) -> None: ...


class Damaged(Exception):
    """What was read is not what was written; the text says of what."""


class Reading:
    """An object that is read, a request for each chunk, so that none takes too long."""

    def __init__(self, place: ObjectStore, path: str) -> None:
        self._place, self._path = place, path
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.size, self.read = 0, 0
        self._first: bytes | None = None

    async def open(self) -> "Reading":
        """Read the first chunk, and learn the size; raises FileNotFoundError, and `PlaceError`."""
        try:
            self._first = await self._next()
        except BaseError:
            # Of what is empty there is no range to ask for.
            if (await self._place.head_async(self._path))["size"] > 0:
                raise
        return self

    async def pieces(self, sha256: str | None = None) -> AsyncIterator[bytes]:
        """All of it, once; raises Damaged at its end if it is not what it should be."""
        piece = self._first or b""
        while True:
            await asyncio.to_thread(self._add, piece)
            if self.read >= self.size or not piece:
                break
            yield piece
            piece = await self._next()
        if self.read != self.size or sha256 not in (None, self.sha256):
            raise Damaged(f"{self._path} is damaged")
        yield piece

    async def _next(self) -> bytes:
        range_ = (self.read, self.read + CHUNK)
        found = await self._place.get_async(self._path, options={"range": range_})
        self.size = found.meta["size"]
        return bytes(await found.bytes_async())

    def _add(self, piece: bytes) -> None:
        self._sha256.update(piece)
        self._md5.update(piece)
        self.read += len(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()


async def read(place: ObjectStore, path: str) -> Reading:
    """Read an object to its end, for its sums; raises FileNotFoundError and `PlaceError`."""
    reading = await Reading(place, path).open()
    async for _ in reading.pieces():
        pass
    return reading


async def copy(
    source: ObjectStore,
    path: str,
    target: ObjectStore,
    to: str,
    *,
    sha256: str | None = None,
    attributes: "Attributes | None" = None,
) -> tuple[Reading, str]:
    """Copy an object; gives what was read, and the ETag that the target gave what was written.

    Nothing is written unless it has this checksum, if one is given. Raises FileNotFoundError,
    Damaged and `PlaceError`.
    """
    reading = await Reading(source, path).open()
    put = await target.put_async(
        to,
        reading.pieces(sha256),
        attributes=attributes,
        use_multipart=reading.size > CHUNK,
        chunk_size=CHUNK,
        max_concurrency=2,
    )
    return reading, (put["e_tag"] or "").strip('"')
