"""Wires to a server: a test can cut them, hold them, slow them down, and lose what passes."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from sqlalchemy.engine import URL, make_url

Connecting = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
PIECE = 65536
# So a socket that is closed says nothing but RST (SO_LINGER, on, for 0 seconds).
_AT_ONCE = struct.pack("ii", 1, 0)


class _LostError(Exception):
    """A connection has gone, and nobody is told."""


class Wire:
    """Passes bytes on between a port of its own and a server, as well as it is told to."""

    def __init__(self, connect: Connecting) -> None:
        self._connect = connect
        # What passes, passes while this is set.
        self.open = asyncio.Event()
        self.open.set()
        # Seconds that each piece takes, either way.
        self.delay = 0.0
        # How likely each piece ends its connection, with RST.
        self.resets = 0.0
        # Who passes anything meanwhile never hears again, as when the server's host has gone.
        self.black_hole = False
        self.lost = 0  # connections
        # What whoever asks is told, instead of the server's own answer.
        self.refusal = b""
        self._writers: list[asyncio.StreamWriter] = []
        self._over = asyncio.Event()

    def cut(self) -> None:
        """End all connections; new ones can be made."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def end(self) -> None:
        self.open.set()
        self._over.set()
        self.cut()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, questions = await self._connect()
        except OSError:
            _reset(writer)
            return
        self._writers += [writer, questions]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(reader, questions, writer))
                group.create_task(self._answer(answers, writer))
        except* (OSError, EOFError):
            pass
        except* _LostError:
            self.lost += 1
            questions.transport.abort()
            await self._over.wait()
        finally:
            writer.close()
            questions.close()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        questions: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(PIECE):
            if self.refusal:
                writer.write(self.refusal)
                writer.close()
                break
            await self._pass(data, questions, writer)
        questions.close()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(PIECE):
            await self._pass(data, writer, writer)
        writer.close()

    async def _pass(
        self, data: bytes, to: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        await self.open.wait()
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.black_hole:
            raise _LostError
        if random.random() < self.resets:
            _reset(client)
        to.write(data)
        await to.drain()


class PostgresWire(Wire):
    """To PostgreSQL, and can be made deaf to its notifications."""

    def __init__(self, url: str) -> None:
        self._there = make_url(url)
        super().__init__(self._to_postgres)
        # No notification passes, as through a pooler in transaction mode.
        self.deaf = False

    def url(self, port: int) -> str:
        through: URL = self._there.set(host="127.0.0.1", port=port, query={"ssl": "disable"})
        return through.render_as_string(hide_password=False)

    async def _to_postgres(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder, port = self._there.query.get("host"), self._there.port or 5432
        if isinstance(folder, str):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return await asyncio.open_connection(self._there.host, port)

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Message by message: a letter and a length (which counts itself), and the rest."""
        if not self.deaf:
            await super()._answer(answers, writer)
            return
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await answers.readexactly(5)
                rest = await answers.readexactly(int.from_bytes(head[1:]) - 4)
                if head[:1] != b"A":
                    await self._pass(head + rest, writer, writer)
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


@asynccontextmanager
async def listening(wire: Wire) -> AsyncGenerator[int]:
    """The port at which a wire begins."""
    server = await asyncio.start_server(wire.connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        wire.end()


@asynccontextmanager
async def wire_to(url: str) -> AsyncGenerator[tuple[PostgresWire, str]]:
    """A wire to this database, and the database's URL through it."""
    wire = PostgresWire(url)
    async with listening(wire) as port:
        yield wire, wire.url(port)


@asynccontextmanager
async def wire_to_store(url: str) -> AsyncGenerator[tuple[Wire, str]]:
    """A wire to this object store, and the store's URL through it."""
    place = urlsplit(url)
    wire = Wire(lambda: asyncio.open_connection(place.hostname, place.port))
    async with listening(wire) as port:
        yield wire, f"http://127.0.0.1:{port}"
