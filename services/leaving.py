"""Leaving: an account and all that is its own are erased; what others wrote stays.

The first transaction ends the account: nobody logs in or acts as its user any more, address and
nickname are free, and since everything that writes a row of a user's own locks the account and
looks whether it is there (`access.require_here`), nothing is added behind it. From then on nothing
of theirs is shown (`access.is_here`). It is erased in batches, each in a transaction of its own: by
the request, as long as it has patience, and by the eraser, which takes up what a large account or a
crash has left. The account's row, by then without a word in it, goes last, after the objects of its
images.

A batch locks many rows. It takes those that are free, and waits for one only while it holds no
other, so that it stands in nobody's circle. Each count is changed under its row's lock, as ever.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic
from typing import Any

import structlog
from sqlalchemy import BigInteger, Select, any_, delete, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from uuid_utils import uuid7

from config.db import DatabaseError, Sessions
from models.base import NOW
from models.comment import Comment
from models.feed import Feed
from models.follow import Follow
from models.image import Image, ImageState
from models.leaving import Receipt
from models.like import CommentLike, FeedLike
from models.nickname import taken_key
from models.user import User
from services import feeds, ledger, sessions, threads
from services.access import ACCOUNT_GONE
from services.errors import InvalidCredentials, NotAuthenticated
from services.passwords import Passwords
from services.revocations import Revocations
from services.store import ImageStore

log = structlog.get_logger()

BATCH = 100
# Seconds that a request goes on erasing, before it leaves the rest to the eraser.
PATIENCE = 5.0
# Seconds before the eraser takes up what it could not finish: a store may be down, a form for an
# upload still good. Doubled each time, up to the second: between looks at what others have left.
ERASE_AGAIN = 15.0
ERASE_EVERY = 300.0


class Eraser:
    """Erases behind the requests, in every process, what those left behind who have left."""

    def __init__(self, sessions: Sessions, store: ImageStore) -> None:
        self._sessions = sessions
        self._store = store
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Have it begin at once."""
        self._woken.set()

    async def erase_forever(self) -> None:
        """A round when it is woken, and now and then."""
        again = ERASE_AGAIN
        while True:
            # Who leaves during a round may not be in it.
            self._woken.clear()
            pause, again = again, min(2 * again, ERASE_EVERY)
            if await self._round():
                pause, again = ERASE_EVERY, ERASE_AGAIN
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
                again = ERASE_AGAIN

    async def _round(self) -> bool:
        """Erase all there is; False when something is left, or failed, which the log says."""
        try:
            async with self._sessions() as db:
                return await purge(db, self._store)
        except DatabaseError as error:
            log.warning("accounts that were left are erased later", error=str(error))
        except Exception:
            # A fault of ours must not end the eraser for the rest of the process's life.
            log.exception("the eraser failed")
        return False


async def leave(
    db: AsyncSession,
    store: ImageStore,
    passwords: Passwords,
    revocations: Revocations,
    eraser: Eraser,
    user: User,
    *,
    password: str,
) -> Receipt:
    """End an account and erase what is its own; raises InvalidCredentials, and NotAuthenticated."""
    if not await passwords.verify(password, user.password_hash):
        raise InvalidCredentials
    async with db.begin():
        receipt = await _depart(db, user)
        ended = await sessions.end_all(db, user.id)
    revocations.note(ended)
    log.info("an account was left", receipt=receipt.model_dump(mode="json", exclude={"complete"}))
    try:
        receipt.complete = await _erase(db, store, user.id, until=monotonic() + PATIENCE)
    except DatabaseError as error:
        # The account is gone; what it has left behind is the eraser's.
        log.warning("an account is erased later", receipt=receipt.id, error=str(error))
    finally:
        if not receipt.complete:
            eraser.wake()
    return receipt


async def purge(db: AsyncSession, store: ImageStore) -> bool:
    """Erase what those have left behind who have left; True when nothing of them is left."""
    async with db.begin():
        left = (await db.scalars(select(User.id).where(User.leaving_dt.is_not(None)))).all()
    return all([await _erase(db, store, user_id, until=inf) for user_id in left])


async def _depart(db: AsyncSession, user: User) -> Receipt:
    """Count what is theirs, and empty the account's row."""
    # Waits for all that is being written in the user's name; holds nothing else.
    here = select(User.password_hash).where(User.id == user.id, User.leaving_dt.is_(None))
    match await db.scalar(here.with_for_update()):
        case None:
            raise NotAuthenticated(ACCOUNT_GONE)
        case changed if changed != user.password_hash:
            raise InvalidCredentials
    counts = (await db.execute(_counts(user.id))).one()
    nobody = taken_key("", user.id)
    departed = (
        update(User)
        .where(User.id == user.id)
        .values(email="", email_key=nobody, nickname="", nickname_key=nobody, bio="")
        .values(password_hash="", is_admin=False, leaving_dt=NOW, update_dt=NOW)
        .returning(User.leaving_dt)
        .execution_options(synchronize_session=False)
    )
    leaving_dt = (await db.scalars(departed)).one()
    told = dict(counts._mapping) | {"leaving_dt": leaving_dt}
    return Receipt(id=str(uuid7()), complete=False, **told)


def _counts(user_id: int) -> Select[*tuple[Any, ...]]:
    def count(*where: Any) -> Any:
        return select(func.count()).where(*where).scalar_subquery()

    image = (Image.owner_id == user_id, Image.original_id.is_(None))
    return select(
        count(Feed.author_id == user_id).label("feeds"),
        count(Comment.author_id == user_id).label("comments"),
        (count(FeedLike.user_id == user_id) + count(CommentLike.user_id == user_id)).label("likes"),
        count(Follow.follower_id == user_id).label("follows"),
        count(*image, Image.state != ImageState.CONDEMNED).label("images"),
    )


async def _erase(db: AsyncSession, store: ImageStore, user_id: int, *, until: float) -> bool:
    """Erase batch after batch; True when nothing is left, not even the account's row."""
    for step in _STEPS:
        more = True
        while more:
            if monotonic() >= until:
                return False
            async with db.begin():
                more, keys = await step(db, user_id)
            await ledger.discard(db, store, keys)
    # A row of the ledger goes after its object, and the account after that.
    kept = exists().where(Image.owner_id == user_id)
    gone = delete(User).where(User.id == user_id, User.leaving_dt.is_not(None), ~kept)
    there = select(User.id).where(User.id == user_id)
    async with db.begin():
        await db.execute(gone.execution_options(synchronize_session=False))
        return await db.scalar(there) is None


# Whether there was anything to erase, and the keys of objects to discard.
_Erased = tuple[bool, Sequence[str]]


async def _erase_feeds(db: AsyncSession, user_id: int, *, deleted: bool) -> _Erased:
    """Feeds go with all that is on them, as whenever one is deleted."""
    # Each of the two has an index. Newest first: lists begin there, and have to pass over them.
    some = select(Feed.id).where(Feed.author_id == user_id)
    if deleted:
        some = some.where(Feed.deleted_dt.is_not(None))
    else:
        newest = (Feed.create_dt.desc(), Feed.id.desc())
        some = some.where(Feed.deleted_dt.is_(None)).order_by(*newest)
    found, locked = await _lock(db, some, Feed, key_share=False)
    return found, await feeds.remove(db, locked)


async def _erase_comments(db: AsyncSession, user_id: int) -> _Erased:
    """Comments on others' feeds become stones; those that hold no place go with the purge."""
    on = select(Comment.feed_id).where(Comment.author_id == user_id)
    found, locked = await _lock(db, on, Feed)
    mine = select(
        Comment.id, Comment.feed_id, Comment.path, Comment.reply_count, Comment.deleted_dt
    ).where(Comment.author_id == user_id, Comment.feed_id == _any(locked))
    rows = (await db.execute(mine.limit(BATCH))).all()
    await db.execute(
        update(Comment)
        .where(Comment.id == _any([row.id for row in rows]))
        .values(author_id=None, content="", deleted_dt=func.coalesce(Comment.deleted_dt, NOW))
        .execution_options(synchronize_session=False)
    )
    shown = [row for row in rows if row.deleted_dt is None]
    gone = Counter(row.feed_id for row in shown)
    counted = select(
        func.unnest(_array(gone.keys())).label("id"), func.unnest(_array(gone.values())).label("by")
    ).subquery()
    # Also of a deleted feed, which may be restored.
    fewer = update(Feed).where(Feed.id == counted.c.id)
    fewer = fewer.values(comment_count=Feed.comment_count - counted.c.by)
    await db.execute(fewer.execution_options(synchronize_session=False))
    for row in shown:
        if not row.reply_count:
            await threads.tell(db, row.path[:-1], -1)
    return found, []


@dataclass(frozen=True)
class _Link:
    """A table of mine whose rows are counted with somebody or something else."""

    mine: InstrumentedAttribute[int]
    other: InstrumentedAttribute[int]
    counted: type[Feed] | type[Comment] | type[User]
    count: InstrumentedAttribute[int]


async def _unlink(db: AsyncSession, user_id: int, *, link: _Link) -> _Erased:
    others = select(link.other).where(link.mine == user_id)
    found, locked = await _lock(db, others, link.counted)
    gone = (
        delete(link.mine.class_)
        .where(link.mine == user_id, link.other == _any(locked))
        .returning(link.other.label("id"))
        .cte("gone")
    )
    fewer = update(link.counted).where(link.counted.id.in_(select(gone.c.id)))
    fewer = fewer.values({link.count: link.count - 1})
    await db.execute(fewer.execution_options(synchronize_session=False))
    return found, []


async def _erase_images(db: AsyncSession, user_id: int) -> _Erased:
    kept = Image.state != ImageState.CONDEMNED
    found, locked = await _lock(
        db, select(Image.id).where(Image.owner_id == user_id, kept), Image, key_share=False
    )
    return found, await ledger.expel(db, locked)


_STEPS: Sequence[Callable[[AsyncSession, int], Awaitable[_Erased]]] = (
    partial(_erase_feeds, deleted=False),
    partial(_erase_feeds, deleted=True),
    _erase_comments,
    *(
        partial(_unlink, link=link)
        for link in (
            _Link(FeedLike.user_id, FeedLike.feed_id, Feed, Feed.like_count),
            _Link(CommentLike.user_id, CommentLike.comment_id, Comment, Comment.like_count),
            _Link(Follow.follower_id, Follow.followed_id, User, User.follower_count),
            _Link(Follow.followed_id, Follow.follower_id, User, User.following_count),
        )
    ),
    _erase_images,
)


async def _lock(
    db: AsyncSession,
    ids: Select[int],
    table: type[Feed] | type[Comment] | type[User] | type[Image],
    *,
    key_share: bool = True,
) -> tuple[bool, Sequence[int]]:
    """Lock a batch of the rows with these ids: all that are free, or else one, after a wait.

    Gives whether there were any ids, and those that are locked.
    """
    found = (await db.scalars(ids.limit(BATCH))).all()
    rows = select(table.id).where(table.id == _any(found))
    free = rows.with_for_update(key_share=key_share, skip_locked=True)
    locked = (await db.scalars(free)).all() if found else []
    if found and not locked:
        one = select(table.id).where(table.id == found[0])
        locked = (await db.scalars(one.with_for_update(key_share=key_share))).all()
    return bool(found), locked


def _array(numbers: Iterable[int]) -> Any:
    return literal(list(numbers), ARRAY(BigInteger))


def _any(ids: Iterable[int]) -> Any:
    return any_(_array(ids))
