"""Two real processes on one database and one bucket, as two hosts are.

What is asked of both at the same moment, over HTTP; and what both do by themselves. Beside
`test_like_races.py` and others, where two services share a process: here nothing else is shared.
"""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import insert, text

from app.capabilities import lend, open_capabilities, prepare
from app.main import create_app
from config.s3 import open_s3
from models.image import Image
from services import leaving
from tests.conftest import (
    SECRET,
    bearer,
    client_of,
    make_settings,
    own_folder,
    user_maker,
)
from tests.crash_parts import Service
from tests.mail import mail_server
from tests.test_idempotency import key
from tests.test_idempotency_races import until
from tests.test_leaving import call, leave, miscounted, post, settle

PEOPLE, TURNS = 6, 16
WISHES = {"PUT": True, "DELETE": False}


class Board:
    """Two processes of one service, and what people on it meet at."""

    def __init__(self, clients):
        self.clients = clients
        self.answered = Counter()

    async def begin(self):
        """People, and by each of the first two a feed with a comment."""
        sign_up = user_maker(self.clients[0])
        self.people = [await sign_up() for _ in range(PEOPLE)]
        self.feeds = [await self._post(author) for author in self.people[:2]]
        said = [
            await self.ask(0, author, "POST", "/api/comment/create", json=self._words(feed))
            for author, feed in zip(self.people, self.feeds, strict=False)
        ]
        self.comments = [comment["id"] for comment in said]

    async def ask(self, process, user, method, path, **sent):
        headers = bearer(user)
        answer = await self.clients[process].request(method, path, headers=headers, **sent)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        self.answered[process] += 1
        return answer.json()

    async def _post(self, author):
        words = {"title": "T", "content": "C"}
        return (await self.ask(0, author, "POST", "/api/feed/create", data=words))["id"]

    def _words(self, feed):
        return {"feed_id": feed, "content": "C"}

    async def say(self, process, user, method, kind, number):
        """Like or follow, no longer, or (PATCH) the other way round; gives what it came to."""
        path = f"/api/like/{kind}/{number}"
        if kind == "user":
            path = f"/api/follow/{number}"
        elif method == "PATCH":
            path = f"/api/like/?{kind}_id={number}"
        told = await self.ask(process, user, method, path)
        so = told.get("liked", told.get("followed", told.get("action") == "followed"))
        assert so == WISHES.get(method, so), (method, path, told)
        return so

    def things(self, user):
        others = [person["id"] for person in self.people[:3] if person is not user]
        kinds = {"feed": self.feeds, "comment": self.comments, "user": others}
        return [(kind, number) for kind, numbers in kinds.items() for number in numbers]

    async def so(self):
        """All that is so: who likes or follows what. Every count is held against it."""
        found = Counter()
        for feed in self.feeds:
            path = f"/api/like/feed/{feed}?limit=100"
            likers = [liker["user_id"] for liker in await self.ask(0, self.people[0], "GET", path)]
            found.update((liker, "feed", feed) for liker in likers)
            for user in self.people:
                shown = await self.ask(1, user, "GET", f"/api/feed/read/{feed}")
                assert shown["like_count"] == len(likers)
                assert shown["liked"] == (user["id"] in likers)
        found.update(await self._likes_of_comments())
        found.update(await self._follows())
        assert set(found.values()) <= {1}, "somebody is listed twice"
        return set(found)

    async def _likes_of_comments(self):
        """Nobody is told who likes a comment, but whether oneself does."""
        liked, counts = [], {}
        for user in self.people:
            for feed in self.feeds:
                for comment in await self.ask(0, user, "GET", f"/api/comment/feed/{feed}"):
                    counts[comment["id"]] = comment["like_count"]
                    liked += [(user["id"], "comment", comment["id"])] * comment["liked"]
        likes = Counter(number for _, _, number in liked)
        assert counts == {number: likes[number] for number in self.comments}
        return liked

    async def _follows(self):
        lists = {"followers": [], "followings": []}
        for user in self.people:
            profile = await self.ask(1, user, "GET", f"/api/user/{user['id']}")
            for name, pairs in lists.items():
                path = f"/api/mypage/{user['id']}/{name}?limit=100"
                others = [other["user_id"] for other in await self.ask(0, user, "GET", path)]
                assert profile[f"{name[:-1]}_count"] == len(others)
                pairs += [(user["id"], other) for other in others]
        follows = [(by, "user", of) for of, by in lists["followers"]]
        assert sorted((by, of) for by, _, of in follows) == sorted(lists["followings"])
        return follows


@pytest.fixture(scope="module")
async def board(make_database, store):
    """On two ports; both start at once, on an empty database."""
    external = {"database_url": await make_database(), "secret_key": SECRET} | store
    environment = {name.upper(): str(value) for name, value in external.items()}
    async with AsyncExitStack() as stack:
        services = []
        for _ in range(2):
            services.append(Service(stack.enter_context(own_folder()), **environment))
            stack.callback(services[-1].close)
        await asyncio.gather(*(service.start() for service in services))
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=service.url, timeout=30))
            for service in services
        ]
        board = Board(clients)
        await board.begin()
        yield board
        assert [service.own_faults() for service in services] == [[], []]


async def test_whatever_many_do_at_once_is_counted_as_it_is(board):
    """Everybody goes through both processes at once."""
    board.answered.clear()

    async def work(process, user):
        for _ in range(TURNS):
            method = random.choice(["PUT", "DELETE", "PATCH"])
            await board.say(process, user, method, *random.choice(board.things(user)))

    await asyncio.gather(*(work(process, user) for user in board.people for process in (0, 1)))

    assert board.answered == dict.fromkeys((0, 1), PEOPLE * TURNS)
    await board.so()


async def test_who_toggles_twice_leaves_what_was(board):
    """One after the other, by turns through both processes, while the others do the same."""
    before = await board.so()

    async def work(user):
        for thing in board.things(user):
            was = (user["id"], *thing) in before
            came_to = [await board.say(turn % 2, user, "PATCH", *thing) for turn in range(4)]
            assert came_to == [not was, was] * 2

    await asyncio.gather(*map(work, board.people))

    assert await board.so() == before


async def test_no_toggle_is_lost_between_two_processes(board):
    """One person's toggles of one thing, all at once: as many each way, and then one more."""
    user, before = board.people[-1], await board.so()

    for thing in board.things(user):
        was = (user["id"], *thing) in before
        turns = await asyncio.gather(
            *(board.say(turn % 2, user, "PATCH", *thing) for turn in range(13))
        )
        assert Counter(turns) == {was: 6, not was: 7}

    assert {thing[1:] for thing in await board.so() ^ before} == set(board.things(user))


async def test_ten_twins_through_two_processes_are_one_write(board):
    user, before = board.people[0], board.answered.total()
    for _ in range(3):
        said = {"json": board._words(board.feeds[0]), "headers": bearer(user) | key()}
        twins = [board.clients[n % 2].post("/api/comment/create", **said) for n in range(10)]
        answers = await asyncio.gather(*twins)

        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
    shown = await board.ask(1, user, "GET", f"/api/feed/read/{board.feeds[0]}")
    assert shown["comment_count"] == 4
    assert board.answered.total() == before + 1


@asynccontextmanager
async def working(settings):
    """A service that is asked in here, and does nothing by itself."""
    await prepare(settings)
    app = create_app(settings)
    async with open_capabilities(settings) as able, client_of(app) as client:
        lend(app, able)
        yield able, client


async def make_due(able, client, s3, bucket, monkeypatch):
    """Have mails to send, objects to collect and an account to erase; gives the objects' keys, all
    people, and who of them has left."""
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    sign_up = user_maker(client)
    people = [await sign_up() for _ in range(12)]
    ada, leaver = people[:2]
    await settle(client, leaver, ada)
    for _ in range(20):
        kept = await post(client, ada)
        await call(client, leaver, "PUT", f"/api/like/feed/{kept['id']}")
    assert (await leave(client, leaver)).json()["complete"] is False
    left = [f"images/left-over-{n}.png" for n in range(250)]
    await asyncio.gather(*(s3.put_object(Bucket=bucket, Key=it, Body=b"x") for it in left))
    async with able.sessions() as db, db.begin():
        of_ada = {"owner_id": ada["id"], "state": "condemned", "content_type": "image/png"}
        of_ada |= {"bytes": 1, "width": 1, "height": 1, "reap_dt": datetime.now(UTC)}
        await db.execute(insert(Image), [{"key": it, **of_ada} for it in left])
    return left, people, leaver


async def test_what_two_processes_do_by_themselves_is_done_once(
    make_database, seaweedfs, monkeypatch
):
    """Reaper, eraser and postman of both are held up, and let go at the same moment."""
    bucket = "two-processes"
    own = {"database_url": await make_database(), "s3_bucket": bucket}
    settings = make_settings(**own, **seaweedfs)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(mail_server())
        able, client = await stack.enter_async_context(working(settings))
        s3 = await stack.enter_async_context(open_s3(settings))
        # Each deletion leaves a marker.
        versions = {"VersioningConfiguration": {"Status": "Enabled"}}
        await s3.put_bucket_versioning(Bucket=bucket, **versions)
        left, people, leaver = await make_due(able, client, s3, bucket, monkeypatch)
        given = own | seaweedfs | {"secret_key": SECRET, "mail_from": "board@example.com"}
        given |= {"smtp_url": f"smtp://127.0.0.1:{server.port}"}
        environment = {name.upper(): str(value) for name, value in given.items()}
        services = []
        for _ in range(2):
            services.append(Service(stack.enter_context(own_folder()), **environment))
            stack.callback(services[-1].close)
        async with able.sessions() as db, db.begin():
            await db.execute(text("LOCK TABLE images, mails IN EXCLUSIVE MODE"))
            await asyncio.gather(*(service.start() for service in services))
            await until(lambda: waiting(able, 6))
        await until(lambda: all_is_done(able))

        markers = (await s3.list_object_versions(Bucket=bucket))["DeleteMarkers"]
        deletions = Counter(marker["Key"] for marker in markers)
        assert set(deletions) >= set(left)
        assert set(deletions.values()) == {1}
        here = [it["email"] for it in people if it is not leaver]
        assert sorted(server.recipients) == sorted(here)
        assert await miscounted(able.sessions) == []
        assert [service.complaints() for service in services] == [[], []]


async def waiting(able, number):
    """Whether so many statements wait for a lock."""
    asked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with able.reading() as db, db.begin():
        return await db.scalar(text(asked)) >= number


async def all_is_done(able):
    left = """
        SELECT (SELECT count(*) FROM images WHERE state <> 'attached')
        + (SELECT count(*) FROM mails WHERE done_dt IS NULL)
        + (SELECT count(*) FROM users WHERE leaving_dt IS NOT NULL)"""
    async with able.reading() as db, db.begin():
        return await db.scalar(text(left)) == 0
