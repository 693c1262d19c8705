"""Batches: requests of the same moment for the same thing, carried out together.

Why: all who like one feed change one row, and each has to wait for the other's commit. One at a
time, each pays for a transaction of its own, some six messages to and fro, while the others wait,
with all connections of the pool, so that readers wait as well. The same transaction for thirty
costs little more than for one: 2.4 times the likes (`bench.likes`), and 5 times the reads beside.

How: nobody waits for company. The first request for a thing starts at once; those that come while
it is under way gather, and are the next batch. So a quiet thing is served as if there were no
batches, and the busier it is, the larger they get. A request joins only a batch that begins after
the request came, so what was answered before is seen. Things do not wait for each other.

Each process has batches of its own; the database's locks keep them apart.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[K, Asked, Answer]):
    """`carry_out` gets a thing and all that is asked of it, and gives each an answer or error."""

    def __init__(
        self, carry_out: Callable[[K, Sequence[Asked]], Awaitable[Sequence[Answer | Exception]]]
    ) -> None:
        self._carry_out = carry_out
        self._waiting: dict[K, list[tuple[Asked, asyncio.Future[Answer]]]] = {}
        self._working: set[asyncio.Task[None]] = set()

    async def ask(self, thing: K, asked: Asked) -> Answer:
        """Have this carried out with the thing's next batch; raises the error that is its answer.

        A batch that fails fails for all who are in it, and for nobody else.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if thing in self._waiting:
            self._waiting[thing].append((asked, answer))
        else:
            self._waiting[thing] = [(asked, answer)]
            # A task of nobody's own: whoever is cancelled takes nobody along.
            task = asyncio.create_task(self._work(thing))
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        return await answer

    async def _work(self, thing: K) -> None:
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        try:
            # Without those who were cancelled before it began.
            while batch := [entry for entry in self._waiting[thing] if not entry[1].done()]:
                self._waiting[thing] = []
                await self._answer(thing, batch)
        finally:
            # None are left but when the process is being stopped.
            for _, answer in (*batch, *self._waiting.pop(thing)):
                answer.cancel()

    async def _answer(self, thing: K, batch: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        results: Sequence[Answer | Exception]
        try:
            results = await self._carry_out(thing, [asked for asked, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.done():
                continue  # cancelled meanwhile
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
