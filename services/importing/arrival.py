"""How an import goes: what its steps share, and what they ask about those who are here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from obstore.store import ObjectStore
from sqlalchemy import ARRAY, BigInteger, Select, any_, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from config.db import Sessions
from models.comment import Comment
from models.feed import Feed
from models.imported import Kind
from models.user import User
from services.access import COMMENT_KEPT, FEED_KEPT
from services.importing.arrivals import Report, Row
from services.importing.book import Book
from services.store import ImageStore

R = TypeVar("R")


@dataclass(frozen=True)
class Found(Generic[R]):
    """A row, and the record that it has turned out to be."""

    row: Row
    record: R


@dataclass(frozen=True)
class Arrival:
    """An import under way; `place` is where the other board's images lie, if they are wanted."""

    sessions: Sessions
    images: ImageStore
    place: ObjectStore | None
    book: Book
    report: Report
    # Feeds, or avatars, whose images are prepared at the same time.
    at_once: int
    # Stands for times that nobody has written down.
    began: datetime

    @property
    def rehearsal(self) -> bool:
        return self.book.rehearsal


async def users_here(
    db: AsyncSession, arrival: Arrival, old_ids: Sequence[str], *, counting: bool = False
) -> dict[str, int]:
    """The users among these who are here, by their old ids, locked until the transaction ends.

    As a foreign key locks, or, with `counting`, as who changes their counts does.
    """
    statement = _USERS.with_for_update(read=not counting, key_share=True)
    return await _here(db, arrival, Kind.USERS, old_ids, statement)


async def feeds_here(db: AsyncSession, arrival: Arrival, old_ids: Sequence[str]) -> dict[str, int]:
    """The feeds among these that are here, by their old ids, locked until the transaction ends."""
    return await _here(db, arrival, Kind.FEEDS, old_ids, _FEEDS)


async def comments_here(
    db: AsyncSession, arrival: Arrival, old_ids: Sequence[str]
) -> dict[str, int]:
    """The comments among these that are here, by their old ids, locked likewise."""
    return await _here(db, arrival, Kind.COMMENTS, old_ids, _COMMENTS)


async def _here(
    db: AsyncSession, arrival: Arrival, kind: Kind, old_ids: Sequence[str], statement: Select[int]
) -> dict[str, int]:
    known = await arrival.book.known(db, kind, old_ids)
    ids = list({new for new in known.values() if new is not None})
    there = set((await db.scalars(statement, {"ids": ids})).all()) if ids else set()
    return {
        old: new
        for old, new in known.items()
        # What a rehearsal would have taken is as good as here.
        if new is not None and (new in there or new < 0)
    }


def _among(column: InstrumentedAttribute[int]) -> Any:
    return column == any_(bindparam("ids", type_=ARRAY(BigInteger)))


# Each in the order of ids, so that nobody who locks several waits for another in a circle.
_USERS = select(User.id).where(_among(User.id), User.leaving_dt.is_(None)).order_by(User.id)
_FEEDS = (
    select(Feed.id)
    .where(_among(Feed.id), FEED_KEPT)
    .order_by(Feed.id)
    .with_for_update(key_share=True)
)
_COMMENTS = (
    select(Comment.id)
    .where(_among(Comment.id), COMMENT_KEPT)
    .order_by(Comment.id)
    .with_for_update(key_share=True)
)
