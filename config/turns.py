"""Whose turn it is: what is given back goes to who has waited longest."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Use(NamedTuple):
    """How much of a bounded thing is in use, lies ready, and is waited for; and its bound."""

    used: int
    idle: int
    waiting: int
    limit: int


class Turns(Generic[T]):
    """Those who wait for a thing of some kind, first come, first served.

    Left to whoever comes first, some wait many times as long as others where there are more who
    want than there is to have.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[T]] = deque()

    def __len__(self) -> int:
        return sum(not turn.done() for turn in self._waiting)

    def hand(self, thing: T) -> bool:
        """Give it to who has waited longest; False if nobody waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(thing)
                return True
        return False

    async def wait(self, seconds: float | None, *, put_back: Callable[[T], None]) -> T:
        """Wait to be given one; raises TimeoutError.

        One that comes in the very moment in which the waiting ends is put back.
        """
        turn: asyncio.Future[T] = asyncio.Future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                put_back(turn.result())
            raise
