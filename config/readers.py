"""A few connections to the database for statements that only read, prepared and planned once."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any

import asyncpg
from sqlalchemy import Select, make_url

from config.settings import Settings
from config.turns import Turns, Use

CONNECTIONS = 8
# Seconds that connecting, waiting for a connection, or a statement may take.
PATIENCE = 2.0
_SETTINGS = {
    "application_name": "feedboard reads",
    "default_transaction_read_only": "on",
    "statement_timeout": str(int(PATIENCE * 1000)),
    # These find some rows by an index, whatever they are asked for: no need to plan anew, which
    # takes as long as the reading itself, nor to compile.
    "plan_cache_mode": "force_generic_plan",
    "random_page_cost": "1.1",
    "jit": "off",
}


class Readers:
    """Lends its connections first come, first served, each for one statement.

    asyncpg's own pool takes a third as long for the lending as a statement takes. A statement is a
    transaction of its own and leaves nothing behind, so a connection can go from hand to hand.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._free: list[asyncpg.Connection] = []
        self._lent = 0
        # Who waits is given a connection, or None: the right to make one.
        self._turns: Turns[asyncpg.Connection | None] = Turns()

    async def fetch(
        self, statement: Select[*tuple[Any, ...]], values: Mapping[str, Any]
    ) -> list[asyncpg.Record]:
        """The rows of a statement, which is prepared if it is not yet; raises what asyncpg does."""
        sql, names = _compiled(statement)
        arguments = [values[name] for name in names]
        connection = await self._borrow()
        try:
            if connection is None:
                connection = await self._connect()
            rows: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
            return rows
        finally:
            self._give_back(connection)

    async def _borrow(self) -> asyncpg.Connection | None:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                self._lent += 1
                return connection
        if self._lent < CONNECTIONS:
            self._lent += 1
            return None
        return await self._turns.wait(PATIENCE, put_back=self._give_back)

    def _give_back(self, connection: asyncpg.Connection | None) -> None:
        usable = None if connection is None or connection.is_closed() else connection
        if self._turns.hand(usable):
            return
        self._lent -= 1
        if usable is not None:
            self._free.append(usable)

    def use(self) -> Use:
        return Use(self._lent, len(self._free), len(self._turns), CONNECTIONS)

    async def close(self) -> None:
        for connection in self._free:
            await connection.close(timeout=PATIENCE)


@lru_cache(100)
def _compiled(statement: Select[*tuple[Any, ...]]) -> tuple[str, Sequence[str]]:
    """A statement as asyncpg takes it, and the names of its values in their order."""
    compiled = statement.compile(dialect=make_url("postgresql+asyncpg://").get_dialect()())
    return str(compiled), compiled.positiontup or ()


@asynccontextmanager
async def open_readers(settings: Settings) -> AsyncGenerator[Readers]:
    """Connects when something is to be read; a connection that died is replaced."""
    url = make_url(settings.database_url or "")
    _, connecting = url.get_dialect()().create_connect_args(url)
    session: dict[str, Any] = {"timeout": PATIENCE, "command_timeout": PATIENCE}
    if settings.database_pooler:
        # Named like all others, as a pooler would rename its connection each time.
        session |= {"statement_cache_size": 0, "server_settings": {"application_name": "feedboard"}}
    else:
        session["server_settings"] = _SETTINGS
    readers = Readers(partial(asyncpg.connect, **connecting, **session))
    try:
        yield readers
    finally:
        await readers.close()
