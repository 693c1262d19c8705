"""The one S3 client of the process, for AWS and for every store that speaks its protocol."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.response import StreamingBody
from aiohttp import ClientPayloadError
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import BotoCoreError, ClientError

from config.settings import Settings, SettingsError

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.literals import BucketLocationConstraintType
else:
    S3Client = object

__all__ = [
    "MAX_CONNECTIONS",
    "Loader",
    "S3Client",
    "S3Error",
    "StreamingBody",
    "open_s3",
    "require_bucket",
]

MAX_CONNECTIONS = 512
# Bytes of an answer that wait here for a slow reader, at most twice that.
READ_BUFFER = 64 * 1024
# Seconds for which the address of an object is good: as far as clocks may be apart, too.
_EXPIRY = 900
# What a call to the store raises when the store is at fault, or is not there.
# An answer that breaks off halfway comes as aiohttp's own.
S3Error = (BotoCoreError, ClientError, OSError, ClientPayloadError)


class _Session(AIOHTTPSession):
    """Holds less of each answer than aiohttp would, so that many slow readers cost little."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)  # type: ignore[misc]
        # aiobotocore has no setting for it; aiohttp's own is 256 KiB.
        session._read_bufsize = READ_BUFFER
        return session


@cache
def _session(access_key: str | None, secret: str | None, region: str) -> aioboto3.Session:
    # It keeps the description of S3, which takes 10 MB and half of the time to make a client.
    return aioboto3.Session(
        aws_access_key_id=access_key, aws_secret_access_key=secret, region_name=region
    )


@asynccontextmanager
async def open_s3(settings: Settings) -> AsyncGenerator[S3Client]:
    """One S3 client for the process's life; making one per call is most of an upload's time."""
    secret = settings.s3_secret_key
    session = _session(
        settings.s3_access_key, secret.get_secret_value() if secret else None, settings.s3_region
    )
    own = settings.s3_endpoint_url is not None
    config = AioConfig(
        connect_timeout=3,
        read_timeout=15,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=MAX_CONNECTIONS,
        http_session_cls=_Session,
        signature_version="s3v4",  # also of forms, which botocore would sign as in 2010
        # Stores other than AWS know the path style, and seldom the newer trailing checksums.
        s3={"addressing_style": "path" if own else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    async with session.client("s3", endpoint_url=settings.s3_endpoint_url, config=config) as client:
        yield client


class Loader:
    """Loads objects by addresses that the client signs, over its connections.

    What its `get_object` does around that costs as much as passing on an image does.
    """

    def __init__(self, s3: S3Client) -> None:
        self._s3 = s3
        # It has the pool of connections, and heeds the environment's proxies and certificates.
        self._http: AIOHTTPSession = s3._endpoint.http_session  # type: ignore[attr-defined]

    async def load(
        self, bucket: str, key: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], StreamingBody]:
        """Status (200 or 206), headers by their names in lower case, and body, to be closed.

        Whatever else the store says is left to `get_object`: it tries again, and raises its
        errors, which are `S3Error`s.
        """
        named: Any = {"Bucket": bucket, "Key": key}
        url = await self._s3.generate_presigned_url("get_object", named, _EXPIRY)
        asked: Any = headers
        request: Any = AWSPreparedRequest("GET", url, asked, None, stream_output=True)
        try:
            response = await self._http.send(request)
        except S3Error:
            response = None
        if response is not None and response.status_code in (200, 206):
            length: Any = response.headers.get("content-length")
            return response.status_code, response.headers, StreamingBody(response.raw, length)
        if response is not None:
            response.raw.close()
        if "range" in headers:
            named["Range"] = headers["range"]
        found = await self._s3.get_object(**named)
        told = found["ResponseMetadata"]
        return told["HTTPStatusCode"], told["HTTPHeaders"], found["Body"]


async def require_bucket(s3: S3Client, settings: Settings) -> None:
    """See that the bucket is there; on an endpoint of one's own a missing one is created.

    Raises SettingsError, naming the bucket, where it is missing, forbidden or out of reach.
    """
    bucket, where = settings.s3_bucket or "", settings.s3_endpoint_url or "AWS"
    try:
        await s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status != 404:
            raise SettingsError(
                f"S3_BUCKET: the bucket {bucket!r} at {where} refuses these keys ({status}); "
                "check S3_ACCESS_KEY and S3_SECRET_KEY, and that they may use the bucket."
            ) from error
        if settings.s3_endpoint_url is None:
            raise SettingsError(
                f"S3_BUCKET: there is no bucket {bucket!r} on AWS in {settings.s3_region}; "
                "create it, or mend S3_BUCKET or S3_REGION."
            ) from error
        await _create(s3, bucket, settings.s3_region)
    except S3Error as error:
        raise SettingsError(f"S3_ENDPOINT_URL: {where} cannot be reached ({error}).") from error


async def _create(s3: S3Client, bucket: str, region: "BucketLocationConstraintType | str") -> None:
    try:
        # us-east-1 is the one region that must not be named as a location (S3 API, CreateBucket).
        if region == "us-east-1":
            await s3.create_bucket(Bucket=bucket)
        else:
            await s3.create_bucket(
                Bucket=bucket,
                CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
            )
    except s3.exceptions.BucketAlreadyOwnedByYou:
        pass  # another process was quicker
    except S3Error as error:
        raise SettingsError(
            f"S3_BUCKET: the bucket {bucket!r} cannot be created: {error}"
        ) from error
