"""Comments: what happens when one is written, listed, changed, deleted or restored.

A deleted comment is shown as long as it has replies that are shown, as a stone without words. So is
one of somebody who has left, also before it is erased.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Row,
    Select,
    bindparam,
    case,
    exists,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from models.base import NOW, CursorQuery, Message
from models.comment import MAX_TREE, Comment, CommentQuery, CommentRead
from models.feed import Feed, SortBy
from models.like import CommentLike
from models.user import User
from services import idempotency, purges, threads, versions
from services.access import (
    COMMENT_KEPT,
    FEED_KEPT,
    require_deletable,
    require_here,
    require_own,
)
from services.cursors import Cursor, Page, following, keyset
from services.errors import CommentNotFound, FeedNotFound, InvalidInput
from services.readers import Reader
from services.versions import Expected

_SHOWN = or_(COMMENT_KEPT, Comment.reply_count > 0)
_LIKED = exists().where(
    CommentLike.comment_id == Comment.id,
    CommentLike.user_id == bindparam("reader_id", type_=BigInteger),
)
_COMMENTS = select(
    Comment.id,
    Comment.content,
    Comment.author_id,
    User.email.label("author_email"),
    User.nickname.label("author_nickname"),
    Comment.feed_id,
    Comment.parent_id,
    func.cardinality(Comment.path).label("depth"),
    Comment.like_count,
    _LIKED.label("liked"),
    (~COMMENT_KEPT).label("deleted"),
    Comment.create_dt,
    Comment.update_dt,
).outerjoin(User, User.id == Comment.author_id)
# What a stone does not tell.
_UNTOLD = dict.fromkeys(("content", "author_id", "author_email", "author_nickname"))
_SORTS = frozenset({SortBy.CREATE_DT_DESC, SortBy.CREATE_DT_ASC})


async def create(
    db: AsyncSession,
    author: User,
    reader: Reader,
    *,
    feed_id: int,
    content: str,
    parent_id: int | None = None,
    max_depth: int,
) -> CommentRead:
    """Comment on a feed, or reply to a comment on it.

    Raises FeedNotFound, CommentNotFound for a parent that is not there, InvalidInput for one that
    is elsewhere or too deep, and NotAuthenticated for an author who has left meanwhile.
    """
    async with db.begin():
        await threads.count(db, feed_id, 1)
        await require_here(db, author)
        above = await threads.trace(db, feed_id, parent_id, max_depth=max_depth)
        comment_id = await threads.add(db, author, feed_id=feed_id, above=above, content=content)
        await threads.tell(db, above, 1)
        return await idempotency.keep(db, await _read(db, reader, comment_id))


async def page(
    db: AsyncSession, reader: Reader, feed_id: int, query: CommentQuery
) -> Page[CommentRead]:
    """A page of a feed's comments, or of its threads; they are read by one statement.

    A page of threads ends after `MAX_TREE` comments, too, and the next one goes on in the thread.
    Raises FeedNotFound, and InvalidInput for a cursor that does not fit.
    """
    sort_by, cursor = _start(query)
    descending = sort_by == SortBy.CREATE_DT_DESC
    if query.tree:
        statement = _threads(feed_id, query.limit, cursor, descending=descending)
    else:
        found = _COMMENTS.where(Comment.feed_id == feed_id, _SHOWN)
        found = keyset(found, Comment.create_dt, Comment.id, cursor, descending=descending)
        # One more than asked for says whether there is a next page, without counting.
        statement = found.limit(query.limit + 1)
    async with db.begin():
        if await db.scalar(select(Feed.id).where(Feed.id == feed_id, FEED_KEPT)) is None:
            raise FeedNotFound
        rows = (await db.execute(statement, {"reader_id": reader.id})).all()
    paged = _nested if query.tree else _page
    return paged(reader, rows, query.limit, sort_by)


async def mine(
    db: AsyncSession, author: User, reader: Reader, query: CursorQuery
) -> Page[CommentRead]:
    """A page of what the author has written, newest first; raises InvalidInput for a bad cursor."""
    cursor = Cursor.newest_first(query.cursor)
    own = _COMMENTS.join(Feed, Feed.id == Comment.feed_id)
    own = own.where(Comment.author_id == author.id, COMMENT_KEPT, FEED_KEPT)
    statement = keyset(own, Comment.create_dt, Comment.id, cursor, descending=True)
    async with db.begin():
        found = await db.execute(statement.limit(query.limit + 1), {"reader_id": reader.id})
    return _page(reader, found.all(), query.limit, SortBy.CREATE_DT_DESC)


async def read(db: AsyncSession, reader: Reader, comment_id: int) -> CommentRead:
    """One comment, as a list of its feed's shows it; raises CommentNotFound."""
    there = exists().where(Feed.id == Comment.feed_id, FEED_KEPT)
    found = _COMMENTS.where(Comment.id == comment_id, _SHOWN, there)
    async with db.begin():
        row = (await db.execute(found, {"reader_id": reader.id})).one_or_none()
    if row is None:
        raise CommentNotFound
    return _comment(reader, row)


async def update(
    db: AsyncSession,
    editor: User,
    reader: Reader,
    comment_id: int,
    *,
    content: str,
    expected: Expected = None,
) -> CommentRead:
    """Change a comment's words; raises CommentNotFound, Forbidden and PreconditionFailed."""
    async with db.begin():
        there = await _there(db, comment_id, COMMENT_KEPT)
        require_own(editor, there.author_id)
        await _require(db, reader, comment_id, expected)
        await _change(db, comment_id, COMMENT_KEPT, content=content, update_dt=NOW)
        return await idempotency.keep(db, await _read(db, reader, comment_id))


async def delete(
    db: AsyncSession,
    editor: User,
    comment_id: int,
    *,
    restorable: timedelta,
    expected: Expected = None,
) -> Message:
    """Delete a comment; its words stay while its author can restore it.

    What an administrator deletes of others is gone at once. Raises CommentNotFound, also when the
    feed goes meanwhile, Forbidden and PreconditionFailed.
    """
    async with db.begin():
        there = await _there(db, comment_id, COMMENT_KEPT)
        require_deletable(editor, there.author_id)
        await threads.count(db, there.feed_id, -1)
        await _require(db, Reader(editor.id), comment_id, expected)
        kept = restorable and there.author_id == editor.id
        words = {} if kept else {"content": ""}
        gone = await _change(db, comment_id, COMMENT_KEPT, deleted_dt=NOW, **words)
        if not gone.reply_count:
            await threads.tell(db, gone.path[:-1], -1)
        return await idempotency.keep(db, Message(message="Comment Deleted"))


async def restore(
    db: AsyncSession, editor: User, reader: Reader, comment_id: int, *, restorable: timedelta
) -> CommentRead:
    """Bring a deleted comment back, if it was deleted not longer ago than that.

    Raises CommentNotFound for any other, and Forbidden.
    """
    # One without words has been given up, whatever the days were then.
    deleted = sa.and_(Comment.deleted_dt > NOW - restorable, Comment.content != "")
    async with db.begin():
        there = await _there(db, comment_id, deleted)
        require_own(editor, there.author_id)
        await threads.count(db, there.feed_id, 1)
        back = await _change(db, comment_id, deleted, deleted_dt=None)
        if not back.reply_count:
            await threads.tell(db, back.path[:-1], 1)
        return await idempotency.keep(db, await _read(db, reader, comment_id))


async def purge(db: AsyncSession, older_than: timedelta, *, batch: int = 1000) -> int:
    """Give up what was deleted longer ago: whole rows, or, below replies, the words alone.

    Each batch is a transaction of its own, and passes over what others have locked. Gives the
    number of comments that were given up.
    """
    reply = aliased(Comment)
    overdue = select(Comment.id).where(Comment.deleted_dt <= NOW - older_than).limit(batch)
    # A reply that is deleted counts here, for it may be restored still.
    alone = overdue.where(~exists().where(reply.parent_id == Comment.id))
    wordy = overdue.where(Comment.content != "")
    given_up = 0
    for statement in (
        # Rows first; those that they replied to may be alone then, and follow in the next batch.
        sa.delete(Comment).where(Comment.id.in_(alone.with_for_update(skip_locked=True))),
        sa.update(Comment)
        .where(Comment.id.in_(wordy.with_for_update(skip_locked=True)))
        .values(content=""),
    ):
        given_up += await purges.purge(db, statement, Comment.id)
    return given_up


def _start(query: CommentQuery) -> tuple[SortBy, Cursor | None]:
    """The order of a page and where it starts; raises InvalidInput for a cursor of another."""
    if query.cursor is None:
        return query.sort_by or SortBy.CREATE_DT_DESC, None
    cursor = Cursor.decode(query.cursor, nested=query.tree)
    if cursor.sort_by not in _SORTS:
        raise InvalidInput(
            "The cursor is of another list; leave it out to start at page one.", pointer="/cursor"
        )
    if query.sort_by not in {None, cursor.sort_by}:
        raise InvalidInput(
            f"The cursor is of a list sorted by {cursor.sort_by}; leave sort_by out.",
            pointer="/sort_by",
        )
    return cursor.sort_by, cursor


def _threads(
    feed_id: int, limit: int, cursor: Cursor | None, *, descending: bool
) -> Select[*tuple[Any, ...]]:
    """The comments of some threads in nested order, from the cursor on: of a page, and one more.

    Each step is a walk along an index up to a limit, however long a thread is.
    """
    roots = select(Comment.id, Comment.create_dt)
    roots = roots.where(Comment.feed_id == feed_id, Comment.parent_id.is_(None), _SHOWN)
    roots = keyset(roots, Comment.create_dt, Comment.id, cursor, descending=descending)
    # The thread that the last page ended in is not one of the limit.
    thread = roots.limit(limit + (2 if cursor else 1)).subquery("thread")
    said = _COMMENTS.add_columns(Comment.path).where(Comment.root_id == thread.c.id, _SHOWN)
    if cursor:
        ended = literal(list(cursor.path), ARRAY(BigInteger))
        start = case((thread.c.id == cursor.id, ended), else_=literal([], ARRAY(BigInteger)))
        said = said.where(Comment.path > start)
    of_thread = said.order_by(Comment.path).limit(MAX_TREE + 1).correlate(thread).lateral("said")
    order = [c.desc() if descending else c.asc() for c in (thread.c.create_dt, thread.c.id)]
    return (
        select(of_thread, thread.c.create_dt.label("root_dt"))
        .join_from(thread, of_thread, sa.true())
        .order_by(*order, of_thread.c.path)
        .limit(MAX_TREE + 1)
    )


def _page(
    reader: Reader, rows: Sequence[Row[*tuple[Any, ...]]], limit: int, sort_by: SortBy
) -> Page[CommentRead]:
    shown = [_comment(reader, row) for row in rows[:limit]]
    return Page(shown, following(rows, limit, sort_by=sort_by))


def _nested(
    reader: Reader, rows: Sequence[Row[*tuple[Any, ...]]], limit: int, sort_by: SortBy
) -> Page[CommentRead]:
    """The comments up to the root that is beyond the limit, or up to the most of a page."""
    roots = [n for n, row in enumerate(rows) if row.parent_id is None]
    end = min([MAX_TREE, *roots[limit:]])
    start = None
    if len(rows) > end:
        last = rows[end - 1]
        start = Cursor(sort_by, last.root_dt, last.path[0], tuple(last.path))
    return Page([_comment(reader, row) for row in rows[:end]], start)


async def _read(db: AsyncSession, reader: Reader, comment_id: int) -> CommentRead:
    found = _COMMENTS.where(Comment.id == comment_id)
    return _comment(reader, (await db.execute(found, {"reader_id": reader.id})).one())


def _comment(reader: Reader, row: Row[*tuple[Any, ...]]) -> CommentRead:
    shown = {name: row._mapping[name] for name in CommentRead.model_fields} | {
        "author_email": reader.email(row.author_email, of=row.author_id),
        "liked": None if reader.id is None else row.liked,
    }
    return CommentRead(**shown | (_UNTOLD if row.deleted else {}))


async def _there(
    db: AsyncSession, comment_id: int, state: ColumnElement[bool]
) -> Row[int | None, int]:
    """The author and the feed of a comment, if it is in this state; nothing is locked."""
    found = (
        select(Comment.author_id, Comment.feed_id)
        .join(Feed, Feed.id == Comment.feed_id)
        .where(Comment.id == comment_id, state, FEED_KEPT)
    )
    row = (await db.execute(found)).one_or_none()
    if row is None:
        raise CommentNotFound
    return row


async def _require(db: AsyncSession, reader: Reader, comment_id: int, expected: Expected) -> None:
    """Lock a comment and see that it is what the editor has seen.

    Raises CommentNotFound and PreconditionFailed.
    """
    if expected is not None:
        locked = select(Comment.id).where(Comment.id == comment_id, COMMENT_KEPT)
        if await db.scalar(locked.with_for_update(key_share=True)) is None:
            raise CommentNotFound
        versions.require(expected, await _read(db, reader, comment_id))


async def _change(
    db: AsyncSession, comment_id: int, state: ColumnElement[bool], **values: Any
) -> Row[list[int], int]:
    """Change a comment if it still is in this state; gives its path and its reply_count."""
    changed = (
        sa.update(Comment)
        .where(Comment.id == comment_id, state)
        .values(**values)
        .returning(Comment.path, Comment.reply_count)
    )
    row = (await db.execute(changed)).one_or_none()
    if row is None:
        raise CommentNotFound
    return row
