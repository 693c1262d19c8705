"""Cursors: where a page of a list ended, so that the next one starts there (keyset pagination)."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar, TypeVarTuple

from sqlalchemy import BigInteger, DateTime, Select, bindparam, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from models.base import MAX_ID
from models.feed import SortBy
from services.errors import InvalidInput

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cursor:
    """The order of a list, and the time and id of the last thing on the page.

    In nested order these are of the thread's root, and `path` says where in the thread it ended.
    """

    sort_by: SortBy
    time: datetime
    id: int
    path: tuple[int, ...] = ()

    def encode(self) -> str:
        # Whole microseconds, PostgreSQL's own grain: a rounded time would skip or repeat.
        microseconds = (self.time - _EPOCH) // timedelta(microseconds=1)
        text = " ".join(map(str, (self.sort_by, microseconds, self.id, *self.path)))
        return urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, *, nested: bool = False) -> "Cursor":
        """Read a cursor that `encode` made; raises InvalidInput for any other text, and for a
        cursor in nested order where it is not asked for, or the other way round."""
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            sort_by, microseconds, *ids = urlsafe_b64decode(padded).decode("ascii").split(" ")
            time = _EPOCH + timedelta(microseconds=int(microseconds))
            id_, *path = map(int, ids)
            cursor = cls(SortBy(sort_by), time, id_, tuple(path))
        except (ValueError, OverflowError):
            cursor = None
        # Only the very text that `encode` makes: base64 and int() would take many spellings.
        if (
            cursor is None
            or cursor.encode() != text
            or not all(0 <= n <= MAX_ID for n in (cursor.id, *cursor.path))
        ):
            raise InvalidInput(
                "The cursor is not one that this API gave; leave it out to start at page one.",
                pointer="/cursor",
            )
        if bool(cursor.path) != nested:
            raise InvalidInput(
                "The cursor is of another list; leave it out to start at page one.",
                pointer="/cursor",
            )
        return cursor

    @classmethod
    def newest_first(cls, text: str | None) -> "Cursor | None":
        """Read a cursor of a list that has this order alone; raises InvalidInput for another's."""
        cursor = cls.decode(text) if text else None
        if cursor and cursor.sort_by is not SortBy.CREATE_DT_DESC:
            raise InvalidInput(
                f"The cursor is of a list sorted by {cursor.sort_by}; this one is newest first.",
                pointer="/cursor",
            )
        return cursor

    def values(self) -> dict[str, Any]:
        """Itself, for a statement that was built with `Bound`."""
        return {"after_dt": self.time, "after_id": self.id}


class Bound:
    """Any cursor, for a statement that is built once: its values come with each execution."""

    time = bindparam("after_dt", type_=DateTime(timezone=True))
    id = bindparam("after_id", type_=BigInteger)
    path = ()


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list; `next` is where the following one starts, `total` only if asked for."""

    items: list[T]
    next: Cursor | None
    total: int | None = None


def following(
    rows: Sequence[Any],
    limit: int,
    *,
    sort_by: SortBy = SortBy.CREATE_DT_DESC,
    time: str = "create_dt",
    id_: str = "id",
) -> Cursor | None:
    """Where the next page starts, if there is one: `rows` are of one more than the limit, then."""
    if len(rows) <= limit:
        return None
    last = rows[limit - 1]
    return Cursor(sort_by, getattr(last, time), getattr(last, id_))


def keyset(
    statement: Select[*Ts],
    time: InstrumentedAttribute[datetime],
    id_: InstrumentedAttribute[int],
    cursor: Cursor | Bound | None,
    *,
    descending: bool,
) -> Select[*Ts]:
    """Order a statement by time and id, and start it behind the cursor.

    In nested order it starts at the thread that the cursor is in, which may go on behind it.
    """
    order = [column.desc() if descending else column.asc() for column in (time, id_)]
    statement = statement.order_by(*order)
    if cursor is None:
        return statement
    here, there = tuple_(time, id_), tuple_(cursor.time, cursor.id)
    if cursor.path:
        return statement.where(here <= there if descending else here >= there)
    return statement.where(here < there if descending else here > there)
