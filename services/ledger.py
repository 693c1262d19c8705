"""The ledger: a row for each object in the bucket, and the objects that follow the rows.

A row is written (`pending`) before its object, becomes `attached` in the transaction of the feed
that shows it, `condemned` in the one that forgets it, and goes only after the object is gone. So
whatever dies, no feed names an object that is not there, and no object is without a row.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO

import anyio
import structlog
from sqlalchemy import BigInteger, ColumnElement, any_, bindparam, delete, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import Sessions
from models.base import NOW
from models.image import Image, ImageRead, ImageState, VariantRead
from models.user import User
from services.errors import StorageUnavailable
from services.pictures import Picture
from services.store import PREFIX, ImageStore
from services.variants import Variant

log = structlog.get_logger()


@dataclass(frozen=True)
class Upload:
    """A file, the name that the client gave it, and what it shows in words."""

    file: BinaryIO
    name: str
    alt: str = ""


# A row of the ledger, and the picture that becomes its object.
Stored = tuple[Image, Picture | Variant]

# Longer than a PUT may take (`store.PUT_PATIENCE`), so that one given up on has ended by then.
SETTLED = timedelta(minutes=2)
REAP_EVERY = 15.0


@asynccontextmanager
async def stored(
    db: AsyncSession, store: ImageStore, owner: User, uploads: Sequence[Upload]
) -> AsyncGenerator[list[Image]]:
    """Check uploads, clean them and put them into the bucket, for the block to attach.

    When anything fails, in here or in the block, what was put is condemned. Raises
    UnsupportedImage, ImageTooLarge and DamagedImage before anything is written, and
    StorageUnavailable when the store is at fault.
    """
    files = [(upload.file, upload.name) for upload in uploads]
    async with store.cleaner.cleaned(files) as pictures:
        stored = await _write_pending(db, store, owner, uploads, pictures)
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


async def pending(db: AsyncSession, owner: User, image_ids: Sequence[int]) -> dict[int, Image]:
    """The owner's pending images among these, by id, locked until the transaction ends."""
    found = (
        select(Image)
        .where(
            Image.id.in_(image_ids),
            Image.owner_id == owner.id,
            Image.state == ImageState.PENDING,
            Image.original_id.is_(None),
        )
        .with_for_update()
    )
    return {row.id: row for row in await db.scalars(found)} if image_ids else {}


async def attach(db: AsyncSession, rows: Sequence[Image], *, feed_id: int) -> None:
    """Give a feed these images in this order, inside the caller's transaction.

    They are pending, or the feed's own already.
    """
    for position, row in enumerate(rows, 1):
        attached = await db.execute(
            update(Image)
            .where(
                _of([row.id]),
                or_(Image.state == ImageState.PENDING, Image.feed_id == feed_id),
            )
            .values(state=ImageState.ATTACHED, feed_id=feed_id, position=position)
            .returning(Image.id)
            .execution_options(synchronize_session=False)
        )
        if row.id not in attached.scalars().all():
            # The upload took longer than the grace, and the reaper was quicker.
            raise StorageUnavailable("Storing the images took too long; nothing was changed.")


async def condemn(db: AsyncSession, rows: Sequence[Image]) -> Sequence[str]:
    """Take images off their feed inside the caller's transaction; gives the keys to discard."""
    if not rows:
        return []
    condemned = (
        update(Image)
        .where(_of([row.id for row in rows]))
        .values(state=ImageState.CONDEMNED, feed_id=None, reap_dt=NOW)
        .returning(Image.key)
    )
    return (await db.scalars(condemned)).all()


async def of_feeds(
    db: AsyncSession, store: ImageStore, feed_ids: Sequence[int]
) -> dict[int, list[ImageRead]]:
    """The images of some feeds as clients see them, by feed and in order; one statement."""
    rows = (await db.scalars(_OF_FEEDS, {"feed_ids": list(feed_ids)})).all()
    shown: dict[int, list[ImageRead]] = {feed_id: [] for feed_id in feed_ids}
    feed_of = {row.id: row.feed_id for row in rows}
    for image in read(store, rows):
        shown[feed_of[image.id] or 0].append(image)
    return shown


def read(store: ImageStore, rows: Sequence[Image]) -> list[ImageRead]:
    """Images as clients see them, out of rows in which an original comes before its variants."""
    originals: dict[int, ImageRead] = {}
    for row in rows:
        if row.original_id is None:
            originals[row.id] = _original(store, row)
        elif row.original_id in originals:
            originals[row.original_id].variants.append(_variant(store, row))
    return list(originals.values())


# An original comes before its variants, and those by their width.
_OF_FEEDS = (
    select(Image)
    .where(Image.feed_id == any_(bindparam("feed_ids", type_=ARRAY(BigInteger))))
    .order_by(Image.feed_id, Image.position, Image.original_id.nulls_first(), Image.width)
    # Also rows that the session has seen before they were attached.
    .execution_options(populate_existing=True)
)


def _of(ids: Sequence[int]) -> ColumnElement[bool]:
    """Originals, and their variants with them."""
    return or_(Image.id.in_(ids), Image.original_id.in_(ids))


def _original(store: ImageStore, row: Image) -> ImageRead:
    return ImageRead(
        id=row.id,
        url=store.url(row.key),
        width=row.width,
        height=row.height,
        alt=row.alt,
        placeholder=row.placeholder,
        color=row.color,
        variants=[],
    )


def _variant(store: ImageStore, row: Image) -> VariantRead:
    return VariantRead(
        url=store.url(row.key), width=row.width, height=row.height, type=row.content_type
    )


async def discard(db: AsyncSession, store: ImageStore, keys: Sequence[str]) -> int:
    """Delete condemned objects, then their rows; what S3 does not confirm is left to the reaper.

    Gives the number of objects that are gone. Never raises for the store's or the database's sake.
    """
    if not keys:
        return 0
    confirmed = await asyncio.gather(*(store.delete(key) for key in keys))
    gone = [key for key, done in zip(keys, confirmed, strict=True) if done]
    forgotten = delete(Image).where(Image.key.in_(gone), Image.state == ImageState.CONDEMNED)
    try:
        async with db.begin():
            await db.execute(forgotten)
    except SQLAlchemyError as error:
        # What the caller set out to do is committed; the rows are the reaper's.
        log.warning("rows of deleted images are left to the reaper", error=str(error))
        return 0
    return len(gone)


async def claim(db: AsyncSession, *, batch: int = 100) -> Sequence[str]:
    """Claim a batch of condemned images whose time has come; gives the keys to discard.

    A pending one whose time has come is condemned first, and discarded when no PUT of it can still
    be under way: an object that came after its row was forgotten would stay for ever.
    """
    overdue = (
        update(Image)
        .where(Image.state == ImageState.PENDING, Image.reap_dt <= NOW)
        .values(state=ImageState.CONDEMNED, reap_dt=NOW + SETTLED)
    )
    due = (
        select(Image.id)
        .where(Image.state == ImageState.CONDEMNED, Image.reap_dt <= NOW)
        .order_by(Image.reap_dt)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    # Claimed by a time in the future, not by a lock held while S3 works: should this process die
    # or S3 fail, the next reaper takes them up again.
    claimed = (
        update(Image).where(Image.id.in_(due)).values(reap_dt=NOW + SETTLED).returning(Image.key)
    )
    async with db.begin():
        await db.execute(overdue)
        return (await db.scalars(claimed)).all()


async def reap(db: AsyncSession, store: ImageStore) -> int:
    """Collect one batch of what is due; gives the number of objects that are gone."""
    return await discard(db, store, await claim(db))


async def reap_forever(sessions: Sessions, store: ImageStore) -> None:
    """The service's own reaper; a failing round is logged and the next one tries again."""
    while True:
        try:
            async with sessions() as db:
                while await reap(db, store):
                    pass
        except SQLAlchemyError as error:
            log.warning("images could not be collected", error=str(error))
        except Exception:
            # A fault of ours must not end the reaper for the rest of the process's life.
            log.exception("the reaper failed")
        await asyncio.sleep(REAP_EVERY)


async def _write_pending(
    db: AsyncSession,
    store: ImageStore,
    owner: User,
    uploads: Sequence[Upload],
    pictures: Sequence[Picture],
) -> list[Stored]:
    """Write a row for each object that is about to be put: pictures and their variants."""
    if not pictures:
        return []
    async with db.begin():
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
        key=f"{PREFIX}{secrets.token_urlsafe(16)}.{picture.extension}",
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
        .returning(Image.key)
    )
    # Shielded: a request that is cancelled cleans up as well.
    with anyio.CancelScope(shield=True):
        try:
            async with db.begin():
                condemned = (await db.scalars(abandoned)).all()
        except SQLAlchemyError as error:
            log.warning("pending images are left to the reaper", keys=keys, error=str(error))
            return
        await asyncio.gather(*(store.delete(key) for key in condemned))
