"""Threads: where a reply goes, and what its feed and those above it count.

All of it in the caller's transaction, which counts on the feed first: that locks the feed's row,
so that those who make its comments more or fewer come one after another. No reply meets the
deletion of its parent halfway, and the ids of a feed's comments are in order of time.
"""

from collections.abc import Sequence

from sqlalchemy import ARRAY, BigInteger, String, any_, bindparam, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from models.comment import Comment
from models.feed import Feed
from models.user import User
from services.access import COMMENT_KEPT, FEED_KEPT
from services.errors import CommentNotFound, FeedNotFound, InvalidInput

_new = select(
    func.nextval(func.pg_get_serial_sequence("comments", "id"), type_=BigInteger).label("id")
).cte("new")
# The path ends in the comment's own id, so that this is drawn first.
_ADDED = (
    insert(Comment)
    .from_select(
        ["id", "feed_id", "author_id", "parent_id", "root_id", "path", "content"],
        select(
            _new.c.id,
            bindparam("feed_id", type_=BigInteger),
            bindparam("author_id", type_=BigInteger),
            bindparam("parent_id", type_=BigInteger),
            func.coalesce(bindparam("root_id", type_=BigInteger), _new.c.id),
            func.array_append(bindparam("above", type_=ARRAY(BigInteger)), _new.c.id),
            bindparam("content", type_=String),
        ),
    )
    .returning(Comment.id)
    # The values are those of the SELECT, not rows of the ORM's.
    .execution_options(dml_strategy="raw")
)


async def count(db: AsyncSession, feed_id: int, by: int) -> None:
    """Count a comment more or fewer, and lock the feed; raises FeedNotFound."""
    counted = (
        update(Feed)
        .where(Feed.id == feed_id, FEED_KEPT)
        .values(comment_count=Feed.comment_count + by)
        .returning(Feed.id)
    )
    if await db.scalar(counted) is None:
        raise FeedNotFound


async def trace(
    db: AsyncSession, feed_id: int, parent_id: int | None, *, max_depth: int
) -> list[int]:
    """The ids from a thread's root down to what is about to be replied to; none for the feed.

    Raises CommentNotFound, and InvalidInput for a parent that is elsewhere or too deep.
    """
    if parent_id is None:
        return []
    found = select(Comment.feed_id, Comment.path).where(Comment.id == parent_id, COMMENT_KEPT)
    parent = (await db.execute(found)).one_or_none()
    if parent is None:
        raise CommentNotFound
    if parent.feed_id != feed_id:
        raise InvalidInput("The parent is a comment on another feed.", pointer="/parent_id")
    if len(parent.path) >= max_depth:
        raise InvalidInput(
            f"Replies go {max_depth} deep at most; reply to a comment further up.",
            pointer="/parent_id",
        )
    return list(parent.path)


async def add(
    db: AsyncSession, author: User, *, feed_id: int, above: Sequence[int], content: str
) -> int:
    """Write a comment below those above it; gives its id."""
    values = {
        "feed_id": feed_id,
        "author_id": author.id,
        "parent_id": above[-1] if above else None,
        "root_id": above[0] if above else None,
        "above": above,
        "content": content,
    }
    return (await db.scalars(_ADDED, values)).one()


async def tell(db: AsyncSession, above: Sequence[int], by: int) -> None:
    """Tell those above of a comment that has appeared (1), or of one that is gone (-1).

    Each stone that appears or goes with it is told of in turn, up to the first comment that is
    shown either way.
    """
    if not above:
        return
    upper = aliased(Comment)
    ids = bindparam("above", list(above), type_=ARRAY(BigInteger))
    either_way = or_(upper.deleted_dt.is_(None), upper.reply_count > (0 if by > 0 else 1))
    last = select(func.max(func.cardinality(upper.path))).where(upper.id == any_(ids), either_way)
    depth = func.coalesce(last.scalar_subquery(), 1)
    await db.execute(
        update(Comment)
        .where(Comment.id == any_(ids), func.cardinality(Comment.path) >= depth)
        .values(reply_count=Comment.reply_count + by)
    )
