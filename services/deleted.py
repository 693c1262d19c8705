"""What somebody has deleted and can restore: feeds and comments."""

from datetime import timedelta

from sqlalchemy import literal, null, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, CursorQuery
from models.comment import Comment
from models.feed import Deleted, Feed
from models.user import User
from services.cursors import Cursor, Page, following

# Their ids interleaved, so that a time and one number say where a page of both ended.
_FEEDS = select(
    literal("feed").label("kind"),
    Feed.id,
    Feed.title,
    Feed.content,
    Feed.deleted_dt,
    (Feed.id * 2).label("place"),
)
_COMMENTS = select(
    literal("comment"),
    Comment.id,
    null(),
    Comment.content,
    Comment.deleted_dt,
    (Comment.id * 2 + 1),
)


async def page(
    db: AsyncSession, user: User, query: CursorQuery, *, restorable: timedelta
) -> Page[Deleted]:
    """A page of both, latest first; raises InvalidInput for a bad cursor."""
    cursor = Cursor.newest_first(query.cursor)
    since = NOW - restorable
    both = union_all(
        _FEEDS.where(Feed.author_id == user.id, Feed.deleted_dt > since),
        _COMMENTS.where(
            Comment.author_id == user.id, Comment.deleted_dt > since, Comment.content != ""
        ),
    ).subquery()
    here = tuple_(both.c.deleted_dt, both.c.place)
    found = select(both).order_by(both.c.deleted_dt.desc(), both.c.place.desc())
    if cursor is not None:
        found = found.where(here < tuple_(cursor.time, cursor.id))
    async with db.begin():
        rows = (await db.execute(found.limit(query.limit + 1))).all()
    items = [
        Deleted(
            kind=row.kind,
            id=row.id,
            title=row.title,
            content=row.content,
            deleted_dt=row.deleted_dt,
            restorable_until=row.deleted_dt + restorable,
        )
        for row in rows[: query.limit]
    ]
    return Page(items, following(rows, query.limit, time="deleted_dt", id_="place"))
