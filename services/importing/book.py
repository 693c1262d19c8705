"""The book of an import: what was taken already, and under which id it is here.

A rehearsal writes nothing. It keeps what it would have taken in memory, under ids below zero.
"""

from collections.abc import Mapping, Sequence
from itertools import count

from sqlalchemy import (
    ARRAY,
    String,
    any_,
    bindparam,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from models.imported import Import, Imported, Kind
from services import bulk

# Greater numbers would leave this board's own feeds too few; all languages' integers hold these.
_LAST_KEPT = 2**53 - 1


class Book:
    """Knows under which id each of another board's things is here; `rehearsal`: it would be."""

    def __init__(self, import_id: int | None, kept_ids: range, *, rehearsal: bool) -> None:
        self._import_id = import_id
        self.rehearsal = rehearsal
        self.kept_ids = kept_ids
        self._rehearsed: dict[Kind, dict[str, int | None]] = {kind: {} for kind in Kind}
        self._unreal = count(-1, -1)

    async def known(
        self, db: AsyncSession, kind: Kind, old_ids: Sequence[str]
    ) -> dict[str, int | None]:
        """What was taken of these, with its id here; it may be gone by now."""
        if not old_ids:
            return {}
        values = {"import_id": self._import_id, "kind": kind, "old_ids": list(set(old_ids))}
        found = {} if self._import_id is None else dict((await db.execute(_KNOWN, values)).all())
        if self.rehearsal:
            rehearsed = self._rehearsed[kind]
            found |= {it: rehearsed[it] for it in old_ids if it in rehearsed}
        return found

    async def note(self, db: AsyncSession, kind: Kind, taken: Mapping[str, int | None]) -> None:
        """Write down what was taken, in the transaction that takes it."""
        if self.rehearsal:
            self._rehearsed[kind].update(taken)
        elif taken:
            rows = [
                {"import_id": self._import_id, "kind": kind, "old_id": old, "new_id": new}
                for old, new in taken.items()
            ]
            await bulk.write(db, Imported, rows)

    def unreal(self, number: int) -> list[int]:
        """Ids for things that are not written."""
        return [next(self._unreal) for _ in range(number)]


async def open_book(db: AsyncSession, name: str, *, last_feed: int, rehearsal: bool) -> Book:
    """The book of the import of this name, which goes on where it ended.

    The ids that feeds have on the other board are kept, as far as this board had given out none of
    them before: the sequence is moved behind them, so that nobody else gets one.
    """
    wanted = min(last_feed, _LAST_KEPT)
    async with db.begin():
        if not rehearsal:
            # Who posts at the moment has its id by then; the others wait until these are reserved.
            await db.execute(text("LOCK TABLE feeds IN SHARE ROW EXCLUSIVE MODE"))
        last = await db.scalar(_LAST_ID) or 0
        found = (await db.execute(_BEGUN, {"name": name})).one_or_none()
        after, until = (found.feeds_after, found.feeds_until) if found else (last, last)
        # Nothing lies between what was reserved and what is wanted now.
        reserves = wanted > until >= last
        until = wanted if reserves else until
        kept = range(after + 1, until + 1)
        if rehearsal:
            return Book(found and found.id, kept, rehearsal=True)
        if reserves:
            await db.execute(_RESERVE, {"last": wanted})
        if found is None:
            begun = insert(Import).values(name=name, feeds_after=after, feeds_until=until)
            import_id = (await db.scalars(begun.returning(Import.id))).one()
        else:
            import_id = found.id
            await db.execute(update(Import).where(Import.id == import_id).values(feeds_until=until))
    return Book(import_id, kept, rehearsal=False)


_KNOWN = select(Imported.old_id, Imported.new_id).where(
    Imported.import_id == bindparam("import_id"),
    Imported.kind == bindparam("kind"),
    Imported.old_id == any_(bindparam("old_ids", type_=ARRAY(String))),
)
_BEGUN = select(Import.id, Import.feeds_after, Import.feeds_until).where(
    Import.name == bindparam("name")
)
_LAST_ID = text("SELECT pg_sequence_last_value(pg_get_serial_sequence('feeds', 'id')::regclass)")
_RESERVE = text("SELECT setval(pg_get_serial_sequence('feeds', 'id'), :last)")
