"""Load that does not wait for answers: as many requests a second as are wanted, whatever comes.

A process of its own, `python -m tests.chaos_load`, so that the test's clock is not its clock.
"""

import asyncio
import json
import sys
import time
from base64 import b64decode
from collections import Counter, deque
from itertools import cycle
from typing import Any

import httptools
import uvloop

from tests.conftest import Json

TICK = 0.005
LAST_ANSWERS = 60.0  # Seconds.


class Line(asyncio.Protocol):
    """One connection: a question at a time."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.asked: tuple[str, float] | None = None
        self.body = b""
        self.retry_after = False

    def ask(self, kind: str, data: bytes, due: float) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body, self.retry_after, self.asked = b"", False, (kind, due)
        self.transport.write(data)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.retry_after |= name.lower() == b"retry-after"

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        told = "done" if status == 200 else str(status)
        if status != 200 and self.retry_after:
            told = json.loads(self.body)["type"]
        kept, asked, self.asked = self.parser.should_keep_alive(), self.asked, None
        self.load.answered(self, asked, told, self.body)
        if kept:
            self.load.free.append(self)
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lines -= 1
        if self.asked is not None:
            self.load.answered(self, self.asked, "cut", b"")
        elif self in self.load.free:
            self.load.free.remove(self)


class Load:
    """So many lines at most, and what came of all that was asked."""

    def __init__(self, port: int, requests: list[tuple[str, bytes]], most: int) -> None:
        self._port, self._requests, self._most = port, cycle(requests), most
        self.free: deque[Line] = deque()
        self.lines = self.under_way = 0
        self.told: Counter[str] = Counter()
        self.took: dict[str, list[float]] = {}
        self.written: list[int] = []  # The ids of the feeds that were acknowledged.
        self._tasks: set[asyncio.Task[None]] = set()

    def answered(self, line: Line, asked: Any, told: str, body: bytes) -> None:
        kind, due = asked
        self.under_way -= 1
        self.told[told] += 1
        self.took.setdefault(told, []).append(time.monotonic() - due)
        if told == "done" and kind.startswith("create"):
            self.written.append(json.loads(body)["id"])

    def send(self) -> None:
        """Send the next one, on a line that is free or on a new one, if there may be one more."""
        (kind, data), due = next(self._requests), time.monotonic()
        if self.free:
            self.under_way += 1
            self.free.popleft().ask(kind, data, due)
        elif self.lines < self._most:
            self.lines += 1
            self.under_way += 1
            task = asyncio.ensure_future(self._on_a_new_line(kind, data, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.told["not sent, as all lines wait"] += 1

    async def _on_a_new_line(self, kind: str, data: bytes, due: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, line = await loop.create_connection(lambda: Line(self), "127.0.0.1", self._port)
        except OSError:
            self.lines -= 1
            self.under_way -= 1
            self.told["not connected"] += 1
        else:
            line.ask(kind, data, due)

    async def run(self, seconds: float, rate: float | None) -> None:
        """Send `rate` a second; without one, the next whenever a line is free."""
        began = time.monotonic()
        sent = 0
        while (passed := time.monotonic() - began) < seconds:
            if rate is None:
                while self.free or self.lines < self._most:
                    self.send()
            else:
                while sent < rate * passed:
                    self.send()
                    sent += 1
            await asyncio.sleep(TICK if rate else 0.001)
        async with asyncio.timeout(LAST_ANSWERS):
            while self.under_way:
                await asyncio.sleep(TICK)

    def report(self) -> Json:
        return {"told": self.told, "took": self.took, "written": self.written}


def main() -> None:
    asked = json.load(sys.stdin)
    requests = [(kind, b64decode(data)) for kind, data in asked["requests"]]

    async def run() -> Json:
        load = Load(asked["port"], requests, asked["lines"])
        await load.run(asked["seconds"], asked["rate"])
        return load.report()

    print(json.dumps(uvloop.run(run())))


if __name__ == "__main__":
    main()
