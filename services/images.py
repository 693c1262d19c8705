"""Images: the ledger in the database, and the objects in the bucket that follow it.

A row is written (`pending`) before its object, becomes `attached` in the transaction of the feed
that shows it, `condemned` in the one that forgets it, and goes only after the object is gone. So
whatever dies, no feed names an object that is not there, and no object is without a row.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, BinaryIO

import anyio
import structlog
from botocore.exceptions import ClientError
from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import Sessions
from config.s3 import S3Client, S3Error, StreamingBody
from config.settings import Settings
from models.base import NOW
from models.image import Image, ImageState
from models.user import User
from services.errors import ImageNotFound, RangeNotSatisfiable, StorageUnavailable
from services.pictures import Cleaner, Picture

log = structlog.get_logger()

# A file and the name that the client gave it.
Upload = tuple[BinaryIO, str]

PREFIX = "images/"
_NAME = re.compile(r"[A-Za-z0-9_-]{16,64}\.[a-z0-9]{3,5}")
CACHE_CONTROL = "public, max-age=31536000, immutable"
CHUNK = 64 * 1024
# Longer than an S3 call may go on trying, so that a PUT given up on has ended by then.
SETTLED = timedelta(minutes=2)
REAP_EVERY = 15.0
DELETE_PATIENCE = 5.0


@dataclass(frozen=True)
class StoredImage:
    """An object on its way out: status and headers for the client, and its bytes, if wanted."""

    status: int
    headers: dict[str, str]
    body: StreamingBody | None

    async def chunks(self) -> AsyncIterator[bytes]:
        if self.body is None:
            return
        # Closed on every path: a client that goes away must not keep a connection to S3.
        async with self.body:
            async for chunk in self.body.iter_chunks(CHUNK):
                yield chunk


class ImageStore:
    """The bucket: puts, gives and deletes objects, a bounded number at a time."""

    def __init__(self, s3: S3Client, cleaner: Cleaner, settings: Settings) -> None:
        self._s3 = s3
        self._bucket = settings.s3_bucket or ""
        self._base_url = settings.s3_public_url or settings.base_url
        self._slots = asyncio.Semaphore(8)
        self.cleaner = cleaner
        self.max_images = settings.max_images
        self.grace = timedelta(seconds=settings.image_grace)

    def url(self, key: str) -> str:
        """Where clients load an object; the database keeps keys, so that this may change."""
        return f"{self._base_url}/{key}"

    async def put(self, key: str, picture: Picture) -> None:
        """Write one object; raises StorageUnavailable."""
        async with self._slots:
            body = await asyncio.to_thread(picture.file.read)
            try:
                await self._s3.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    ContentType=picture.content_type,
                    CacheControl=CACHE_CONTROL,
                )
            except S3Error as error:
                log.error("an image could not be stored", key=key, error=str(error))
                raise StorageUnavailable from error

    async def delete(self, key: str) -> bool:
        """Delete one object; False, and a line in the log, when S3 does not confirm it."""
        async with self._slots:
            try:
                # The reaper has all the time in the world, whoever deletes a feed has not.
                async with asyncio.timeout(DELETE_PATIENCE):
                    await self._s3.delete_object(Bucket=self._bucket, Key=key)
            except S3Error as error:
                log.warning("an image could not be deleted yet", key=key, error=repr(error))
                return False
        return True

    async def read(self, name: str, *, with_body: bool, **conditions: Any) -> StoredImage:
        """Open an object for streaming; `conditions` are S3's `Range` and `IfNoneMatch`.

        Raises ImageNotFound, RangeNotSatisfiable and StorageUnavailable.
        """
        if not _NAME.fullmatch(name):
            raise ImageNotFound  # not one of ours, so the store is not asked
        ask: Any = self._s3.get_object if with_body else self._s3.head_object
        try:
            found = await ask(Bucket=self._bucket, Key=PREFIX + name, **conditions)
        except ClientError as error:
            answer = error.response.get("ResponseMetadata", {})
            match answer.get("HTTPStatusCode"):
                case 304:
                    etag = answer["HTTPHeaders"].get("etag", conditions["IfNoneMatch"])
                    return StoredImage(304, {"etag": etag}, None)
                case 404:
                    raise ImageNotFound from None
                case 416:
                    raise RangeNotSatisfiable from None
            raise StorageUnavailable(_UNREADABLE) from error
        except S3Error as error:
            raise StorageUnavailable(_UNREADABLE) from error
        headers = {
            "content-type": found["ContentType"],
            "content-length": str(found["ContentLength"]),
            "etag": found["ETag"],
        }
        if "ContentRange" in found:
            headers["content-range"] = found["ContentRange"]
        status = found["ResponseMetadata"]["HTTPStatusCode"]
        return StoredImage(status, headers, found.get("Body"))

    async def head(self) -> None:
        """Ask for the bucket; raises one of `S3Error` when it cannot be reached."""
        await self._s3.head_bucket(Bucket=self._bucket)


_UNREADABLE = "The image store cannot be reached. Try again shortly."


@asynccontextmanager
async def stored(
    db: AsyncSession, images: ImageStore, owner: User, uploads: Sequence[Upload]
) -> AsyncGenerator[list[Image]]:
    """Check uploads, clean them and put them into the bucket, for the block to attach.

    When anything fails, in here or in the block, what was put is condemned. Raises
    UnsupportedImage, ImageTooLarge and DamagedImage before anything is written, and
    StorageUnavailable when the store is at fault.
    """
    async with images.cleaner.cleaned(uploads) as pictures:
        rows = await _write_pending(db, images, owner, pictures)
        # Kept apart from the rows, which know nothing any more after a transaction that failed.
        keys = [row.key for row in rows]
        try:
            await _put_all(images, rows, pictures)
        except BaseException:
            await _abandon(db, images, keys)
            raise
    try:
        yield rows
    except BaseException:
        await _abandon(db, images, keys)
        raise


async def attach(db: AsyncSession, rows: Sequence[Image], *, feed_id: int, after: int = 0) -> None:
    """Hang pending images on a feed, behind position `after`, inside the caller's transaction."""
    for position, row in enumerate(rows, after + 1):
        attached = await db.scalar(
            update(Image)
            .where(Image.id == row.id, Image.state == ImageState.PENDING)
            .values(state=ImageState.ATTACHED, feed_id=feed_id, position=position)
            .returning(Image.id)
        )
        if attached is None:
            # The upload took longer than the grace, and the reaper was quicker.
            raise StorageUnavailable("Storing the images took too long; nothing was changed.")


async def condemn(db: AsyncSession, rows: Iterable[Image]) -> list[str]:
    """Take images off their feed inside the caller's transaction; gives the keys to discard."""
    keys = [row.key for row in rows]
    if keys:
        await db.execute(
            update(Image)
            .where(Image.key.in_(keys))
            .values(state=ImageState.CONDEMNED, feed_id=None, reap_dt=NOW)
        )
    return keys


async def discard(db: AsyncSession, images: ImageStore, keys: Sequence[str]) -> int:
    """Delete condemned objects, then their rows; what S3 does not confirm is left to the reaper.

    Gives the number of objects that are gone. Never raises for the store's or the database's sake.
    """
    if not keys:
        return 0
    confirmed = await asyncio.gather(*(images.delete(key) for key in keys))
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


async def reap(db: AsyncSession, images: ImageStore, *, batch: int = 100) -> int:
    """Collect one batch of objects that no feed shows and whose time has come; gives how many."""
    due = (
        select(Image.id)
        .where(Image.state != ImageState.ATTACHED, Image.reap_dt <= NOW)
        .order_by(Image.reap_dt)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    # Claimed by a time in the future, not by a lock held while S3 works: should this process die
    # or S3 fail, the next reaper takes them up again.
    claimed = (
        update(Image)
        .where(Image.id.in_(due))
        .values(state=ImageState.CONDEMNED, reap_dt=NOW + SETTLED)
        .returning(Image.key)
    )
    async with db.begin():
        keys = (await db.scalars(claimed)).all()
    return await discard(db, images, keys)


async def reap_forever(sessions: Sessions, images: ImageStore) -> None:
    """The service's own reaper; a failing round is logged and the next one tries again."""
    while True:
        try:
            async with sessions() as db:
                while await reap(db, images):
                    pass
        except SQLAlchemyError as error:
            log.warning("images could not be collected", error=str(error))
        except Exception:
            # A fault of ours must not end the reaper for the rest of the process's life.
            log.exception("the reaper failed")
        await asyncio.sleep(REAP_EVERY)


async def _write_pending(
    db: AsyncSession, images: ImageStore, owner: User, pictures: Sequence[Picture]
) -> list[Image]:
    rows = [
        Image(
            key=f"{PREFIX}{secrets.token_urlsafe(16)}.{picture.extension}",
            state=ImageState.PENDING,
            owner_id=owner.id,
            content_type=picture.content_type,
            bytes=picture.bytes,
            width=picture.width,
            height=picture.height,
            reap_dt=NOW + images.grace,
        )
        for picture in pictures
    ]
    if rows:
        async with db.begin():
            db.add_all(rows)
    return rows


async def _put_all(images: ImageStore, rows: Sequence[Image], pictures: Sequence[Picture]) -> None:
    failed = None
    try:
        async with asyncio.TaskGroup() as group:
            for row, picture in zip(rows, pictures, strict=True):
                group.create_task(images.put(row.key, picture))
    except* StorageUnavailable as failures:
        failed = failures.exceptions[0]
    # Raised out here: in there, Python before 3.11.4 would make a group of it again.
    if failed is not None:
        raise failed


async def _abandon(db: AsyncSession, images: ImageStore, keys: Sequence[str]) -> None:
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
        await asyncio.gather(*(images.delete(key) for key in condemned))
