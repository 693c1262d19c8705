"""A ZIP that is sent while it is made, and is never whole anywhere here.

Python's own zipfile writes to what cannot be sought in, so that a file in it may be written by
asynchronous code, piece by piece. What stays in memory is the directory that ends a ZIP: some
hundred bytes for each file in it.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from anyio import to_thread
from pydantic_core import to_json

Write = Callable[[bytes], Awaitable[None]]
# Bytes that are gathered before they are compressed, or sent.
CHUNK = 64 * 1024


class _Pipe:
    """A file to write to, from which what was written is taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits in here for anything but to be taken."""

    def close(self) -> None:
        """Nothing is held open."""

    def take(self) -> bytes:
        taken, self._pieces, self.size = b"".join(self._pieces), [], 0
        return taken


class Archive:
    """Files one after another, each sent on as it grows; whole only after `close`."""

    def __init__(self, send: Write) -> None:
        self._send = send
        self._pipe = _Pipe()
        self._zip = ZipFile(self._pipe, "w")
        self._date = datetime.now(UTC).timetuple()[:6]

    def __contains__(self, name: str) -> bool:
        return name in self._zip.NameToInfo

    @asynccontextmanager
    async def file(self, name: str, *, compress: bool = True) -> AsyncGenerator[Write]:
        """Add a file of any length; gives what writes to it."""
        info = ZipInfo(name, self._date)
        info.compress_type = ZIP_DEFLATED if compress else ZIP_STORED
        # As nobody knows how long it becomes, its size has room for more than 4 GiB.
        with self._zip.open(info, "w", force_zip64=True) as file:

            async def write(data: bytes) -> None:
                # Waited for also when the request is cancelled: nothing is closed under it.
                await to_thread.run_sync(file.write, data)
                await self._pass_on(CHUNK)

            yield write
        await self._pass_on(CHUNK)

    async def add_text(self, name: str, text: str) -> None:
        async with self.file(name) as write:
            await write(text.encode())

    async def add_rows(self, name: str, rows: AsyncIterable[dict[str, Any]]) -> int:
        """Add a JSON array, row by row; gives how many there were."""
        number, text = 0, bytearray(b"[")
        async with self.file(name) as write:
            async for row in rows:
                text += b",\n" if number else b"\n"
                text += to_json(row)
                number += 1
                if len(text) >= CHUNK:
                    await write(bytes(text))
                    text.clear()
            await write(bytes(text) + b"\n]\n")
        return number

    async def close(self) -> None:
        """Send the directory, without which this is no ZIP."""
        await to_thread.run_sync(self._zip.close)
        await self._pass_on(0)

    async def _pass_on(self, at_least: int) -> None:
        if self._pipe.size >= at_least:
            await self._send(self._pipe.take())
