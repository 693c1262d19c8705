"""A board on parts of its own, with wires between that fail, and what can go wrong with it all."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from tests.chaos import Document, Row
from tests.conftest import make_settings, own_folder
from tests.crash_parts import Part, own_parts, service_in, where
from tests.crashes import Scene
from tests.wire import Wire, wire_to, wire_to_store

# Whom PostgreSQL serves at the moment, the service's own.
_OURS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'feedboard%'
"""
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_SLOW_DOWN), _SLOW_DOWN)
)


class House:
    """The parts, the wires to them, the service, its clients, and what came of each fault."""

    def __init__(
        self, database: Part, store: Part, to_database: Wire, to_store: Wire, scene: Scene
    ) -> None:
        self.database, self.store = database, store
        self.to_database, self.to_store = to_database, to_store
        self.scene = scene
        self.rows: dict[str, Row] = {}

    async def begin(self) -> None:
        await self.scene.begin()
        self.document = Document((await self.scene.http.get("/openapi.json")).json())

    async def serve_with(self, workers: int) -> None:
        # Not in this thread: the wires have to pass on what it says while it stops.
        await asyncio.to_thread(self.scene.service.serve_with, workers)
        await self.scene.service.start()

    async def close(self) -> None:
        await self.scene.http.aclose()
        await asyncio.to_thread(self.scene.service.close)

    def place(self) -> dict[str, Any]:
        """Where PostgreSQL is, as asyncpg takes it."""
        url = make_url(self.database.found)
        return {"host": url.query["host"], "user": url.username, "database": url.database}

    @asynccontextmanager
    async def no_connections(self) -> AsyncGenerator[None]:
        """All that PostgreSQL has are somebody else's."""
        held = [await asyncpg.connect(**self.place())]
        refused = 0
        try:
            while refused < 3:
                await held[0].execute(_OURS)
                try:
                    held.append(await asyncpg.connect(**self.place()))
                except asyncpg.TooManyConnectionsError:
                    refused += 1
            yield
        finally:
            await asyncio.gather(*(connection.close() for connection in held))

    @asynccontextmanager
    async def restarted(self, part: Part) -> AsyncGenerator[None]:
        """Stopped as an operator would, and at once started again."""
        part.kill(signal.SIGINT if part is self.database else signal.SIGTERM)
        await part.start()
        yield

    @asynccontextmanager
    async def worker_killed(self) -> AsyncGenerator[None]:
        self.scene.service.worker_processes()[0].kill()
        yield

    @asynccontextmanager
    async def killed(self) -> AsyncGenerator[None]:
        """Whoever watches over it starts it again where the block ends; until then it is down."""
        self.scene.service.kill()
        yield
        self.scene.service.launch()


@asynccontextmanager
async def failing(wire: Wire, **how: Any) -> AsyncGenerator[None]:
    """Have a wire be so, while the block runs."""
    before = {name: getattr(wire, name) for name in how}
    try:
        vars(wire).update(how)
        yield
    finally:
        vars(wire).update(before)


@asynccontextmanager
async def opened(seed: int) -> AsyncGenerator[House]:
    """All of it, with wires between the service and its parts."""
    with own_folder() as folder:
        async with (
            own_parts(folder) as (database, store),
            wire_to(database.found) as (to_database, database_url),
            wire_to_store(store.found.endpoint_url) as (to_store, store_url),
        ):
            external = where(database_url, store, store_url, "chaos")
            scene = Scene(service_in(folder, external), lambda: make_settings(**external), seed)
            house = House(database, store, to_database, to_store, scene)
            try:
                await house.begin()
                yield house
            finally:
                await house.close()
