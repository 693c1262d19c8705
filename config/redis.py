"""Redis or Valkey, which share a protocol: where many processes count together."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from limits.aio.storage import RedisStorage

_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}


def redis_uri(url: str) -> str:
    """The URL as the library `limits` takes it. Raises ValueError with a sentence."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise ValueError("its host or port is malformed") from None
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return f"async+redis+{url}"
    if parts.scheme not in _SCHEMES or not parts.hostname or "," in parts.netloc:
        raise ValueError("it must be a URL such as redis://:password@host:6379/0")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    user, at, _ = parts.netloc.rpartition("@")
    scheme = f"async+{_SCHEMES[parts.scheme]}"
    return urlunsplit((scheme, f"{user}{at}{host}:{port}", parts.path, parts.query, ""))


@asynccontextmanager
async def open_redis(uri: str, prefix: str) -> AsyncGenerator[RedisStorage]:
    """A storage of counts, whose keys begin with the prefix; nothing is connected to before use."""
    # Here, as few need it: 7 MB.
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    # Who asks bounds the waiting: with a time-out of its own, redis-py sends by `asyncio.wait_for`,
    # which before Python 3.12 may swallow a cancellation, and then waits for the answer anyway.
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
    storage = RedisStorage(uri, implementation="redispy", key_prefix=prefix, **options)
    try:
        yield storage
    finally:
        await storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]
