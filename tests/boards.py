"""Boards as processes, each on a database and a bucket of its own, and who writes meanwhile."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from config.settings import Settings
from tests.conftest import (
    PASSWORD,
    SECRET,
    Json,
    bearer,
    empty_bucket,
    files,
    make_settings,
    own_folder,
)
from tests.pictures import annotated_png, camera_jpeg
from tests.test_cli import Board, free_port

JPEG, PNG = camera_jpeg(), annotated_png()
_numbers = itertools.count(1)


class OwnBoard(Board):
    """`feedboard` on a database and a bucket that nobody else uses; several share a port."""

    def __init__(self, folder: Any, *, port: int, database_url: str, store: Json) -> None:
        bucket = f"feedboard-test-{secrets.token_hex(6)}"
        self.store = store | {"s3_bucket": bucket}
        super().__init__(
            folder,
            DATABASE_URL=database_url,
            SECRET_KEY=SECRET,
            RESTORE_DAYS="0",
            RATE_LIMITS="off",
            ACCESS_LOG="false",
            **{name.upper(): value for name, value in self.store.items()},
        )
        self.process: Any = None
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.environment |= {"PORT": str(port), "PUBLIC_URL": self.url}

    @property
    def settings(self) -> Settings:
        return make_settings(database_url=self.environment["DATABASE_URL"], **self.store)

    async def ran(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run a command, beside whatever else goes on; gives all that it said."""
        done = await asyncio.to_thread(self.run, *arguments, **environment)
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        return said

    async def started(self) -> "OwnBoard":
        await asyncio.to_thread(self.start)
        return self

    async def stopped(self) -> None:
        assert await asyncio.to_thread(self.stop) == 0


MakeBoard = Callable[[], Awaitable[OwnBoard]]


@asynccontextmanager
async def open_boards(
    make_database: Callable[[], Awaitable[str]], store: Json
) -> AsyncGenerator[MakeBoard]:
    boards: list[OwnBoard] = []
    port = free_port()
    with own_folder() as folder:

        async def make() -> OwnBoard:
            place = folder / str(len(boards))
            place.mkdir()
            board = OwnBoard(place, port=port, database_url=await make_database(), store=store)
            boards.append(board)
            return board

        yield make
        for board in boards:
            if board.process is not None and board.process.poll() is None:
                await board.stopped()
            with contextlib.suppress(Exception):  # not all of them have made their bucket
                await empty_bucket(board.store, remove=True)


class Author:
    """A user of a board, over HTTP."""

    def __init__(self, board: Board, client: httpx.AsyncClient, user: Json) -> None:
        self.url, self.client, self.user = board.url, client, user

    @classmethod
    async def sign_up(cls, board: Board, client: httpx.AsyncClient) -> "Author":
        name = f"author{next(_numbers)}"
        account = {"email": f"{name}@example.com", "password": PASSWORD}
        known = await client.post(f"{board.url}/api/auth/signup", json=account | {"nickname": name})
        token = await client.post(f"{board.url}/api/auth/login", json=account)
        return cls(board, client, known.json() | token.json())

    async def send(self, method: str, path: str, **content: Any) -> Json:
        answer = await self.client.request(
            method, f"{self.url}/api{path}", headers=bearer(self.user), timeout=30, **content
        )
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def post(self, *images: bytes) -> Json:
        words = {"title": "T", "content": "C"}
        return await self.send("POST", "/feed/create", data=words, files=files("images", *images))

    async def delete(self, feed: Json) -> None:
        await self.send("DELETE", f"/feed/delete/{feed['id']}")


async def answers_of(board: Board, paths: list[str]) -> dict[str, Any]:
    """What anybody is told at these paths, and of each image that is named there its bytes."""
    found: dict[str, Any] = {}
    async with httpx.AsyncClient(base_url=board.url, timeout=30) as client:
        for path in paths:
            answer = await client.get(path)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            found[path] = answer.json()
            for url in urls_in(found[path]):
                image = await client.get(url)
                assert image.status_code == 200, f"{url}, which {path} names: {image.text}"
                told = ("content-type", "cache-control")
                found[url] = image.content, *(image.headers[name] for name in told)
    return found


def urls_in(document: Any) -> set[str]:
    """The addresses of images anywhere in an answer."""
    if isinstance(document, dict):
        return set().union(*map(urls_in, document.values()))
    if isinstance(document, list):
        return set().union(*map(urls_in, document))
    return {document} if isinstance(document, str) and "/images/" in document else set()


class Traffic:
    """Authors who post and delete without a pause, and outlive that the service is away."""

    def __init__(self, authors: list[Author]) -> None:
        self._authors = authors
        self.posted, self.deleted = 0, 0
        self.kept: list[Json] = []

    @asynccontextmanager
    async def flowing(self) -> AsyncGenerator["Traffic"]:
        tasks = [asyncio.create_task(self._write(author)) for author in self._authors]
        self._ending = False
        try:
            yield self
        finally:
            self._ending = True
            await asyncio.gather(*tasks)

    async def moves(self, more: int = 2) -> None:
        """Wait until so much more was posted, and deleted."""
        posted, deleted = self.posted + more, self.deleted + more
        async with asyncio.timeout(60):
            while self.posted < posted or self.deleted < deleted:
                await asyncio.sleep(0.01)

    async def _write(self, author: Author) -> None:
        while not self._ending:
            # What was under way when the service stopped may be there or not.
            with contextlib.suppress(httpx.TransportError):
                kept, gone = await author.post(JPEG), await author.post(JPEG)
                self.kept.append(kept)
                self.posted += 2
                await author.delete(gone)
                self.deleted += 1


class Nobody:
    """Watches a copy, and shows nothing."""

    def expect(self, objects: int, size: int) -> None:
        """Not asked about."""

    def advance(self, objects: int, size: int) -> None:
        """Not asked about."""


async def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)
