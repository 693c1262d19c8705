"""The objects of the ledger copied from one bucket to another, while the service goes on.

Rows are read pass after pass, until one finds nothing new. An object is copied once, as one never
changes under its key, and what was written is held against what was read: the store's ETag is the
MD5 of what it has got, and where a store has other ETags the copy is read back (SHA-256). What lies
in the target already, from an earlier run, has to have the size and the ETag of the source's; if it
has not, both are read. An upload that its client has not completed yet may change: it is copied
again whenever its ETag does.

What was copied, and whose row was condemned since, is deleted from the target again, so that what
users delete meanwhile does not live on there.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from obstore.store import ObjectStore
from sqlalchemy import String, bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.image import Image, ImageState
from services import holds
from services.backups.backup import KEPT
from services.backups.copying import Damaged, Watch, copy, read
from services.several import each
from services.store import CACHE_CONTROL, INCOMING, SHOWN

PAGE = 1000
_WANTED = or_(KEPT, Image.state == ImageState.INCOMING)
_NEXT = (
    select(Image.key, Image.content_type, Image.bytes)
    .where(_WANTED, bindparam("after", type_=String) < Image.key)
    .order_by(Image.key)
    .limit(PAGE)
)
_TOTAL = select(func.count(), func.coalesce(func.sum(Image.bytes), 0)).where(_WANTED)


class _Row(NamedTuple):
    key: str
    type: str
    bytes: int


class _Found(NamedTuple):
    size: int
    e_tag: str


@dataclass
class Pass:
    """What one pass has come to."""

    copied: int = 0
    bytes: int = 0
    deleted: int = 0
    # What rows name, and neither bucket has.
    missing: set[str] = field(default_factory=set)


class Move:
    """One move; of a million objects it remembers in half a gigabyte what is there and done."""

    def __init__(self, db: AsyncSession, source: ObjectStore, target: ObjectStore) -> None:
        self._db, self._source, self._target = db, source, target
        # What lay in the target at the start, and was not looked at yet.
        self._there: dict[str, _Found] = {}
        # What is in the target, with the pass that last saw its row; of uploads also their ETags.
        self._done: dict[str, int] = {}
        self._uploads: dict[str, str] = {}
        self._number = 0

    async def begin(self, watch: Watch) -> None:
        """Look at what is there; raises `PlaceError` and `DatabaseError`, as all here does."""
        for folder in (SHOWN, INCOMING):
            async for files in self._target.list(folder, chunk_size=PAGE):
                for file in files:
                    self._there[file["path"]] = _Found(file["size"], _bare(file["e_tag"]))
        async with self._db.begin():
            watch.expect(*(await self._db.execute(_TOTAL)).one())

    async def settle(self, watch: Watch) -> Pass:
        """Pass over the table until nothing is new; gives all passes as one."""
        whole, before = Pass(), set[str]()
        while True:
            found = await self._pass(watch)
            whole.copied += found.copied
            whole.bytes += found.bytes
            whole.deleted += found.deleted
            whole.missing = found.missing
            # What went while it was looked for has no row in the next pass.
            if not found.copied and found.missing == before:
                return whole
            before = found.missing

    async def _pass(self, watch: Watch) -> Pass:
        self._number += 1
        found = Pass()

        async def one(row: _Row) -> None:
            copied = await self._see_to(row, found)
            found.copied += copied
            found.bytes += row.bytes if copied else 0
            watch.advance(1, row.bytes)

        async for rows in self._rows():
            await each(one, [row for row in rows if row.key not in self._done or _changes(row.key)])
            for row in rows:
                if row.key not in found.missing:
                    self._done[row.key] = self._number
        found.deleted = await self._delete_forgotten()
        return found

    async def _rows(self) -> AsyncIterator[list[_Row]]:
        after = ""
        while True:
            # A transaction for each page: none is open while objects are copied.
            async with self._db.begin():
                page = [_Row(*row) for row in await self._db.execute(_NEXT, {"after": after})]
            if not page:
                return
            yield page
            after = page[-1].key

    async def _see_to(self, row: _Row, found: Pass) -> bool:
        """See that an object is in the target; True if it had to be copied."""
        there = self._there.pop(row.key, None)
        try:
            if _changes(row.key):
                return await self._copied_upload(row)
            if there is not None and await self._is_same(row.key, there):
                return False
            await self._copy(row, {"Cache-Control": CACHE_CONTROL})
        except FileNotFoundError:
            if not _changes(row.key) and not await self._is_there(row.key):
                found.missing.add(row.key)
            return False
        return True

    async def _copied_upload(self, row: _Row) -> bool:
        e_tag = _bare((await self._source.head_async(row.key))["e_tag"])
        if e_tag and self._uploads.get(row.key) == e_tag:
            return False
        await self._copy(row, {})
        self._uploads[row.key] = e_tag
        return True

    async def _is_same(self, key: str, there: _Found) -> bool:
        """Whether what lies in the target is what lies in the source."""
        source = await self._source.head_async(key)
        if source["size"] != there.size:
            return False
        if there.e_tag and _bare(source["e_tag"]) == there.e_tag:
            return True
        ours, theirs = await read(self._source, key), await read(self._target, key)
        return ours.sha256 == theirs.sha256

    async def _copy(self, row: _Row, attributes: dict[str, str]) -> None:
        """Copy an object, and see that it has arrived; raises Damaged if it has not."""
        attributes = attributes | {"Content-Type": row.type}
        given, e_tag = await copy(
            self._source, row.key, self._target, row.key, attributes=attributes
        )
        if e_tag != given.md5 and (await read(self._target, row.key)).sha256 != given.sha256:
            raise Damaged(f"{row.key} did not arrive as it was sent")

    async def _is_there(self, key: str) -> bool:
        with suppress(FileNotFoundError):
            await self._target.head_async(key)
            return True
        return False

    async def _delete_forgotten(self) -> int:
        """Delete from the target what was copied and has no row any more that keeps it."""
        forgotten = [key for key, number in self._done.items() if number != self._number]
        # If the target is the board's by now, a backup of it may be under way.
        if not forgotten or not await holds.is_free(self._db):
            return 0
        for start in range(0, len(forgotten), PAGE):
            await self._target.delete_async(forgotten[start : start + PAGE])
        for key in forgotten:
            del self._done[key]
            self._uploads.pop(key, None)
        return len(forgotten)


def _changes(key: str) -> bool:
    """Whether an object may change under its key, which a client's upload may."""
    return key.startswith(INCOMING)


def _bare(e_tag: str | None) -> str:
    return (e_tag or "").strip('"')
