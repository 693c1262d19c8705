"""Comments and likes of another board; the counts of what they are about go with them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    any_,
    bindparam,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession

from models.comment import Comment
from models.feed import Feed
from models.imported import Kind
from models.like import CommentLike, FeedLike
from models.record import CommentRecord, LikeRecord
from services import bulk
from services.importing.arrival import Arrival, Found, comments_here, feeds_here, users_here

_Comment = Found[CommentRecord]
_Like = Found[LikeRecord]
# What a page's cursor can name.
_DEEPEST = 100


# Of a comment: its feed's id, and the ids from its thread's root down to it.
_Place = tuple[int, list[int]]


class Comments:
    """Writes comments under feeds, and below each other, as they were."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        # Where a rehearsal would have written some.
        self._rehearsed: dict[str, _Place] = {}

    async def take(self, comments: Sequence[_Comment]) -> None:
        """Take some, each behind the one that it replies to."""
        arrival = self._arrival
        async with arrival.sessions() as db, db.begin():
            # The feeds' locks first, as whoever comments takes them.
            feeds = await feeds_here(db, arrival, [it.record.feed_id for it in comments])
            authors = [it.record.author_id for it in comments if it.record.author_id is not None]
            users = await users_here(db, arrival, authors)
            parents = await self._parents(db, comments)
            placed: dict[str, _Place] = {}
            rows = []
            ids = await self._ids(db, len(comments))
            for comment, id_ in zip(comments, ids, strict=True):
                try:
                    place = _place(comment.record, id_, feeds, users, parents | placed)
                except _Displaced as error:
                    arrival.report.skip(Kind.COMMENTS, comment.row, str(error))
                    continue
                placed[comment.record.id] = place
                rows.append(_row(arrival, comment.record, place, users))
            await self._write(db, rows, placed)
            arrival.report.taken[Kind.COMMENTS] += len(rows)

    async def _ids(self, db: AsyncSession, number: int) -> Sequence[int]:
        if self._arrival.rehearsal:
            return self._arrival.book.unreal(number)
        return await bulk.draw(db, Comment, number)

    async def _parents(self, db: AsyncSession, comments: Sequence[_Comment]) -> dict[str, _Place]:
        """Where those are that were taken before and are replied to; they stay until the end."""
        old_ids = [it.record.parent_id for it in comments if it.record.parent_id is not None]
        known = await self._arrival.book.known(db, Kind.COMMENTS, old_ids)
        ids = [id_ for id_ in known.values() if id_ is not None]
        found = (await db.execute(_PARENTS, {"ids": ids})).all() if ids else []
        there = {row.id: (row.feed_id, list(row.path)) for row in found}
        rehearsed = {it: self._rehearsed[it] for it in old_ids if it in self._rehearsed}
        return {old: there[new] for old, new in known.items() if new in there} | rehearsed

    async def _write(
        self, db: AsyncSession, rows: Sequence[dict[str, Any]], placed: Mapping[str, _Place]
    ) -> None:
        taken: dict[str, int | None] = {old: path[-1] for old, (_, path) in placed.items()}
        await self._arrival.book.note(db, Kind.COMMENTS, taken)
        if self._arrival.rehearsal:
            self._rehearsed |= placed
        elif rows:
            await bulk.write(db, Comment, rows)
            kept = Counter(row["feed_id"] for row in rows if row["deleted_dt"] is None)
            await bulk.add(db, Feed.comment_count, kept)
            roots = {row["root_id"] for row in rows if row["parent_id"] is not None}
            if roots:
                await db.execute(_RECOUNT, {"roots": list(roots)})


class _Displaced(Exception):
    """A comment has no place here; the text says why."""


def _place(
    comment: CommentRecord,
    id_: int,
    feeds: Mapping[str, int],
    users: Mapping[str, int],
    above: Mapping[str, _Place],
) -> _Place:
    """Where a comment goes under this id; raises _Displaced."""
    feed_id = feeds.get(comment.feed_id)
    if feed_id is None:
        raise _Displaced(f"its feed {comment.feed_id} is not on this board")
    if comment.author_id is not None and comment.author_id not in users:
        raise _Displaced(f"its author, user {comment.author_id}, is not on this board")
    if comment.parent_id is None:
        return feed_id, [id_]
    if comment.parent_id not in above:
        raise _Displaced(f"comment {comment.parent_id}, which it replies to, is not on this board")
    parents_feed, path = above[comment.parent_id]
    if parents_feed != feed_id:
        raise _Displaced(f"comment {comment.parent_id}, which it replies to, is on another feed")
    if len(path) >= _DEEPEST:
        raise _Displaced(f"replies go {_DEEPEST} deep at most")
    return feed_id, [*path, id_]


def _row(
    arrival: Arrival, comment: CommentRecord, place: _Place, users: Mapping[str, int]
) -> dict[str, Any]:
    feed_id, path = place
    create_dt = comment.create_dt or arrival.began
    update_dt = comment.update_dt or create_dt
    deleted = comment.author_id is None
    return {
        "id": path[-1],
        "feed_id": feed_id,
        "author_id": None if comment.author_id is None else users[comment.author_id],
        "parent_id": path[-2] if len(path) > 1 else None,
        "root_id": path[0],
        "path": path,
        "content": comment.content or "",
        "create_dt": create_dt,
        "update_dt": update_dt,
        "deleted_dt": arrival.began if deleted else None,
    }


async def take_likes(arrival: Arrival, likes: Sequence[_Like]) -> None:
    """Let users like what they liked, be it feeds or comments."""
    async with arrival.sessions() as db, db.begin():
        things = {
            Feed: await feeds_here(db, arrival, _named(likes, "feed_id")),
            Comment: await comments_here(db, arrival, _named(likes, "comment_id")),
        }
        users = await users_here(db, arrival, _named(likes, "user_id"))
        pairs: dict[type[Feed | Comment], dict[tuple[int, int], _Like]] = {Feed: {}, Comment: {}}
        taken: dict[str, int | None] = {}
        for like in likes:
            record = like.record
            table, noun = (Comment, "comment") if record.feed_id is None else (Feed, "feed")
            old_id = record.feed_id or record.comment_id or ""
            if record.user_id not in users:
                why = f"its author, user {record.user_id}, is not on this board"
                arrival.report.skip(Kind.LIKES, like.row, why)
            elif old_id not in things[table]:
                arrival.report.skip(Kind.LIKES, like.row, f"{noun} {old_id} is not on this board")
            else:
                pair = things[table][old_id], users[record.user_id]
                # Of two old accounts that are one here, both may like something.
                pairs[table].setdefault(pair, like)
                taken[record.key()] = None
        new = sum([await _like(db, arrival, table, likers) for table, likers in pairs.items()])
        await arrival.book.note(db, Kind.LIKES, taken)
    arrival.report.taken[Kind.LIKES] += new
    arrival.report.known[Kind.LIKES] += len(taken) - new


async def _like(
    db: AsyncSession,
    arrival: Arrival,
    table: type[Feed | Comment],
    likers: Mapping[tuple[int, int], _Like],
) -> int:
    """Write likes that are not there yet, and count them; what they are about is locked."""
    likes = FeedLike if table is Feed else CommentLike
    thing_id = FeedLike.feed_id if table is Feed else CommentLike.comment_id
    ids = list({id_ for id_, _ in likers})
    of_these = select(thing_id, likes.user_id).where(thing_id == any_(_IDS))
    there = {(row[0], row[1]) for row in await db.execute(of_these, {"ids": ids})} if ids else set()
    new = [pair for pair in likers if pair not in there]
    if new and not arrival.rehearsal:
        rows = [
            {
                thing_id.key: pair[0],
                "user_id": pair[1],
                "create_dt": likers[pair].record.create_dt or arrival.began,
            }
            for pair in new
        ]
        await bulk.write(db, likes, rows)
        await bulk.add(db, table.like_count, Counter(id_ for id_, _ in new))
    return len(new)


def _named(likes: Sequence[_Like], field: str) -> list[str]:
    found = (getattr(like.record, field) for like in likes)
    return [old_id for old_id in found if old_id is not None]


_IDS = bindparam("ids", type_=ARRAY(BigInteger))
# Deleted ones, too: they are then shown for the sake of these replies.
_PARENTS = (
    select(Comment.id, Comment.feed_id, Comment.path)
    .where(Comment.id == any_(_IDS))
    .order_by(Comment.id)
    .with_for_update(read=True, key_share=True)
)
# Of whole threads: below each comment those that are shown, as they are not deleted, or stand above
# one that is not. Each of these names all above it.
_RECOUNT = text(
    """
    UPDATE comments SET reply_count = counted.replies FROM (
        SELECT path[depth] AS id, count(DISTINCT path[depth + 1]) AS replies
        FROM comments, generate_series(1, cardinality(path) - 1) AS depth
        WHERE root_id = ANY(:roots) AND deleted_dt IS NULL GROUP BY path[depth]
    ) AS counted
    WHERE comments.id = counted.id AND reply_count <> counted.replies
    """
).bindparams(bindparam("roots", type_=ARRAY(BigInteger)))
