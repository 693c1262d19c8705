"""A wire to PostgreSQL that a test can cut, hold, or make deaf to notifications."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.engine import URL, make_url


class Wire:
    def __init__(self, url: str) -> None:
        self._there = make_url(url)
        # No notification passes, as through a pooler in transaction mode.
        self.deaf = False
        # What passes, passes while this is set.
        self.open = asyncio.Event()
        self.open.set()
        self._writers: list[asyncio.StreamWriter] = []

    def url(self, port: int) -> str:
        through: URL = self._there.set(host="127.0.0.1", port=port, query={"ssl": "disable"})
        return through.render_as_string(hide_password=False)

    def cut(self) -> None:
        """End all connections; new ones can be made."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder, port = self._there.query.get("host"), self._there.port or 5432
        if isinstance(folder, str):
            answers, questions = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        else:
            answers, questions = await asyncio.open_connection(self._there.host, port)
        self._writers += [writer, questions]
        with suppress(OSError, EOFError):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(reader, questions))
                group.create_task(self._answer(answers, writer))

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Message by message: a letter and a length (which counts itself), and the rest."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(5)
                rest = await reader.readexactly(int.from_bytes(head[1:]) - 4)
                await self.open.wait()
                if not (self.deaf and head[:1] == b"A"):
                    writer.write(head + rest)
        writer.close()


@asynccontextmanager
async def wire_to(url: str) -> AsyncGenerator[tuple[Wire, str]]:
    """A wire to this database, and the database's URL through it."""
    wire = Wire(url)
    server = await asyncio.start_server(wire.connected, "127.0.0.1", 0)
    try:
        yield wire, wire.url(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        wire.open.set()
        wire.cut()
