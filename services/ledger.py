"""The ledger: a row for each object in the bucket, and the objects that follow the rows.

A row is written (`pending`) before its object, becomes `attached` in the transaction of the feed
(or profile) that shows it, `condemned` in the one that forgets it, and goes only after the object
is gone. So whatever dies, no feed names an object that is not there, and no object is without a
row. What clients upload by themselves has a row, too (`incoming`), from before they may.

While a backup is made, what is condemned is left to the reaper, who waits for its end (`holds`).
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO

import anyio
import structlog
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    any_,
    bindparam,
    case,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import DatabaseError
from models.base import NOW
from models.image import Image, ImageState
from models.user import User
from services import holds, quotas
from services.errors import StorageUnavailable
from services.pictures import Picture
from services.store import FORM_EXPIRY, INCOMING, LINGER, SHOWN, ImageStore
from services.variants import Variant

log = structlog.get_logger()


@dataclass(frozen=True)
class Upload:
    """A file, the name that the client gave it, and what it shows in words."""

    file: BinaryIO
    name: str
    alt: str = ""

    @property
    def size(self) -> int:
        """In bytes, as it was sent."""
        return self.file.seek(0, os.SEEK_END)


# A row of the ledger, and the picture that becomes its object.
Stored = tuple[Image, Picture | Variant]

# The upload took longer than the grace, and the reaper was quicker.
_TOO_LONG = "Storing the images took too long; nothing was changed."
# Longer than a PUT may take (`store.PUT_PATIENCE`), so that one given up on has ended by then.
SETTLED = timedelta(minutes=2)
# Seconds that a request which has failed waits for the database to hear of it.
ABANDON_PATIENCE = 5.0
_FREE = holds.FREE.label("free")


@asynccontextmanager
async def stored(
    db: AsyncSession,
    store: ImageStore,
    owner: User,
    uploads: Sequence[Upload],
    *,
    waiting: bool = False,
    freed: int = 0,
) -> AsyncGenerator[list[Image]]:
    """Check uploads, clean them and put them into the bucket, for the block to attach.

    They count as `waiting` if the block leaves them pending; it frees `freed` bytes of the owner's.
    When anything fails, in here or in the block, what was put is condemned. Raises
    UnsupportedImage, ImageTooLarge, DamagedImage and QuotaExceeded before anything is written, and
    StorageUnavailable when the store is at fault.
    """
    room = {"pending": len(uploads) if waiting else 0, "freed": freed}
    if uploads:
        # Asked before the work, by what was sent, and once more when it is known what is kept.
        async with db.begin():
            size = sum(upload.size for upload in uploads)
            await quotas.require(db, store, owner, size=size, **room)
    files = [(upload.file, upload.name) for upload in uploads]
    async with store.cleaner.cleaned(files) as pictures:
        stored = await _write_pending(db, store, owner, uploads, pictures, room)
        # Kept apart from the rows, which know nothing any more after a transaction that failed.
        keys = [row.key for row, _ in stored]
        try:
            await _put_all(store, stored)
        except BaseException:
            await _abandon(db, store, keys)
            raise
    try:
        yield [row for row, _ in stored if row.original_id is None]
    except BaseException:
        await _abandon(db, store, keys)
        raise


def new_key() -> str:
    """The key of an object that a client is to upload."""
    return f"{INCOMING}{secrets.token_urlsafe(16)}"


async def announce(
    db: AsyncSession, owner: User, key: str, *, content_type: str, size: int, alt: str
) -> Image:
    """Write the row of an object that a client is about to upload, in the caller's transaction.

    The client may do so until the form has expired, and an upload that began in time may go on for
    a while: so long the row stays, whatever becomes of it.
    """
    written = insert(Image).values(
        key=key,
        state=ImageState.INCOMING,
        owner_id=owner.id,
        content_type=content_type,
        bytes=size,
        width=0,
        height=0,
        alt=alt,
        reap_dt=NOW + FORM_EXPIRY + LINGER,
    )
    return (await db.scalars(written.returning(Image))).one()


async def adopt(db: AsyncSession, store: ImageStore, incoming: Image, made: Image) -> str:
    """Let a stored image take the id that was announced for it, in the caller's transaction.

    Its object is then the incoming row's, and what the client uploaded is condemned; gives its key,
    which may be discarded also while a backup is made: none names what is incoming.
    """
    taken = ("key", "content_type", "bytes", "width", "height", "color", "placeholder")
    image = {column: getattr(made, column) for column in taken}
    kept = ("key", "content_type", "bytes", "width", "height", "owner_id", "reap_dt")
    raw = {column: getattr(incoming, column) for column in kept}
    of_made = update(Image).where(Image.original_id == made.id)
    await db.execute(of_made.values(original_id=incoming.id, stored=True))
    await db.execute(delete(Image).where(Image.id == made.id))
    await db.execute(
        update(Image)
        .where(Image.id == incoming.id)
        .values(state=ImageState.PENDING, stored=True, reap_dt=NOW + store.grace, **image)
    )
    await db.execute(insert(Image).values(state=ImageState.CONDEMNED, **raw))
    return str(raw["key"])


async def keep(db: AsyncSession, rows: Sequence[Image]) -> None:
    """Let stored images wait for a feed, inside the caller's transaction."""
    kept = (
        update(Image)
        .where(_of([row.id for row in rows]), Image.state == ImageState.PENDING)
        .values(stored=True)
        .returning(Image.id)
        .execution_options(synchronize_session=False)
    )
    if not {row.id for row in rows} <= set((await db.scalars(kept)).all()):
        raise StorageUnavailable(_TOO_LONG)


async def pending(db: AsyncSession, owner: User, image_ids: Sequence[int]) -> dict[int, Image]:
    """The owner's pending images among these, by id, locked until the transaction ends."""
    if not image_ids:
        return {}
    found = await db.scalars(_PENDING, {"owner_id": owner.id, "image_ids": list(image_ids)})
    return {row.id: row for row in found}


_PENDING = (
    select(Image)
    .where(
        Image.id == any_(bindparam("image_ids", type_=ARRAY(BigInteger))),
        Image.owner_id == bindparam("owner_id"),
        Image.state == ImageState.PENDING,
        Image.stored,
        Image.original_id.is_(None),
    )
    .with_for_update()
)


async def attach(db: AsyncSession, rows: Sequence[Image], *, feed_id: int) -> None:
    """Give a feed these images in this order, inside the caller's transaction.

    They are pending, or the feed's own already.
    """
    for position, row in enumerate(rows, 1):
        takes = or_(Image.state == ImageState.PENDING, Image.feed_id == feed_id)
        await _attach(db, row, takes, feed_id=feed_id, position=position)


async def attach_avatar(db: AsyncSession, row: Image, *, user_id: int) -> None:
    """Make a pending image a user's avatar, inside the caller's transaction.

    The one before is condemned by then.
    """
    await _attach(db, row, Image.state == ImageState.PENDING, avatar_of=user_id)


async def _attach(
    db: AsyncSession, row: Image, takes: ColumnElement[bool], **place: int | None
) -> None:
    attached = await db.execute(
        update(Image)
        .where(_of([row.id]), takes)
        .values(state=ImageState.ATTACHED, stored=True, **place)
        .returning(Image.id)
        .execution_options(synchronize_session=False)
    )
    if row.id not in attached.scalars().all():
        raise StorageUnavailable(_TOO_LONG)


async def condemn(db: AsyncSession, rows: Sequence[Image]) -> Sequence[str]:
    """Take images off what shows them, in the caller's transaction; gives the keys to discard.

    There are none while a backup is made.
    """
    if not rows:
        return []
    # The row of what a client may still upload stays until it cannot any more.
    due = case((Image.state == ImageState.INCOMING, Image.reap_dt), else_=NOW)
    condemned = (
        update(Image)
        .where(_of([row.id for row in rows]))
        .values(state=ImageState.CONDEMNED, feed_id=None, avatar_of=None, reap_dt=due)
        .returning(Image.key, _FREE)
    )
    return [row.key for row in await db.execute(condemned) if row.free]


async def expel(db: AsyncSession, image_ids: Sequence[int]) -> Sequence[str]:
    """Condemn images of one who leaves, whatever their state; gives the keys to discard.

    An object that may be on its way still is left to the reaper (`stored` condemns likewise), and
    so are all while a backup is made.
    """
    on_its_way = (Image.state == ImageState.PENDING) & ~Image.stored
    due = case(
        (on_its_way, NOW + SETTLED), (Image.state == ImageState.INCOMING, Image.reap_dt), else_=NOW
    )
    expelled = (
        update(Image)
        .where(Image.id.in_(image_ids), Image.state != ImageState.CONDEMNED)
        .values(
            state=ImageState.CONDEMNED, feed_id=None, avatar_of=None, alt="", stored=~on_its_way
        )
        .values(reap_dt=due)
        .returning(Image.key, Image.stored, _FREE)
        .execution_options(synchronize_session=False)
    )
    return [row.key for row in await db.execute(expelled) if row.stored and row.free]


def _of(ids: Sequence[int]) -> ColumnElement[bool]:
    """Originals, and their variants with them."""
    return or_(Image.id.in_(ids), Image.original_id.in_(ids))


async def discard(db: AsyncSession, store: ImageStore, keys: Sequence[str]) -> int:
    """Delete condemned objects, then their rows; what S3 does not confirm is left to the reaper.

    So is the row of an object that may come once more: one that is not due for long yet.
    Gives the number of objects that are gone. Never raises for the store's or the database's sake.
    """
    if not keys:
        return 0
    confirmed = await asyncio.gather(*(store.delete(key) for key in keys))
    gone = [key for key, done in zip(keys, confirmed, strict=True) if done]
    forgotten = delete(Image).where(
        Image.key.in_(gone), Image.state == ImageState.CONDEMNED, Image.reap_dt <= NOW + SETTLED
    )
    try:
        async with db.begin():
            await db.execute(forgotten)
    except DatabaseError as error:
        # What the caller set out to do is committed; the rows are the reaper's.
        log.warning("rows of deleted images are left to the reaper", error=str(error))
        return 0
    return len(gone)


async def _write_pending(
    db: AsyncSession,
    store: ImageStore,
    owner: User,
    uploads: Sequence[Upload],
    pictures: Sequence[Picture],
    room: dict[str, int],
) -> list[Stored]:
    """Write a row for each object that is about to be put: pictures and their variants."""
    if not pictures:
        return []
    size = sum(it.bytes + sum(variant.bytes for variant in it.variants) for it in pictures)
    async with db.begin():
        await quotas.require(db, store, owner, size=size, **room)
        originals = [
            _pending(
                store,
                owner,
                picture,
                alt=upload.alt,
                color=picture.color,
                placeholder=picture.placeholder,
            )
            for upload, picture in zip(uploads, pictures, strict=True)
        ]
        db.add_all(originals)
        await db.flush()
        stored = list(zip(originals, pictures, strict=True))
        copies = [
            (_pending(store, owner, variant, original_id=row.id), variant)
            for row, picture in stored
            for variant in picture.variants
        ]
        db.add_all(row for row, _ in copies)
    return [*stored, *copies]


def _pending(store: ImageStore, owner: User, picture: Picture | Variant, **values: Any) -> Image:
    return Image(
        key=f"{SHOWN}{secrets.token_urlsafe(16)}.{picture.extension}",
        state=ImageState.PENDING,
        owner_id=owner.id,
        content_type=picture.content_type,
        bytes=picture.bytes,
        width=picture.width,
        height=picture.height,
        reap_dt=NOW + store.grace,
        **values,
    )


async def _put_all(store: ImageStore, stored: Sequence[Stored]) -> None:
    # All are waited for, also when one has failed: what is taken back must not be on its way still.
    puts = (store.put(row.key, picture) for row, picture in stored)
    for outcome in await asyncio.gather(*puts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _abandon(db: AsyncSession, store: ImageStore, keys: Sequence[str]) -> None:
    """Condemn what was not attached and delete it now, as far as that can be done.

    The rows stay until the reaper has deleted once more: a PUT that was given up on may still
    arrive.
    """
    abandoned = (
        update(Image)
        .where(Image.key.in_(keys), Image.state == ImageState.PENDING)
        .values(state=ImageState.CONDEMNED, reap_dt=NOW + SETTLED)
        .returning(Image.key, _FREE)
    )
    # Shielded: a request that is cancelled cleans up as well.
    with anyio.CancelScope(shield=True):
        try:
            async with asyncio.timeout(ABANDON_PATIENCE), db.begin():
                condemned = [row.key for row in await db.execute(abandoned) if row.free]
        except DatabaseError as error:
            log.warning("pending images are left to the reaper", keys=keys, error=str(error))
            return
        await asyncio.gather(*(store.delete(key) for key in condemned))
