"""The fast lane where PostgreSQL fails, hangs, starts anew or changes: it waits for a while, leaves
what it cannot answer to the plain way, and is back by itself."""

import asyncio
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import text

from app import fast_reads
from app.capabilities import prepare
from app.fast_reads import Reads
from app.main import create_app
from config.readers import CONNECTIONS
from tests.conftest import bearer, client_of, own_folder, user_maker
from tests.crash_parts import database_in
from tests.test_problems import assert_problem

WORDS = {"title": "T", "content": "C"}
# It is back within two seconds; a machine that does much else may need some more (seconds).
HEALS = 10.0


class Read(NamedTuple):
    asked: float
    answered: float
    answer: httpx.Response
    by_lane: bool


# What the lane found for the request at hand.
FOUND: ContextVar[list[object]] = ContextVar("FOUND")


class Board:
    """A service with some feeds, and what became of each read: when, where, and how it ended."""

    def __init__(self, app, client):
        self.app, self.client = app, client
        self.ids, self.answers = [], []

    async def begin(self, feeds):
        self.author = await user_maker(self.client)()
        for _ in range(feeds):
            sent = {"data": WORDS, "headers": bearer(self.author)}
            posted = await self.client.post("/api/feed/create", **sent)
            self.ids.append(posted.json()["id"])

    def paths(self):
        one = [f"/api/feed/read/{feed_id}" for feed_id in self.ids]
        return one + [f"/api/feed/list?limit={n + 1}" for n in range(len(self.ids))]

    async def read(self, path):
        asked, found = time.monotonic(), []
        FOUND.set(found)
        answer = await self.client.get(path)
        self.answers.append(Read(asked, time.monotonic(), answer, by_lane=bool(found)))
        return answer

    async def read_all(self):
        return await asyncio.gather(*map(self.read, self.paths()))

    @asynccontextmanager
    async def being_read(self, readers=8):
        """By so many, all the time that the block takes."""

        async def keep_reading(reader):
            while True:
                for path in self.paths()[reader:] + self.paths()[:reader]:
                    await self.read(path)

        tasks = [asyncio.create_task(keep_reading(reader)) for reader in range(readers)]
        try:
            await self.answered(20)
            yield
        finally:
            for task in tasks:
                task.cancel()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(done, asyncio.CancelledError), done

    async def answered(self, number):
        """Wait until so many more have their answer."""
        goal = len(self.answers) + number
        async with asyncio.timeout(60):
            while len(self.answers) < goal:
                await asyncio.sleep(0.01)

    async def healed(self):
        """Wait until the lane answers what is read; gives the seconds that it took."""
        began = time.monotonic()
        async with asyncio.timeout(60):
            while True:
                answers = await self.read_all()
                last = [read for read in self.answers if read.answer in answers]
                if all(read.by_lane and read.answer.status_code == 200 for read in last):
                    return time.monotonic() - began
                await asyncio.sleep(0.02)

    def statuses(self):
        return Counter(read.answer.status_code for read in self.answers)


@asynccontextmanager
async def opened(settings, *, feeds=5, **changes):
    """The whole service, with some settings changed."""
    own = settings.replace(**changes)
    await prepare(own)
    app = create_app(own)
    async with app.router.lifespan_context(app), client_of(app) as client:
        board = Board(app, client)
        await board.begin(feeds)
        yield board


@pytest.fixture(autouse=True)
def _telling(monkeypatch):
    """The lane tells what it finds."""
    real = Reads.find

    async def telling(reads, *asked):
        answer = await real(reads, *asked)
        if answer is not None:
            FOUND.get([]).append(answer)
        return answer

    monkeypatch.setattr(Reads, "find", telling)


@pytest.fixture(scope="module")
async def lasting_board(settings, make_database):
    limits = {"rate_limits": "read=1000000/day"}
    async with opened(settings, database_url=await make_database(), **limits) as board:
        yield board


@pytest.fixture
async def board(lasting_board):
    """With nothing read yet, and the lane at work."""
    await lasting_board.healed()
    lasting_board.answers.clear()
    return lasting_board


async def connections(board):
    """The lane's own, as PostgreSQL numbers them."""
    found = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND "
    async with board.app.state.sessions() as db, db.begin():
        pids = await db.scalars(text(found + "application_name = 'feedboard reads'"))
        return list(pids)


async def execute(board, *statements):
    async with board.app.state.sessions() as db, db.begin():
        for statement in statements:
            await db.execute(text(statement))


async def test_connections_that_are_killed_are_replaced_and_nobody_notices(board):
    await board.read_all()
    async with board.being_read():
        for _ in range(5):
            async with asyncio.timeout(30):
                while not (killed := await connections(board)):
                    await asyncio.sleep(0.01)
            await execute(board, f"SELECT pg_terminate_backend(pid) FROM unnest(ARRAY{killed}) pid")
            await board.answered(30)

    assert set(board.statuses()) == {200}
    assert await board.healed() < HEALS
    assert not set(await connections(board)) & set(killed)


async def test_a_connection_that_was_killed_while_it_lay_idle_is_replaced(board):
    await board.read_all()
    killed = await connections(board)
    await execute(board, f"SELECT pg_terminate_backend(pid) FROM unnest(ARRAY{killed}) pid")

    assert {answer.status_code for answer in await board.read_all()} == {200}
    assert await board.healed() < HEALS


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("ALTER TABLE feeds ADD COLUMN x int DEFAULT 1", "ALTER TABLE feeds DROP COLUMN x"),
        ("ALTER TABLE feeds ALTER title TYPE text", "ALTER TABLE feeds ALTER title TYPE varchar"),
        (
            "ALTER TABLE feeds ALTER like_count TYPE bigint",
            "ALTER TABLE feeds ALTER like_count TYPE integer",
        ),
        ("DROP INDEX ix_images_feed_id_position", None),
        ("ALTER TABLE users RENAME TO people", "ALTER TABLE people RENAME TO users"),
    ],
)
async def test_a_schema_that_changes_is_noticed(board, there, back):
    before = [answer.content for answer in await board.read_all()]
    async with board.being_read():
        for statement in filter(None, (there, back)):
            await execute(board, statement)
            if "RENAME" not in statement:
                await board.answered(30)
                assert await board.healed() < HEALS

    assert await board.healed() < HEALS
    assert [answer.content for answer in await board.read_all()] == before
    if "RENAME" not in there:
        assert set(board.statuses()) == {200}


async def test_whoever_goes_disturbs_nobody_who_shares_the_statement(board):
    reads, page = board.app.state.reads, fast_reads._page(b"limit=2").wanted
    wanted = [*board.ids, page] * 4
    for turns in range(6):
        tasks = [asyncio.create_task(reads.find(asked, None)) for asked in wanted]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()

        left = await asyncio.gather(*tasks, return_exceptions=True)

        gone, stayed = left[::3], [it for n, it in enumerate(left) if n % 3]
        assert {type(it) for it in gone} == {asyncio.CancelledError}
        assert {type(it) for it in stayed} == {fast_reads.Answer}
    async with asyncio.timeout(10):
        while board.app.state.reads._readers._lent:
            await asyncio.sleep(0.01)


async def test_who_finds_no_connection_free_does_not_wait_for_ever(board):
    readers = board.app.state.reads._readers
    held = [await readers._borrow() for _ in range(CONNECTIONS)]
    began = time.monotonic()
    async with asyncio.timeout(30):
        answers = await board.read_all()
    waited = time.monotonic() - began
    for connection in held:
        readers._give_back(connection)

    assert {answer.status_code for answer in answers} == {200}
    assert waited < 15
    assert await board.healed() < HEALS


async def test_a_statement_that_takes_too_long_is_given_up_for_the_plain_way(board):
    """Somebody holds a lock that keeps all from reading, but not for ever."""
    await board.read_all()
    async with board.app.state.sessions() as db, db.begin():
        await db.execute(text("LOCK TABLE feeds"))
        reading = asyncio.create_task(board.read_all())
        await asyncio.sleep(3)
        assert not reading.done()
    answers = await reading

    assert {answer.status_code for answer in answers} == {200}
    assert await board.healed() < HEALS


async def test_each_request_counts_once_whichever_way_it_goes(board, monkeypatch):
    feed = board.ids[0]
    tag = (await board.read(f"/api/feed/read/{feed}")).headers["etag"]

    def left(answer):
        return int(answer.headers["ratelimit"].partition(";r=")[2].partition(";")[0])

    before = left(await board.read("/api/feed/list"))
    asked = [
        (f"/api/feed/read/{feed}", {}, 200),
        (f"/api/feed/read/{feed}", {"If-None-Match": tag}, 304),
        ("/api/feed/read/999999", {}, 404),
        ("/api/feed/list?limit=0", {}, 422),
        ("/api/feed/list", {"Authorization": "Bearer x"}, 401),
        ("/api/feed/list?total=true", {}, 200),
        ("/api/feed/list", {}, 200),
    ]
    for n, (path, headers, status) in enumerate(asked, 1):
        answer = await board.client.get(path, headers=headers)
        assert answer.status_code == status
        assert left(answer) == before - n

    monkeypatch.setattr(board.app.state.reads, "_readers", None)  # It fails, whatever it is asked.
    for n in range(2):
        answer = await board.read("/api/feed/list")
        assert answer.status_code == 200
        assert left(answer) == before - len(asked) - 1 - n


@pytest.fixture
async def database():
    """A PostgreSQL of the test's own, to be killed and stopped."""
    with own_folder() as folder:
        part = database_in(folder)
        await part.start()
        try:
            yield part
        finally:
            await part.stop()


def assert_documented(answer):
    assert_problem(answer, answer.json()["type"].removeprefix("/problems/"))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_a_database_that_starts_anew_is_found_again(settings, database, how):
    own = {"database_url": database.found, "request_timeout": 10}
    async with opened(settings, **own) as board, board.being_read():
        async with database.dead(how):
            await board.answered(50)
        back = time.monotonic()
        healed = await board.healed()

    refused = [read for read in board.answers if read.answer.status_code != 200]
    assert refused
    for read in refused:
        assert_documented(read.answer)
    last = max(read.asked for read in refused) - back
    print(f"last refused {last:.2f} s, lane back {healed:.2f} s after it, {board.statuses()}")
    assert max(last, healed) < HEALS


async def test_a_database_that_hangs_lets_nobody_wait_for_long_and_is_found_again(
    settings, database
):
    own = {"database_url": database.found, "request_timeout": 3}
    async with opened(settings, feeds=40, **own) as board:
        await board.healed()
        async with database.hanging():
            answers = await board.read_all()
            again = await board.read_all()
        healed = await board.healed()

    for answer in answers + again:
        assert_documented(answer)
    longest = max(read.answered - read.asked for read in board.answers)
    print(f"waited {longest:.2f} s, back after {healed:.2f} s")  # For -s.
    assert longest < 14
    assert healed < HEALS
