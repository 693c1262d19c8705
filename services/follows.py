"""Follows: who wants to see what whom posts; each one is a row, there once or not at all."""

from sqlalchemy import BigInteger, any_, bindparam, delete, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from models.base import CursorQuery
from models.follow import Follow, FollowAction, FollowRead, FollowToggled, Person
from models.user import User
from services import idempotency, images
from services.access import ACCOUNT_GONE
from services.cursors import Cursor, Page, following, keyset
from services.errors import FollowingOneself, NotAuthenticated, UserNotFound
from services.store import ImageStore

# Of both users, in one order for all, so that two who follow each other at once do not wait for
# each other; with it, nobody else changes a count or the row between the two.
_BOTH = (
    select(User.id)
    .where(User.id == any_(bindparam("both", type_=ARRAY(BigInteger))), User.leaving_dt.is_(None))
    .order_by(User.id)
    .with_for_update(key_share=True)
)
_ADDED = (
    insert(Follow)
    .values(follower_id=bindparam("by"), followed_id=bindparam("of"))
    .on_conflict_do_nothing()
    .returning(literal(1))
)
_REMOVED = (
    delete(Follow)
    .where(Follow.follower_id == bindparam("by"), Follow.followed_id == bindparam("of"))
    .returning(literal(1))
)


async def put(db: AsyncSession, follower: User, user_id: int) -> FollowRead:
    """Follow a user; raises FollowingOneself and UserNotFound."""
    async with db.begin():
        await _lock(db, follower, user_id)
        await _add(db, follower, user_id)
        read = FollowRead(followed=True, follower_count=await _count(db, user_id))
        return await idempotency.keep(db, read)


async def remove(db: AsyncSession, follower: User, user_id: int) -> FollowRead:
    """Follow a user no more; raises FollowingOneself and UserNotFound."""
    async with db.begin():
        await _lock(db, follower, user_id)
        await _remove(db, follower, user_id)
        read = FollowRead(followed=False, follower_count=await _count(db, user_id))
        return await idempotency.keep(db, read)


async def toggle(db: AsyncSession, follower: User, user_id: int) -> FollowToggled:
    """Follow a user, or no more; gives which. Raises FollowingOneself and UserNotFound."""
    async with db.begin():
        await _lock(db, follower, user_id)
        action = FollowAction.UNFOLLOWED
        if not await _remove(db, follower, user_id):
            await _add(db, follower, user_id)
            action = FollowAction.FOLLOWED
        return await idempotency.keep(db, FollowToggled(action=action))


async def followers(
    db: AsyncSession, store: ImageStore, user_id: int, query: CursorQuery
) -> Page[Person]:
    """Who follows a user, latest first; raises UserNotFound, and InvalidInput for a bad cursor."""
    return await _people(db, store, user_id, query, Follow.followed_id, Follow.follower_id)


async def followings(
    db: AsyncSession, store: ImageStore, user_id: int, query: CursorQuery
) -> Page[Person]:
    """Whom a user follows, latest first; raises UserNotFound, and InvalidInput for a bad cursor."""
    return await _people(db, store, user_id, query, Follow.follower_id, Follow.followed_id)


async def _lock(db: AsyncSession, follower: User, user_id: int) -> None:
    if user_id == follower.id:
        raise FollowingOneself
    found = (await db.scalars(_BOTH, {"both": [follower.id, user_id]})).all()
    if follower.id not in found:
        raise NotAuthenticated(ACCOUNT_GONE)
    if user_id not in found:
        raise UserNotFound


async def _add(db: AsyncSession, follower: User, user_id: int) -> None:
    if await db.scalar(_ADDED, {"by": follower.id, "of": user_id}):
        await _recount(db, follower.id, user_id, by=1)


async def _remove(db: AsyncSession, follower: User, user_id: int) -> bool:
    removed = await db.scalar(_REMOVED, {"by": follower.id, "of": user_id})
    if removed:
        await _recount(db, follower.id, user_id, by=-1)
    return removed is not None


async def _recount(db: AsyncSession, follower_id: int, followed_id: int, *, by: int) -> None:
    for user_id, count in (
        (followed_id, User.follower_count),
        (follower_id, User.following_count),
    ):
        changed = update(User).where(User.id == user_id).values({count: count + by})
        await db.execute(changed.execution_options(synchronize_session=False))


async def _count(db: AsyncSession, user_id: int) -> int:
    counted = select(User.follower_count).where(User.id == user_id)
    return (await db.scalars(counted)).one()


async def _people(
    db: AsyncSession,
    store: ImageStore,
    user_id: int,
    query: CursorQuery,
    whose: InstrumentedAttribute[int],
    shown: InstrumentedAttribute[int],
) -> Page[Person]:
    cursor = Cursor.newest_first(query.cursor)
    found = (
        select(User.id, User.nickname, Follow.create_dt)
        .join_from(Follow, User, User.id == shown)
        .where(whose == user_id, User.leaving_dt.is_(None))
    )
    statement = keyset(found, Follow.create_dt, shown, cursor, descending=True)
    async with db.begin():
        there = select(User.id).where(User.id == user_id, User.leaving_dt.is_(None))
        if await db.scalar(there) is None:
            raise UserNotFound
        rows = (await db.execute(statement.limit(query.limit + 1))).all()
        avatars = await images.avatars(db, store, [row.id for row in rows[: query.limit]])
    people = [
        Person(
            user_id=row.id,
            nickname=row.nickname,
            avatar=avatars.get(row.id),
            create_dt=row.create_dt,
        )
        for row in rows[: query.limit]
    ]
    return Page(people, following(rows, query.limit))
