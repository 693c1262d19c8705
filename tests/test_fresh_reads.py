"""Nobody reads what is older than a write that was acknowledged before: linearizability.

Writers and readers meet at the same few feeds, over HTTP. When each request began and when it was
answered is known, so it is known what a reader may be told. `FEEDBOARD_FRESH=200` (`make fresh`) is
the long form: that many writes of each writer.
"""

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import httpx
import pytest

from app.fast_reads import Reads
from models.feed import SortBy
from services.cursors import Cursor
from tests.conftest import bearer, user_maker

WRITES = int(os.environ.get("FEEDBOARD_FRESH", "12"))
LIKERS, COMERS, READERS = 3, 2, 8
NEVER = float("inf")


class Register:
    """What one writer makes of one thing, a write at a time; `ticks` orders all that happens."""

    def __init__(self, ticks, first):
        self.ticks = ticks
        self.writes = [(0, 0, first)]  # begun, acknowledged, what it is from then on

    @asynccontextmanager
    async def write(self, value) -> AsyncIterator[None]:
        begun = next(self.ticks)
        self.writes.append((begun, NEVER, value))
        yield
        self.writes[-1] = begun, next(self.ticks), value

    def possible(self, asked):
        """What a reader may be told who asked then, and is answered now: what was acknowledged
        last by then, or what was begun since."""
        last = max(n for n, (_, acknowledged, _) in enumerate(self.writes) if acknowledged < asked)
        return [value for _, _, value in self.writes[last:]]


class Board:
    """What is written and read; each answer is held against what it may be."""

    def __init__(self, client, ticks, people):
        self.client, self.ticks, self.people = client, ticks, people
        self.author, *self.likers = people
        self.feeds = {}  # the id of a feed: a register of whether it is there
        self.reads = 0
        self.done = False

    async def begin(self):
        posted = await self.send("POST", "/api/feed/create", self.author, data=WORDS)
        self.id = posted["id"]
        # A page may also begin behind this, so that all that is posted from now on is on it.
        time = datetime.fromisoformat(posted["create_dt"]) - timedelta(microseconds=1)
        self.pages = [
            *("limit=100", "limit=99", "sort_by=update_dt_desc&limit=100"),
            f"limit=100&cursor={Cursor(SortBy.CREATE_DT_ASC, time, 0).encode()}",
        ]
        self.title = Register(self.ticks, WORDS["title"])
        self.comments = Register(self.ticks, 0)
        self.likes = {user["id"]: Register(self.ticks, False) for user in self.likers}

    async def send(self, method, path, user, **sent):
        answer = await self.client.request(method, path, headers=bearer(user), **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def edit(self):
        for n in range(WRITES):
            async with self.title.write(str(n)):
                path = f"/api/feed/update/{self.id}"
                await self.send("PATCH", path, self.author, data={"title": str(n)})
            await self.read_one(self.author)

    async def like(self, user):
        for n in range(WRITES):
            async with self.likes[user["id"]].write(n % 2 == 0):
                path = f"/api/like/feed/{self.id}"
                await self.send("DELETE" if n % 2 else "PUT", path, user)
            await (self.read_page(user) if n % 3 == 0 else self.read_one(user))

    async def comment(self):
        for n in range(1, WRITES + 1):
            async with self.comments.write(n):
                words = {"feed_id": self.id, "content": "C"}
                await self.send("POST", "/api/comment/create", self.author, json=words)
            await self.read_one(None)

    async def come_and_go(self, user):
        for _ in range(WRITES // 2):
            feed = (await self.send("POST", "/api/feed/create", user, data=WORDS))["id"]
            self.feeds[feed] = Register(self.ticks, True)
            self.feeds[feed].writes = [(0, next(self.ticks), True)]
            await self.read_page(user)
            async with self.feeds[feed].write(False):
                await self.send("DELETE", f"/api/feed/delete/{feed}", user)
            await self.read_page(None)
            await self.read_one(None, feed)

    async def keep_reading(self, reader):
        while not self.done:
            kind = random.randrange(4)
            if kind == 0 and self.feeds:
                await self.read_one(reader, random.choice(list(self.feeds)))
            elif kind == 1:
                await self.read_page(reader)
            else:
                await self.read_one(reader)

    async def read_one(self, reader, feed=None):
        asked, answer = await self.ask(f"/api/feed/read/{feed or self.id}", reader)
        if feed is None:
            assert answer.status_code == 200
            self.check(asked, answer.json(), reader)
        else:
            there = {200: True, 404: False}[answer.status_code]
            assert there in self.whether_there(feed, asked)

    async def read_page(self, reader):
        page = random.choice(self.pages)
        asked, answer = await self.ask(f"/api/feed/list?{page}", reader)
        assert answer.status_code == 200
        shown = {feed["id"]: feed for feed in answer.json()}
        self.check(asked, shown[self.id], reader)
        for feed in self.feeds:
            assert (feed in shown) in self.whether_there(feed, asked), page

    async def ask(self, path, reader):
        asked = next(self.ticks)
        answer = await self.client.get(path, headers=bearer(reader) if reader else {})
        self.reads += 1
        return asked, answer

    def whether_there(self, feed, asked):
        posted = self.feeds[feed].writes[0][1]
        return [True, False] if posted > asked else self.feeds[feed].possible(asked)

    def check(self, asked, feed, reader):
        assert feed["title"] in self.title.possible(asked)
        assert feed["comment_count"] in self.comments.possible(asked)
        liked = {user: register.possible(asked) for user, register in self.likes.items()}
        fewest, most = (sum(map(pick, liked.values())) for pick in (min, max))
        assert fewest <= feed["like_count"] <= most
        if reader is None:
            assert feed["liked"] is None
        else:
            assert feed["liked"] in liked.get(reader["id"], [False])


WORDS = {"title": "T", "content": "C"}


@pytest.fixture
def _slow_wires(monkeypatch):
    """What PostgreSQL is asked, and what it answers, is under way for a while."""
    real = Reads._rows

    async def slow(*given, **values):
        await asyncio.sleep(random.choice([0, 0, 0.005]))
        rows = await real(*given, **values)
        await asyncio.sleep(random.choice([0, 0.005, 0.02]))
        return rows

    monkeypatch.setattr(Reads, "_rows", slow)


@pytest.fixture
def found(monkeypatch):
    """What the lane has answered by itself."""
    answers, real = [], Reads.find

    async def watched(*asked):
        answer = await real(*asked)
        if answer is not None:
            answers.append(answer)
        return answer

    monkeypatch.setattr(Reads, "find", watched)
    return answers


@pytest.mark.usefixtures("_slow_wires")
async def test_a_reader_sees_all_that_was_acknowledged_before_it_asked(live_server, found):
    base_url, limits = f"http://127.0.0.1:{live_server}", httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60) as client:
        sign_up = user_maker(client)
        people = [await sign_up() for _ in range(1 + LIKERS)]
        board = Board(client, itertools.count(1), people)
        await board.begin()
        async with asyncio.TaskGroup() as readers:
            for _, reader in zip(range(READERS), itertools.cycle([None, *people]), strict=False):
                readers.create_task(board.keep_reading(reader))
            async with asyncio.TaskGroup() as writers:
                writers.create_task(board.edit())
                writers.create_task(board.comment())
                for user in board.likers:
                    writers.create_task(board.like(user))
                for user in people[:COMERS]:
                    writers.create_task(board.come_and_go(user))
            board.done = True
        await board.read_one(people[1])

    print(f"{board.reads} reads, {len(found)} by the lane")  # For -s.
    assert found  # Four of five; fewer where PostgreSQL is too busy to say whose session goes on.
