"""Places where files lie, a folder or a bucket, spoken to alike: what is backed up and moved."""

from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from config.settings import Settings, SettingsError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

_SCHEME = "s3://"


def open_place(where: str, settings: Settings, *, make: bool = False) -> ObjectStore:
    """A folder, or `s3://bucket/prefix` in the store that OTHER_S3_* name: the board's, if none do.

    With `make`, a folder that is missing is made. Raises SettingsError for what is no place.
    """
    if where.startswith(_SCHEME):
        return board_place(other_board(where, settings))
    if "://" in where:
        raise SettingsError(f"{where!r} is neither a folder nor s3://bucket/folder.")
    if not make and not Path(where).is_dir():
        raise SettingsError(f"There is no folder {where!r}.")
    try:
        return LocalStore(where, mkdir=make, automatic_cleanup=True)
    except (BaseError, OSError) as error:
        raise SettingsError(f"The folder {where!r} cannot be used ({error}).") from error


def board_place(settings: Settings) -> ObjectStore:
    """The board's own bucket, below its prefix: objects lie there under the ledger's keys."""
    return _store(settings, settings.s3_bucket or "", settings.s3_key_prefix)


def other_board(where: str, settings: Settings) -> Settings:
    """Settings in which `s3://bucket/prefix` is the board's; raises SettingsError for a folder."""
    bucket, _, prefix = where.removeprefix(_SCHEME).partition("/")
    if not where.startswith(_SCHEME) or not bucket:
        raise SettingsError(f"{where!r} names no bucket; write s3://bucket or s3://bucket/folder.")
    named = {"s3_bucket": bucket, "s3_key_prefix": prefix.strip("/")}
    return _other(settings).model_copy(update=named)


def _other(settings: Settings) -> Settings:
    """Settings in which the other store is the board's, if one is named."""
    if not (settings.other_s3_endpoint_url or settings.other_s3_access_key):
        return settings
    return settings.model_copy(
        update={
            "s3_endpoint_url": settings.other_s3_endpoint_url,
            "s3_access_key": settings.other_s3_access_key,
            "s3_secret_key": settings.other_s3_secret_key,
            "s3_region": settings.other_s3_region or settings.s3_region,
        }
    )


def _store(settings: Settings, bucket: str, prefix: str) -> ObjectStore:
    endpoint, secret = settings.s3_endpoint_url, settings.s3_secret_key
    config: S3Config = {
        "region": settings.s3_region,
        "virtual_hosted_style_request": endpoint is None,
    }
    if endpoint:
        config["endpoint"] = endpoint
    if settings.s3_access_key and secret:
        config["access_key_id"] = settings.s3_access_key
        config["secret_access_key"] = secret.get_secret_value()
    client: ClientConfig = {
        "allow_http": bool(endpoint and endpoint.startswith("http:")),
        # Of a request, which carries some MiB at most, perhaps over a slow line.
        "timeout": "5m",
        "read_timeout": "30s",
    }
    return S3Store(bucket, prefix=prefix or None, config=config, client_options=client)
