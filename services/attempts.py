"""Log-in attempts: whoever guesses passwords waits longer and longer, and locks nobody else out.

What asks a signed-in user for the password counts with them: a token that was stolen must not be a
second way to guess.

Failures are counted three ways. Of an account from an address: a few are free, then each attempt
has to wait twice as long as the one before. Of an address over all accounts, and of an account over
all addresses: the same after more failures, but not for an address from which this account has been
logged in to well, so that its owner at home is not slowed by strangers. An account that does not
exist is counted like any other.
"""

import hashlib
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from config.addresses import counted_as
from models.user import email_key
from services.counters import Counters
from services.errors import InvalidCredentials, TooManyAttempts

HOUR = 3600
LONGEST = 300  # Seconds that an attempt has to wait, at most.
FREE_OF_PAIR = 5  # Failures of one account from one address, in an hour.
FREE_OF_ADDRESS = 50
FREE_OF_ACCOUNT = 50  # More than one address can fail in an hour, as it has to wait.
KNOWN = 90 * 24 * HOUR  # How long an address counts as an account's own after a log-in from it.


@dataclass(frozen=True)
class _Count:
    """Of attempts that failed, or are under way; the waiting begins with the last free one."""

    name: str
    free: int

    @property
    def wait(self) -> str:
        return f"wait/{self.name}"


class LoginAttempts:
    """Counts attempts; without counters it does not."""

    def __init__(self, counters: Counters | None) -> None:
        self._counters = counters

    @asynccontextmanager
    async def attempt(self, email: str, address: str) -> AsyncGenerator[None]:
        """Count what is tried in the block as failed, unless it succeeds.

        Raises TooManyAttempts, before anything that costs. Attempts at the same moment are counted
        before any of them is decided, so none slips through.
        """
        if self._counters is None:
            yield
            return
        account = hashlib.blake2b(email_key(email).encode(errors="replace"), digest_size=16)
        pair = f"{account.hexdigest()}/{counted_as(address)}"
        known = f"known/{pair}"
        counts = [_Count(f"pair/{pair}", FREE_OF_PAIR)]
        if not await self._counters.get(known):
            counts.append(_Count(f"address/{counted_as(address)}", FREE_OF_ADDRESS))
            counts.append(_Count(f"account/{account.hexdigest()}", FREE_OF_ACCOUNT))
        waits = await self._begin(counts)
        try:
            yield
        except InvalidCredentials:
            raise
        except Exception:
            await self._give_back(counts, waits)  # It was no wrong password.
            raise
        await self._give_back(counts, waits)
        await self._counters.clear(counts[0].name, known)
        await self._counters.add(known, KNOWN)

    async def _begin(self, counts: list[_Count]) -> list[str]:
        """Count an attempt; gives the waits that it began. Raises TooManyAttempts."""
        assert self._counters is not None  # noqa: S101 - as asked by `attempt`
        begun: list[str] = []
        for done, count in enumerate(counts, start=1):
            failures = await self._counters.add(count.name, HOUR)
            if failures < count.free:
                continue
            # Whoever comes first begins the wait, and is let through; others have to wait for it.
            wait = min(LONGEST, 2 ** min(failures - count.free + 1, 20))
            if await self._counters.add(count.wait, wait) == 1:
                begun.append(count.wait)
                continue
            left = max(1, math.ceil(await self._counters.seconds_left(count.wait)))
            await self._give_back(counts[:done], begun)
            raise TooManyAttempts(
                f"Too many wrong passwords; try again in {left} seconds.", retry_after=left
            )
        return begun

    async def _give_back(self, counts: list[_Count], waits: list[str]) -> None:
        assert self._counters is not None  # noqa: S101 - as asked by `attempt`
        for count in counts:
            await self._counters.add(count.name, HOUR, -1)
        await self._counters.clear(*waits)
