"""Likes: facts about somebody and a feed or a comment, and the counts of them.

A count is changed under its row's lock, in the transaction of the likes that it counts. The lock is
a statement of its own and the first: those after it see all that was committed before, and nobody
changes it until the end. Whoever deletes a feed locks it first as well, so neither waits for the
other in a circle.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Select,
    Update,
    any_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import Sessions
from models.base import CursorQuery
from models.comment import Comment
from models.feed import Feed
from models.like import CommentLike, FeedLike, Liked, LikeRead
from models.user import User
from services import idempotency
from services.access import ACCOUNT_GONE, COMMENT_KEPT, FEED_KEPT
from services.batches import Batches
from services.cursors import Cursor, Page, following, keyset
from services.errors import (
    CommentNotFound,
    FeedNotFound,
    NotAuthenticated,
    Refusal,
    RequestOutstanding,
)
from services.idempotency import Claim


@dataclass(frozen=True, eq=False)
class Likable:
    """What can be liked: `lock` gives the count of one, `likers` who of some users likes it."""

    lock: Select[int]
    likers: Select[int, bool]
    change: Update
    missing: type[Refusal]


@dataclass(frozen=True)
class Wish:
    """That somebody likes something (True), or not (False), or changes their mind (None)."""

    user_id: int
    liked: bool | None
    claim: Claim | None = None


Likes = Batches[tuple[Likable, int], Wish, Liked]


def open_likes(sessions: Sessions) -> Likes:
    """Likes of the same feed or comment at the same moment share a transaction."""
    return Batches(partial(_carry_out, sessions))


async def add(
    likes: Likes, liker_id: int, likable: Likable, id_: int, claim: Claim | None = None
) -> Liked:
    """Like it, if it is not liked already; raises what is `missing`, and NotAuthenticated."""
    return await likes.ask((likable, id_), Wish(liker_id, True, claim))


async def remove(
    likes: Likes, liker_id: int, likable: Likable, id_: int, claim: Claim | None = None
) -> Liked:
    """Like it no longer; raises as `add` does."""
    return await likes.ask((likable, id_), Wish(liker_id, False, claim))


async def toggle(
    likes: Likes, liker_id: int, likable: Likable, id_: int, claim: Claim | None = None
) -> Liked:
    """Like it, or no longer if it is liked; raises as `add` does."""
    return await likes.ask((likable, id_), Wish(liker_id, None, claim))


async def of_feed(db: AsyncSession, feed_id: int, query: CursorQuery) -> Page[LikeRead]:
    """A page of who likes a feed, latest first; raises FeedNotFound, InvalidInput for a cursor."""
    cursor = Cursor.newest_first(query.cursor)
    statement = keyset(_OF_FEED, FeedLike.create_dt, FeedLike.user_id, cursor, descending=True)
    async with db.begin():
        if await db.scalar(_THERE, {"thing_id": feed_id}) is None:
            raise FeedNotFound
        rows = (await db.execute(statement.limit(query.limit + 1), {"thing_id": feed_id})).all()
    items = [LikeRead.model_validate(row) for row in rows[: query.limit]]
    return Page(items, following(rows, query.limit, id_="user_id"))


async def _carry_out(
    sessions: Sessions, thing: tuple[Likable, int], wishes: Sequence[Wish]
) -> list[Liked | Exception]:
    """Grant wishes for one thing in one transaction."""
    likable, id_ = thing
    asking = list({wish.user_id for wish in wishes})
    claims = [wish.claim for wish in wishes if wish.claim]
    async with sessions() as db, db.begin():
        lapsed = await idempotency.lapsed(db, claims)
        count = await db.scalar(likable.lock, {"thing_id": id_})
        rows = await db.execute(likable.likers, {"thing_id": id_, "user_ids": asking})
        before: dict[int, bool] = dict(rows.all())
        after = before.copy()
        answers = _grant(likable, count, after, wishes, lapsed)
        added = [user_id for user_id, liked in after.items() if liked and not before[user_id]]
        removed = [user_id for user_id, liked in after.items() if before[user_id] and not liked]
        if added or removed:
            users = {"added": added, "removed": removed, "more": len(added) - len(removed)}
            await db.execute(likable.change, {"thing_id": id_} | users)
        asked = zip(wishes, answers, strict=True)
        await idempotency.keep_each(
            db, [(wish.claim, it) for wish, it in asked if wish.claim and isinstance(it, Liked)]
        )
    return answers


def _grant(
    likable: Likable,
    count: int | None,
    liking: dict[int, bool],
    wishes: Sequence[Wish],
    lapsed: Set[Claim],
) -> list[Liked | Exception]:
    """Note wishes, in their order, in `liking`; answer each as if it had come alone."""
    answers: list[Liked | Exception] = []
    for wish in wishes:
        if wish.user_id not in liking:
            answers.append(NotAuthenticated(ACCOUNT_GONE))
        elif count is None:
            answers.append(likable.missing())
        elif wish.claim in lapsed:
            answers.append(RequestOutstanding())
        else:
            liked = not liking[wish.user_id] if wish.liked is None else wish.liked
            count += liked - liking[wish.user_id]
            liking[wish.user_id] = liked
            answers.append(Liked(liked=liked, like_count=count))
    return answers


_ID = bindparam("thing_id", type_=BigInteger)


def _users(name: str) -> Any:
    return bindparam(name, type_=ARRAY(BigInteger))


def _likable(
    table: type[Feed] | type[Comment],
    likes: Any,
    likes_id: Any,
    missing: type[Refusal],
    *there: ColumnElement[bool],
) -> Likable:
    liking = exists().where(likes_id == _ID, likes.user_id == User.id)
    added = insert(likes).from_select(
        [likes_id, likes.user_id], select(_ID, func.unnest(_users("added")))
    )
    removed = delete(likes).where(likes_id == _ID, likes.user_id == any_(_users("removed")))
    counted = update(table).where(table.id == _ID)
    return Likable(
        lock=select(table.like_count)
        .where(table.id == _ID, *there)
        .with_for_update(key_share=True, of=table),
        # Locked as a foreign key locks: no account goes while its like is being written.
        likers=select(User.id, liking)
        .where(User.id == any_(_users("user_ids")), User.leaving_dt.is_(None))
        .with_for_update(read=True, key_share=True, of=User),
        change=counted.values(like_count=table.like_count + bindparam("more"))
        .add_cte(added.cte("added"), removed.cte("removed"))
        .execution_options(synchronize_session=False),
        missing=missing,
    )


FEED = _likable(Feed, FeedLike, FeedLike.feed_id, FeedNotFound, FEED_KEPT)
COMMENT = _likable(
    Comment,
    CommentLike,
    CommentLike.comment_id,
    CommentNotFound,
    COMMENT_KEPT,
    # It goes with its feed.
    exists().where(Feed.id == Comment.feed_id, FEED_KEPT),
)
_THERE = select(Feed.id).where(Feed.id == _ID, FEED_KEPT)
_OF_FEED = (
    select(FeedLike.user_id, User.nickname, FeedLike.create_dt)
    .join(User, User.id == FeedLike.user_id)
    .where(FeedLike.feed_id == _ID, User.leaving_dt.is_(None))
)
