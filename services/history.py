"""A feed's history: how it was before each change of its words or its images."""

from typing import cast

from sqlalchemy import BigInteger, Table, bindparam, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import CursorQuery
from models.feed import Feed, FeedRevision, FeedRevisionRead
from models.image import Image
from models.user import User
from services.access import require_own
from services.cursors import Cursor, Page, following, keyset
from services.errors import FeedNotFound

_IMAGES = (
    select(Image.id)
    .where(Image.feed_id == Feed.id, Image.original_id.is_(None))
    .order_by(Image.position)
    .scalar_subquery()
)
_AS_IT_IS = select(Feed.id, Feed.title, Feed.content, func.array(_IMAGES)).where(
    Feed.id == bindparam("feed_id", type_=BigInteger)
)
_KEPT = ["feed_id", "title", "content", "image_ids"]
# Of the table, since the ORM's own INSERT takes no SELECT.
_RECORD = insert(cast(Table, FeedRevision.__table__)).from_select(_KEPT, _AS_IT_IS)


async def record(db: AsyncSession, feed_id: int) -> None:
    """Keep a feed as it is, in the transaction that is about to change it."""
    await db.execute(_RECORD, {"feed_id": feed_id})


async def page(
    db: AsyncSession, editor: User, feed_id: int, query: CursorQuery
) -> Page[FeedRevisionRead]:
    """How an own feed was, latest first; raises FeedNotFound, Forbidden and InvalidInput."""
    cursor = Cursor.newest_first(query.cursor)
    of_feed = select(FeedRevision).where(FeedRevision.feed_id == feed_id)
    statement = keyset(of_feed, FeedRevision.create_dt, FeedRevision.id, cursor, descending=True)
    async with db.begin():
        feed = await db.get(Feed, feed_id)
        if feed is None or feed.deleted_dt is not None:
            raise FeedNotFound
        require_own(editor, feed.author_id)
        rows = (await db.scalars(statement.limit(query.limit + 1))).all()
    items = [FeedRevisionRead.model_validate(row) for row in rows[: query.limit]]
    return Page(items, following(rows, query.limit))
