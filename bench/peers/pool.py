"""The smallest pool: a few connections with statements prepared once, handed on first come."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import asyncpg

# A statement with a LIMIT to come looks cheaper to PostgreSQL when planned anew at each call, which
# takes longer than a page itself: 500 microseconds instead of 225.
SETTINGS = {"jit": "off", "plan_cache_mode": "force_generic_plan"}
Prepared = dict[str, "asyncpg.prepared_stmt.PreparedStatement"]


class Pool:
    def __init__(self) -> None:
        self._free: list[Prepared] = []
        self._waiting: deque[asyncio.Future[Prepared]] = deque()

    @asynccontextmanager
    async def opened(
        self, dsn: str, size: int, statements: Mapping[str, str]
    ) -> AsyncGenerator[None]:
        connections = []
        for _ in range(size):
            connection = await asyncpg.connect(dsn, server_settings=SETTINGS)
            connections.append(connection)
            self._free.append({k: await connection.prepare(sql) for k, sql in statements.items()})
        yield
        for connection in connections:
            await connection.close()

    async def take(self) -> Prepared:
        if self._free:
            return self._free.pop()
        turn: asyncio.Future[Prepared] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        return await turn

    def give(self, prepared: Prepared) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(prepared)
                return
        self._free.append(prepared)
