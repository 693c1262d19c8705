"""A service that dies between a write and its answer, or before the write, still writes once.

The service is a process of its own, killed with SIGKILL while its commit, or PostgreSQL's answer to
it, is held on the way; then another is started, and the client sends its request again.
"""

import asyncio

import httpx
import pytest
from sqlalchemy import func, select, update

from app.capabilities import prepare
from config.db import open_engine, session_factory
from config.s3 import open_s3
from models.base import NOW
from models.comment import Comment
from models.feed import Feed
from models.idempotency import IdempotencyKey
from models.image import Image, ImageState
from models.like import FeedLike
from services import idempotency
from tests import pictures
from tests.commit_gate import COMMIT, COMMITTED, commit_gate
from tests.conftest import SECRET, bearer, keys_in, own_folder, user_maker
from tests.crash_parts import Service
from tests.test_idempotency import REPLAYED, form, key, lasting
from tests.test_problems import assert_problem


class Board:
    """A service that can be killed, its gate, and what is stored behind it."""

    def __init__(self, service, gate, settings, sessions):
        self.service, self.gate, self.settings = service, gate, settings
        self.sessions, self.client = sessions, None

    async def start(self):
        if self.client is not None:
            await self.client.aclose()
        await self.service.start()
        self.client = httpx.AsyncClient(base_url=self.service.url, timeout=30)

    async def sign_up(self):
        await self.start()
        user = await user_maker(self.client)()
        self.headers = bearer(user)
        said = await self.client.post(
            "/api/feed/create", data={"title": "T", "content": "C"}, headers=self.headers
        )
        self.feed = said.json()["id"]

    def requests(self):
        """What is sent: a form with an image, JSON, and what undoes itself when it comes twice; and
        what of SQL writes it."""
        sent = form("boundary")
        comment = {"feed_id": self.feed, "content": "Hear, hear"}
        kind = sent["headers"]
        return [
            ("POST", "/api/feed/create", {"content": sent["content"]}, kind, b"INTO feeds "),
            ("POST", "/api/comment/create", {"json": comment}, {}, b"INTO comments "),
            ("PATCH", f"/api/like/?feed_id={self.feed}", {}, {}, b"INTO feed_likes "),
        ]

    async def die(self, ask, moment, write):
        """Kill the service while it carries a request out, at that moment; start it again."""
        self.gate.stop(moment, write)
        asked = asyncio.create_task(ask())
        await asyncio.wait_for(self.gate.held.wait(), 20)
        self.service.kill()
        with pytest.raises(httpx.TransportError):
            await asked
        self.gate.open()
        await self.start()

    async def counted(self):
        """How many feeds, comments, likes, shown images and objects there are."""
        counts = [
            select(func.count()).select_from(Feed),
            select(func.count()).select_from(Comment),
            select(func.count()).select_from(FeedLike),
            select(func.count()).where(
                Image.state == ImageState.ATTACHED, Image.original_id.is_(None)
            ),
        ]
        async with self.sessions() as db, db.begin():
            return [await db.scalar(count) for count in counts]

    async def objects(self):
        async with open_s3(self.settings) as s3:
            return len(await keys_in(s3, self.settings))

    async def wait_for_the_lease(self):
        """What is claimed was claimed that long ago."""
        aged = update(IdempotencyKey).where(IdempotencyKey.status.is_(None))
        async with self.sessions() as db, db.begin():
            await db.execute(aged.values(create_dt=NOW - idempotency.LEASE))


@pytest.fixture
async def board(make_database, settings, store):
    database = await make_database()
    settings = settings.replace(database_url=database)
    await prepare(settings)
    with own_folder() as folder:
        async with commit_gate(database) as gate, open_engine(settings) as engine:
            given = {name.upper(): value for name, value in store.items()}
            service = Service(folder, DATABASE_URL=gate.url, SECRET_KEY=SECRET, **given)
            board = Board(service, gate, settings, session_factory(engine))
            try:
                await board.sign_up()
                service.kill()
                await board.start()
                yield board
                await board.client.aclose()
            finally:
                # Stopped in peace, it would wait for the gate, which waits for this test.
                service.kill()


async def test_killed_after_the_commit_and_before_its_answer_it_has_written_once(board):
    for method, path, sent, kind, write in board.requests():
        headers = board.headers | key() | kind

        async def ask(method=method, path=path, sent=sent, headers=headers):
            return await board.client.request(method, path, headers=headers, **sent)

        await board.die(ask, COMMITTED, write)
        written, objects = await board.counted(), await board.objects()
        again, once_more = await ask(), await ask()

        assert again.status_code == 200, (path, again.text)
        assert again.headers[REPLAYED] == "true"
        assert lasting(again) == lasting(once_more)
        assert await board.counted() == written
        assert await board.objects() == objects
    # One feed was there before.
    assert await board.counted() == [2, 1, 1, 1]
    shown = (await board.client.get(f"/api/feed/read/{board.feed}", headers=board.headers)).json()
    assert (shown["like_count"], shown["liked"], shown["comment_count"]) == (1, True, 1)
    (feed, _) = (await board.client.get("/api/feed/list")).json()
    loaded = await board.client.get(feed["image_urls"][0])
    assert pictures.decode(loaded.content)


async def test_killed_before_the_commit_it_has_written_nothing_and_the_key_is_good_again(board):
    before, asking = await board.counted(), []
    for method, path, sent, kind, write in board.requests():
        headers = board.headers | key() | kind

        async def ask(method=method, path=path, sent=sent, headers=headers):
            return await board.client.request(method, path, headers=headers, **sent)

        asking.append(ask)
        await board.die(ask, COMMIT, write)
        assert await board.counted() == before

    for waiting in await asyncio.gather(*(ask() for ask in asking)):
        assert_problem(waiting, "request-outstanding")
        assert int(waiting.headers["retry-after"]) > 0
    await board.wait_for_the_lease()

    for ask in asking:
        done, again = await ask(), await ask()
        assert done.status_code == 200, done.text
        assert REPLAYED not in done.headers
        assert lasting(again) == lasting(done)
        assert again.headers[REPLAYED] == "true"
    assert await board.counted() == [2, 1, 1, 1]
