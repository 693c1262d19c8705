"""Profiles: what is shown of a user, and how the user changes it."""

from typing import Any

from sqlalchemy import BigInteger, bindparam, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW
from models.feed import Feed
from models.follow import Follow
from models.image import Image
from models.nickname import nickname_key
from models.user import AuthorQuery, Profile, ProfileUpdate, User, email_key
from services import idempotency, images, ledger, versions
from services.access import ACCOUNT_GONE
from services.errors import InvalidInput, NicknameTaken, NotAuthenticated, UserNotFound
from services.readers import Reader
from services.store import ImageStore
from services.versions import Expected

_SHOWN = select(
    User.id,
    User.nickname,
    User.email,
    User.bio,
    User.follower_count,
    User.following_count,
    User.create_dt,
    select(func.count())
    .where(Feed.author_id == User.id, Feed.deleted_dt.is_(None))
    .scalar_subquery()
    .label("feed_count"),
    exists()
    .where(
        Follow.follower_id == bindparam("reader_id", type_=BigInteger),
        Follow.followed_id == User.id,
    )
    .label("followed"),
).where(User.id == bindparam("user_id"), User.leaving_dt.is_(None))


async def read(db: AsyncSession, store: ImageStore, reader: Reader, user_id: int) -> Profile:
    """A user's profile, as the reader may see it; raises UserNotFound."""
    async with db.begin():
        return await _shown(db, store, reader, user_id)


async def update_own(
    db: AsyncSession,
    store: ImageStore,
    user: User,
    reader: Reader,
    change: ProfileUpdate,
    *,
    expected: Expected = None,
) -> Profile:
    """Change what was given; the avatar before is deleted.

    Raises NicknameTaken, PreconditionFailed, and InvalidInput for an avatar that is not a pending
    image of the user's.
    """
    given = change.model_dump(exclude_unset=True)
    async with db.begin():
        # The user's lock before any image's, as `quotas.require` takes them; at once as strong as
        # a change of a unique column will need it.
        own = select(User.nickname).where(User.id == user.id, User.leaving_dt.is_(None))
        nickname = await db.scalar(own.with_for_update(key_share="nickname" not in given))
        if nickname is None:
            raise NotAuthenticated(ACCOUNT_GONE)
        if expected is not None:
            versions.require(expected, await _shown(db, store, reader, user.id))
        # Who shares a nickname since before they were unique, keeps it until they change it.
        if given.get("nickname") == nickname:
            del given["nickname"]
        discarded = []
        if "avatar_id" in given:
            discarded = await _change_avatar(db, user, given.pop("avatar_id"))
        await _change(db, user, given)
        changed = await idempotency.keep(db, await _shown(db, store, reader, user.id))
    await ledger.discard(db, store, discarded)
    return changed


async def find(db: AsyncSession, reader: Reader, query: AuthorQuery) -> int:
    """The id of the user whom a query names; raises UserNotFound, also for an address not shown."""
    found = select(User.id, User.email).where(User.leaving_dt.is_(None))
    if query.user_id is not None:
        found = found.where(User.id == query.user_id)
    elif query.nickname is not None:
        found = found.where(User.nickname_key == nickname_key(query.nickname))
    else:
        found = found.where(User.email_key == email_key(query.email or ""))
    async with db.begin():
        row = (await db.execute(found)).one_or_none()
    if row is None or (query.email is not None and reader.email(row.email, of=row.id) is None):
        raise UserNotFound
    return int(row.id)


async def _shown(db: AsyncSession, store: ImageStore, reader: Reader, user_id: int) -> Profile:
    found = await db.execute(_SHOWN, {"user_id": user_id, "reader_id": reader.id})
    row = found.one_or_none()
    if row is None:
        raise UserNotFound
    avatars = await images.avatars(db, store, [user_id])
    return Profile(
        **dict(row._mapping)
        | {
            "email": reader.email(row.email, of=row.id),
            "followed": None if reader.id is None else row.followed,
        },
        avatar=avatars.get(user_id),
    )


async def _change(db: AsyncSession, user: User, given: dict[str, Any]) -> None:
    if "nickname" in given:
        given["nickname_key"] = nickname_key(given["nickname"])
    changed = update(User).where(User.id == user.id).values(update_dt=NOW, **given)
    try:
        # The index decides, not a look beforehand.
        await db.execute(changed.execution_options(synchronize_session=False))
    except IntegrityError as error:
        raise NicknameTaken from error


async def _change_avatar(db: AsyncSession, user: User, image_id: int | None) -> list[str]:
    """Show this image and no more the one before; gives the keys to discard."""
    worn = select(Image).where(Image.avatar_of == user.id, Image.original_id.is_(None))
    before = await db.scalar(worn.with_for_update())
    if before and before.id == image_id:
        return []
    discarded = await ledger.condemn(db, [before] if before else [])
    if image_id is not None:
        pending = await ledger.pending(db, user, [image_id])
        if image_id not in pending:
            raise InvalidInput(f"{image_id} is not a pending image of yours.", pointer="/avatar_id")
        await ledger.attach_avatar(db, pending[image_id], user_id=user.id)
    return list(discarded)
