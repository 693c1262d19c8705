"""A gate between the service and PostgreSQL, which can stop a commit on its way, or its answer.

So a service can be killed just before what it wrote is there, or just before it hears that it is,
with nothing in the service that knows of it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.engine import make_url

COMMIT, COMMITTED = b"COMMIT;\0", b"COMMIT\0"  # As asyncpg asks, and as PostgreSQL answers.


class CommitGate:
    """Speaks for the database of `behind`, at the address `url`."""

    def __init__(self, behind: str) -> None:
        self._behind = make_url(behind)
        self.url = ""
        self.held = asyncio.Event()
        self._stops: bytes | None = None
        self._write = b""
        self._passing: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def stop(self, what: bytes, write: bytes) -> None:
        """Let the next commit after a statement not pass (COMMIT), or not be answered (COMMITTED).

        It is to be the first such statement of its connection: later ones are told without words.
        """
        self._stops, self._write = what, write
        self.held.clear()

    def open(self) -> None:
        self._stops = None

    async def close(self) -> None:
        """Cut all who are still connected."""
        for writer in self._passing.values():
            writer.transport.abort()
        await asyncio.gather(*self._passing)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing[task] = writer
        host, port = self._behind.query.get("host", ""), self._behind.query.get("port", "5432")
        if host:
            inner = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            inner = await asyncio.open_connection(self._behind.host, self._behind.port or 5432)
        writes = asyncio.Event()
        try:
            await asyncio.gather(
                self._pass(reader, inner[1], COMMIT, writes),
                self._pass(inner[0], writer, COMMITTED, writes),
            )
        finally:
            for closing in (writer, inner[1]):
                closing.transport.abort()
                with suppress(ConnectionError):
                    await closing.wait_closed()
            del self._passing[task]

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        commit: bytes,
        writes: asyncio.Event,
    ) -> None:
        """Pass on what comes, until one that is to be stopped; end when the sender does."""
        stopped = False
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self._stops and self._write in data:
                    writes.set()
                if commit == self._stops and commit in data and writes.is_set():
                    stopped = True
                    self.held.set()
                if not stopped:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def commit_gate(database_url: str) -> AsyncGenerator[CommitGate]:
    """Lend a gate in front of a database."""
    gate = CommitGate(database_url)
    server = await asyncio.start_server(gate.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = make_url(database_url).set(host="127.0.0.1", port=port, query={})
    gate.url = url.render_as_string(hide_password=False)
    try:
        yield gate
    finally:
        server.close()
        await gate.close()
