"""Feeds as they are shown: how one, and a page of them, are read."""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import orjson
from pydantic import TypeAdapter
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Row,
    Select,
    any_,
    bindparam,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession

from models.feed import Feed, FeedRead, ListQuery, SortBy
from models.image import ImageRead
from models.like import FeedLike
from models.user import User
from services.access import FEED_KEPT
from services.cursors import Bound, Cursor, Page, keyset
from services.errors import FeedNotFound, InvalidInput
from services.images import WITH_FEED, shown_with_feed
from services.readers import Reader
from services.store import ImageStore

Shows = Select[*tuple[Any, ...]]
Shown = tuple[dict[str, Any], Sequence[int]]  # A feed, and those of the readers who like it.
# Which of these readers like a feed.
_LIKED_BY = func.array(
    select(FeedLike.user_id)
    .where(
        FeedLike.feed_id == Feed.id,
        FeedLike.user_id == any_(bindparam("reader_ids", type_=ARRAY(BigInteger))),
    )
    .correlate(Feed)
    .scalar_subquery(),
    type_=ARRAY(BigInteger),
)
# One statement shows a feed or a page of them, however many images they have.
SHOWN = (
    select(
        Feed.id,
        Feed.title,
        Feed.content,
        Feed.author_id,
        User.email.label("author_email"),
        User.nickname.label("author_nickname"),
        WITH_FEED.label("images"),
        Feed.like_count,
        Feed.comment_count,
        Feed.create_dt,
        Feed.update_dt,
    )
    .join(User, User.id == Feed.author_id)
    .where(FEED_KEPT)
)
SHOWN_TO_READERS = SHOWN.add_columns(_LIKED_BY.label("liked_by"))
_IMAGES = TypeAdapter(list[ImageRead])


async def read(db: AsyncSession, images: ImageStore, reader: Reader, feed_id: int) -> FeedRead:
    """One feed; raises FeedNotFound."""
    async with db.begin():
        return await one(db, images, reader, feed_id)


async def page(
    db: AsyncSession, images: ImageStore, reader: Reader, query: ListQuery, *of: ColumnElement[bool]
) -> Page[FeedRead]:
    """A page of all feeds, or `of` some; raises InvalidInput for a cursor that does not fit."""
    part = part_of(query)
    shown = part.statement(SHOWN_TO_READERS).where(*of)
    async with db.begin():
        asked = shown_to(images, reader) | part.values()
        rows = (await db.execute(shown.offset(query.skip or None), asked)).all()
        counted = select(func.count()).select_from(Feed).where(FEED_KEPT, *of)
        total = await db.scalar(counted) if query.total else None
    return Page([_feed(reader, row) for row in rows[: part.limit]], part.next(rows), total)


class Part(NamedTuple):
    """A page of a list, which may start after one of its feeds."""

    sort_by: SortBy
    limit: int
    after: Cursor | None

    def statement(self, shown: Shows) -> Shows:
        """Selects what is shown of the page; compiled once, whatever its limit and its cursor."""
        return _page_of(shown, self.sort_by, after=self.after is not None)

    def values(self) -> dict[str, Any]:
        """What the statement asks for; one more says without counting if that is all."""
        return {"page_size": self.limit + 1} | (self.after.values() if self.after else {})

    def next(self, rows: Sequence[Sequence[Any]]) -> Cursor | None:
        """The cursor of the next page, if there is one."""
        if len(rows) <= self.limit:
            return None
        last = rows[self.limit - 1]
        time = last[10] if self.sort_by.startswith("update") else last[9]
        return Cursor(self.sort_by, time, last[0])


def part_of(query: ListQuery) -> Part:
    """Which feeds a query wants; raises InvalidInput for a cursor that does not fit."""
    cursor = Cursor.decode(query.cursor) if query.cursor else None
    if cursor and query.skip:
        raise InvalidInput("Give either cursor or skip, not both.", pointer="/skip")
    if cursor and query.sort_by not in {None, cursor.sort_by}:
        raise InvalidInput(
            f"The cursor is of a list sorted by {cursor.sort_by}; leave sort_by out.",
            pointer="/sort_by",
        )
    sort_by = cursor.sort_by if cursor else query.sort_by or SortBy.CREATE_DT_DESC
    return Part(sort_by, query.limit, cursor)


def statement(reader_ids: Collection[int | None]) -> Shows:
    """What shows feeds to these, of whom None is not signed in."""
    return SHOWN if set(reader_ids) == {None} else SHOWN_TO_READERS


@cache
def some(shown: Shows) -> Shows:
    """The statement of some feeds, by their `feed_ids`."""
    return shown.where(Feed.id == any_(bindparam("feed_ids", type_=ARRAY(BigInteger))))


@cache
def _page_of(shown: Shows, sort_by: SortBy, *, after: bool) -> Shows:
    time = Feed.update_dt if sort_by.startswith("update") else Feed.create_dt
    cursor = Bound() if after else None
    statement = keyset(shown, time, Feed.id, cursor, descending=sort_by.endswith("desc"))
    return statement.limit(bindparam("page_size", type_=Integer))


async def one(db: AsyncSession, images: ImageStore, reader: Reader, feed_id: int) -> FeedRead:
    """One feed, inside a transaction; raises FeedNotFound."""
    asked = shown_to(images, reader) | {"feed_ids": [feed_id]}
    row = (await db.execute(some(SHOWN_TO_READERS), asked)).one_or_none()
    if row is None:
        raise FeedNotFound
    return _feed(reader, row)


def shown_to(images: ImageStore, *readers: Reader) -> dict[str, Any]:
    """What these ask for: where images are, and for whom it is that likes are looked up."""
    ids = [reader.id for reader in readers if reader.id is not None]
    return {"base_url": images.url(""), "reader_ids": ids}


def _feed(reader: Reader, row: Row[*tuple[Any, ...]]) -> FeedRead:
    images = _IMAGES.validate_json(shown_with_feed(row.images)[1])
    return FeedRead(
        id=row.id,
        title=row.title,
        content=row.content,
        author_id=row.author_id,
        author_email=reader.email(row.author_email, of=row.author_id),
        author_nickname=row.author_nickname,
        image_urls=[image.url for image in images],
        images=images,
        like_count=row.like_count,
        comment_count=row.comment_count,
        liked=None if reader.id is None else reader.id in row.liked_by,
        create_dt=row.create_dt,
        update_dt=row.update_dt,
    )


def as_json(row: Sequence[Any], *, show_emails: bool) -> Shown:
    """The same as orjson takes it, to somebody not signed in; and who of the readers like it,
    where it is a row of `SHOWN_TO_READERS`."""
    urls, images = shown_with_feed(row[6])
    feed = {
        "id": row[0],
        "title": row[1],
        "content": row[2],
        "author_id": row[3],
        "author_email": row[4] if show_emails else None,
        "author_nickname": row[5],
        "image_urls": orjson.Fragment(urls),
        "images": orjson.Fragment(images),
        "like_count": row[7],
        "comment_count": row[8],
        "liked": None,
        "create_dt": row[9],
        "update_dt": row[10],
    }
    return feed, row[11] if len(row) > 11 else ()
