"""Counts that expire: in this process's memory, or in a Redis or Valkey that many share.

The storages are those of the library `limits`, but for memory: its own goes through all keys each
time that it counts one (30 ms at 200 000 addresses), and has no bound.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog
from limits.aio.storage import Storage

from config.redis import open_redis

log = structlog.get_logger()
PATIENCE = 0.5  # Seconds that a request waits for Redis, at most.
PAUSE = 2.0  # Seconds in which a Redis that failed is not asked again.
MAX_KEYS = 100_000  # About 30 MB.
T = TypeVar("T")


class MemoryStorage(Storage):
    """Counts of this process; the key that was not asked about for longest goes first."""

    STORAGE_SCHEME = None  # It is not made from a URI.

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        super().__init__()
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._max_keys = max_keys

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        count, expires = self._found(key) or (0, time.time() + expiry)
        self._counts[key] = count + amount, expires
        self._counts.move_to_end(key)
        if len(self._counts) > self._max_keys:
            self._counts.popitem(last=False)
        return count + amount

    async def get(self, key: str) -> int:
        return (self._found(key) or (0, 0))[0]

    async def get_expiry(self, key: str) -> float:
        return (self._found(key) or (0, time.time()))[1]

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        keys = len(self._counts)
        self._counts.clear()
        return keys

    def _found(self, key: str) -> tuple[int, float] | None:
        found = self._counts.get(key)
        return found if found is not None and found[1] > time.time() else None


class Counters:
    """Counts in the shared storage, and for itself while that does not answer in time.

    So a Redis that is down costs nobody an answer: the limits are then each process's own.
    """

    def __init__(self, shared: Storage | None = None) -> None:
        self._own = MemoryStorage()
        self._shared = shared
        self._ask_again = 0.0
        self._failed = False

    async def add(self, key: str, seconds: int, amount: int = 1) -> int:
        """Count, and give the count; it expires that many seconds after it began."""
        return await self._ask(lambda storage: storage.incr(key, seconds, amount))

    async def get(self, key: str) -> int:
        return await self._ask(lambda storage: storage.get(key))

    async def seconds_left(self, key: str) -> float:
        """Until the count expires; 0 if there is none."""
        return await self._ask(lambda storage: storage.get_expiry(key)) - time.time()

    async def clear(self, *keys: str) -> None:
        for key in keys:
            await self._ask(lambda storage, key=key: storage.clear(key))  # type: ignore[misc]

    async def _ask(self, operation: Callable[[Storage], Awaitable[T]]) -> T:
        if self._shared is not None and time.monotonic() >= self._ask_again:
            if self._failed:
                self._ask_again = time.monotonic() + PAUSE  # One tries, and the others do not wait.
            try:
                async with asyncio.timeout(PATIENCE):
                    found = await operation(self._shared)
            except Exception as error:  # Whatever it is, a limit is not worth a failed request.
                self._give_up(error)
            else:
                self._be_back()
                return found
        return await operation(self._own)

    def _give_up(self, error: Exception) -> None:
        self._ask_again = time.monotonic() + PAUSE
        if not self._failed:
            log.error(
                "Redis does not answer; limits are counted by each process until it does",
                error=str(error) or type(error).__name__,
            )
        self._failed = True

    def _be_back(self) -> None:
        if self._failed:
            self._failed, self._ask_again = False, 0.0
            log.info("Redis answers again; limits are shared")


@asynccontextmanager
async def open_counters(uri: str | None, name: str) -> AsyncGenerator[Counters]:
    """Counters of their own, in memory or in Redis; it is no error if that cannot be reached."""
    if uri is None:
        yield Counters()
        return
    async with open_redis(uri, f"feedboard:{name}") as shared:
        yield Counters(shared)
