"""Ten times the load that a service can take: what it is, and what is seen of it from outside."""

import asyncio
import contextlib
import json
import sys
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import psutil

from tests import pictures
from tests.conftest import PASSWORD, Json, bearer, files, user_maker
from tests.crash_parts import Service

# Of a hundred requests.
MIX = {
    "list": 20,
    "read": 20,
    "image": 14,
    "home": 15,
    "comments": 8,
    "like": 10,
    "comment": 5,
    "create": 4,
    "create with an image": 2,
    "log in": 2,
}
MIB = 1024 * 1024


@dataclass
class Seen:
    """What was seen from outside: seconds in which health answered, bytes of memory at most."""

    health: list[float] = field(default_factory=list)
    memory: int = 0


class Crowd:
    """A few users and their feeds, and the requests that they keep sending."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = httpx.AsyncClient(base_url=service.url, timeout=60)

    async def begin(self) -> None:
        sign_up = user_maker(self.http)
        self.users = [await sign_up() for _ in range(4)]
        self.feeds = []
        picture = pictures.jpeg(pictures.photo(1200, 900))
        for user in self.users:
            for _ in range(5):
                posted = await self.http.post(
                    "/api/feed/create",
                    data={"title": "T", "content": "C"},
                    files=files("images", picture),
                    headers=bearer(user),
                )
                self.feeds.append(posted.json())

    def request(self, kind: str, number: int) -> httpx.Request:
        feed, user = self.feeds[number % len(self.feeds)], self.users[number % len(self.users)]
        words, by = {"title": "T", "content": "C"}, bearer(user)
        small = files("images", pictures.png(pictures.photo(200, 150)))
        build, account = self.http.build_request, {"email": user["email"], "password": PASSWORD}
        said = {"feed_id": feed["id"], "content": "C"}
        return {
            "list": lambda: build("GET", "/api/feed/list"),
            "read": lambda: build("GET", f"/api/feed/read/{feed['id']}"),
            "image": lambda: build("GET", urlsplit(feed["image_urls"][0]).path),
            "home": lambda: build("GET", "/api/feed/home", headers=by),
            "comments": lambda: build("GET", f"/api/comment/feed/{feed['id']}"),
            "like": lambda: build("PUT", f"/api/like/feed/{feed['id']}", headers=by),
            "comment": lambda: build("POST", "/api/comment/create", json=said, headers=by),
            "create": lambda: build("POST", "/api/feed/create", data=words, headers=by),
            "create with an image": lambda: build(
                "POST", "/api/feed/create", data=words, files=small, headers=by
            ),
            "log in": lambda: build("POST", "/api/auth/login", json=account),
        }[kind]()

    async def load(self, *, seconds: float, rate: float | None, lines: int) -> Json:
        """Have it sent by a process of its own; gives what became of it."""
        mixed = [(kind, _raw(self.request(kind, n))) for n, (_, kind) in enumerate(_order())]
        asked = {
            "port": self.service.port,
            "requests": [(kind, b64encode(raw).decode()) for kind, raw in mixed],
            "seconds": seconds,
            "rate": rate,
            "lines": lines,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos_load"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate(json.dumps(asked).encode())
        assert process.returncode == 0
        report: Json = json.loads(said)
        return report

    async def ask_once(self, number: int) -> float:
        """Seconds in which one request succeeds, one kind after the other."""
        began = time.monotonic()
        answer = await self.http.send(self.request(list(MIX)[number % len(MIX)], number))
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began

    async def lost(self, written: Sequence[int]) -> list[int]:
        """Those feeds of which the service said that they were written, and which are not there."""
        answers = [await self.http.get(f"/api/feed/read/{number}") for number in written]
        return [it for it, read in zip(written, answers, strict=True) if read.status_code != 200]

    def memory(self) -> int:
        """Bytes."""
        found: int = psutil.Process(self.service.process.pid).memory_info().rss
        return found

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[Seen]:
        """See, twice a second, how long a stranger waits for the health of it, and its memory."""
        seen = Seen()

        async def watch() -> None:
            while True:
                began = time.monotonic()
                async with httpx.AsyncClient(base_url=self.service.url, timeout=60) as stranger:
                    assert (await stranger.get("/healthz")).status_code == 200
                seen.health.append(time.monotonic() - began)
                seen.memory = max(seen.memory, self.memory())
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        try:
            yield seen
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


def quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[int(part * (len(ordered) - 1))]


def _order() -> list[tuple[float, str]]:
    """All of the mix, each kind spread evenly."""
    return sorted(((n + 0.5) / count, kind) for kind, count in MIX.items() for n in range(count))


def _raw(request: httpx.Request) -> bytes:
    head = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n".encode()
    lines = [b"%b: %b\r\n" % header for header in request.headers.raw]
    return b"".join([head, *lines, b"\r\n", request.read()])
