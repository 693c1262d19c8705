"""The bucket: what puts, gives and deletes objects; which ones there are is the ledger's to say."""

import asyncio
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import BinaryIO

import structlog
from botocore.exceptions import ClientError

from config.s3 import MAX_CONNECTIONS, Loader, S3Client, S3Error, StreamingBody
from config.settings import Settings
from services.errors import (
    ImageNotFound,
    ImageTooLarge,
    NothingUploaded,
    RangeNotSatisfiable,
    StorageUnavailable,
)
from services.pictures import Cleaner, Picture
from services.variants import Variant

log = structlog.get_logger()

# Where objects lie, below the prefix of the settings: what is served, and what clients put there
# by themselves, which never is.
SHOWN, INCOMING = "images/", "incoming/"
_NAME = re.compile(r"[A-Za-z0-9_-]{16,64}\.[a-z0-9]{3,5}")
# What the store says of an object, or of a range of its bytes.
_TOLD = "content-type", "content-length", "content-range"
CACHE_CONTROL = "public, max-age=31536000, immutable"
CHUNK = 64 * 1024
# Seconds, waiting for one's turn included. botocore waits without end for a store that takes a
# connection and says nothing ("Expect: 100-continue"), so that each call gets its end here. That of
# a PUT is before the ledger forgets its row (`ledger.SETTLED`), and before the shortest grace.
PUT_PATIENCE = 45.0
READ_PATIENCE = 10.0
DELETE_PATIENCE = 5.0
# A form for a direct upload may be sent this long, any number of times; and an upload that began
# by then is held to have ended after the second.
FORM_EXPIRY = timedelta(minutes=10)
LINGER = timedelta(hours=1)


@dataclass
class StoredImage:
    """An object on its way out: status and headers for the client, and its bytes."""

    status: int
    headers: dict[str, str]
    body: StreamingBody
    turn: asyncio.Semaphore | None

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self.body.iter_chunks(CHUNK):
            yield chunk

    def close(self) -> None:
        """Give the connection to S3 back, and the turn to the next reader; once is enough."""
        self.body.close()
        if self.turn is not None:
            self.turn.release()
            self.turn = None


def prefix(settings: Settings) -> str:
    """What all keys of this board begin with in its bucket."""
    return f"{settings.s3_key_prefix}/" if settings.s3_key_prefix else ""


def key_of(name: str) -> str:
    """The key of what is served under a name; raises ImageNotFound if nothing can be."""
    if not _NAME.fullmatch(name):
        raise ImageNotFound
    return SHOWN + name


class ImageStore:
    """The bucket: puts, gives and deletes objects, a bounded number at a time."""

    def __init__(self, s3: S3Client, cleaner: Cleaner, settings: Settings) -> None:
        self._s3 = s3
        self._loader = Loader(s3)
        self._bucket = settings.s3_bucket or ""
        self._prefix = prefix(settings)
        public = settings.s3_public_url
        self._base_url = f"{public}/{self._prefix}" if public else f"{settings.base_url}/"
        self._upload_url = settings.s3_upload_url
        self._puts = asyncio.Semaphore(8)
        self._deletes = asyncio.Semaphore(8)
        # Fewer than the client has connections: slow readers leave some to everybody else.
        self._reads = asyncio.Semaphore(MAX_CONNECTIONS // 2)
        self.cleaner = cleaner
        self.max_images = settings.max_images
        self.max_bytes = settings.max_image_bytes
        self.max_pending = settings.max_pending_images
        self.max_user_bytes = settings.max_user_bytes
        self.grace = timedelta(seconds=settings.image_grace)

    def url(self, key: str) -> str:
        """Where clients load an object; the database keeps keys, so that this may change."""
        return self._base_url + key

    async def put(self, key: str, picture: Picture | Variant) -> None:
        """Write one object; raises StorageUnavailable."""
        try:
            async with asyncio.timeout(PUT_PATIENCE), self._puts:
                await self._s3.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=picture.file,
                    ContentType=picture.content_type,
                    CacheControl=CACHE_CONTROL,
                )
        except S3Error as error:
            log.error("an image could not be stored", key=key, error=repr(error))
            raise StorageUnavailable from error

    async def delete(self, key: str) -> bool:
        """Delete one object; False, and a line in the log, when S3 does not confirm it."""
        try:
            async with asyncio.timeout(DELETE_PATIENCE), self._deletes:
                await self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        except S3Error as error:
            log.warning("an image could not be deleted yet", key=key, error=repr(error))
            return False
        return True

    async def read(self, name: str, range_: str | None = None) -> StoredImage:
        """Open an object for streaming, or one range of its bytes (RFC 9110, section 14.1.2).

        It is to be closed, and until then counts as one of those that are read at a time.

        Raises ImageNotFound, RangeNotSatisfiable and StorageUnavailable.
        """
        key, wanted = self._prefix + key_of(name), {"range": range_} if range_ else {}
        try:
            async with asyncio.timeout(READ_PATIENCE):
                await self._reads.acquire()
                try:
                    status, told, body = await self._loader.load(self._bucket, key, wanted)
                except BaseException:
                    self._reads.release()
                    raise
        except ClientError as error:
            match error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"):
                case 404:
                    raise ImageNotFound from None
                case 416:
                    raise RangeNotSatisfiable from None
            raise StorageUnavailable(_UNREADABLE) from error
        except S3Error as error:
            raise StorageUnavailable(_UNREADABLE) from error
        headers = {name: told[name] for name in _TOLD if name in told}
        return StoredImage(status, headers, body, self._reads)

    async def form(self, key: str, *, content_type: str, size: int) -> tuple[str, dict[str, str]]:
        """The URL and the fields of a form that puts just this object; raises StorageUnavailable.

        Its policy binds key, content type and size (bytes), and expires (S3 API, "POST Object").
        """
        try:
            made = await self._s3.generate_presigned_post(
                self._bucket,
                self._prefix + key,
                Fields={"Content-Type": content_type},
                Conditions=[
                    {"Content-Type": content_type},
                    ["content-length-range", size, size],
                ],
                ExpiresIn=int(FORM_EXPIRY.total_seconds()),
            )
        except S3Error as error:
            raise StorageUnavailable from error
        # What is signed is the policy, not the address.
        url = f"{self._upload_url}/{self._bucket}" if self._upload_url else made["url"]
        return url, made["fields"]

    @asynccontextmanager
    async def fetched(self, key: str) -> AsyncGenerator[BinaryIO]:
        """Lend an object as a file on disk.

        Raises NothingUploaded when there is none, ImageTooLarge and StorageUnavailable.
        """
        with tempfile.TemporaryFile() as file:
            try:
                async with asyncio.timeout(PUT_PATIENCE), self._reads:
                    await self._fetch(key, file)
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    raise NothingUploaded from None
                raise StorageUnavailable from error
            except S3Error as error:
                raise StorageUnavailable from error
            yield file

    async def _fetch(self, key: str, file: BinaryIO) -> None:
        found = await self._s3.get_object(Bucket=self._bucket, Key=self._prefix + key)
        body: StreamingBody = found["Body"]
        try:
            # Bound by the form, but not every store holds to that.
            if (size := found["ContentLength"]) > self.max_bytes:
                raise ImageTooLarge(
                    f"The file has {size:,} bytes; the limit is {self.max_bytes:,} bytes."
                )
            async for chunk in body.iter_chunks(CHUNK):
                await asyncio.to_thread(file.write, chunk)
        finally:
            body.close()

    async def head(self) -> None:
        """Ask for the bucket; raises one of `S3Error` when it cannot be reached."""
        await self._s3.head_bucket(Bucket=self._bucket)


_UNREADABLE = "The image store cannot be reached. Try again shortly."
