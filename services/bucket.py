"""The bucket as it is: what lies in it, object by object, to be held against the ledger."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import structlog
from botocore.exceptions import ClientError

from config.s3 import S3Client
from config.settings import Settings
from services.store import CACHE_CONTROL, INCOMING, SHOWN, prefix

log = structlog.get_logger()


class Listed(NamedTuple):
    """An object in a listing; its key is the ledger's, without the settings' prefix."""

    key: str
    bytes: int


@dataclass(frozen=True)
class Object:
    """An object that was asked for; its age is by the store's clock."""

    content_type: str
    bytes: int
    age: timedelta


class Bucket:
    """The objects of the ledger as S3 shows them; every call raises one of `S3Error`."""

    def __init__(self, s3: S3Client, settings: Settings) -> None:
        self._s3 = s3
        self._name = settings.s3_bucket or ""
        self._prefix = prefix(settings)

    async def listing(self, advance: Callable[[int], object]) -> AsyncIterator[Listed]:
        """The objects in the order of their keys; `advance` hears how many each page brings."""
        last, ordered = "", True
        async for page in self._pages():
            entries = page.get("Contents", [])
            advance(len(entries))
            for entry in entries:
                key = entry["Key"].removeprefix(self._prefix)
                if ordered and key < last:
                    # Folders in SeaweedFS, directory buckets on AWS: slow, but no less right.
                    log.warning("the store lists in an order of its own; this takes longer")
                    ordered = False
                last = key
                yield Listed(key, entry["Size"])

    async def _pages(self) -> AsyncIterator[Any]:
        for folder in sorted([SHOWN, INCOMING]):
            listing = self._s3.get_paginator("list_objects_v2")
            prefix = self._prefix + folder
            async for page in listing.paginate(Bucket=self._name, Prefix=prefix):
                yield page

    async def look(self, key: str) -> Object | None:
        """What is under this key now."""
        try:
            head = await self._s3.head_object(Bucket=self._name, Key=self._prefix + key)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return None
            raise
        # Both times are the store's: our own clock may differ from it.
        date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return Object(head["ContentType"], head["ContentLength"], now - head["LastModified"])

    async def retype(self, key: str, content_type: str) -> None:
        """Give an object another content type: in S3 that is a copy of it onto itself."""
        await self._s3.copy_object(
            Bucket=self._name,
            Key=self._prefix + key,
            CopySource={"Bucket": self._name, "Key": self._prefix + key},
            MetadataDirective="REPLACE",
            ContentType=content_type,
            CacheControl=CACHE_CONTROL,
        )
