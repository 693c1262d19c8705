"""Likes at the same moment, through two services on one database, with real commits."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import httpx
import pytest
from sqlalchemy import func, select

from app.main import create_app
from models.comment import Comment
from models.feed import Feed
from models.like import CommentLike
from models.user import User
from tests.conftest import client_of
from tests.test_likes import comment_in, crowd, feed_in, rows_and_count, session_of
from tests.test_lists import walk


@pytest.fixture
async def workers(live_app):
    """Two services on one database, as with WORKERS=2; gives a client of each."""
    other = create_app(live_app.state.settings)
    async with (
        other.router.lifespan_context(other),
        client_of(live_app) as one,
        client_of(other) as two,
    ):
        yield one, two


async def test_64_who_like_at_once_are_64_likes(live_app, workers):
    people = await crowd(live_app, 64)
    feed = await feed_in(live_app)

    answers = await asyncio.gather(
        *(workers[n % 2].put(f"/api/like/feed/{feed}", headers=p) for n, p in enumerate(people))
    )

    # Each as if it had come alone.
    assert sorted(answer.json()["like_count"] for answer in answers) == list(range(1, 65))
    assert await rows_and_count(live_app, feed) == (64, 64)


async def test_no_toggle_is_lost(live_app, workers):
    (ada,) = await crowd(live_app, 1)
    feed = await feed_in(live_app)

    for tried in range(1, 21):
        answers = await asyncio.gather(
            *(workers[n % 2].patch(f"/api/like/?feed_id={feed}", headers=ada) for n in range(21))
        )
        liked = Counter(answer.json()["liked"] for answer in answers)
        assert sorted(liked.values()) == [10, 11]
        assert await rows_and_count(live_app, feed) == (tried % 2, tried % 2)


async def test_after_a_storm_the_counts_equal_the_rows(live_app, workers):
    people = await crowd(live_app, 16)
    feeds = [await feed_in(live_app) for _ in range(3)]
    comment = await comment_in(live_app, feeds[0])
    paths = [f"feed/{feed}" for feed in feeds] + [f"comment/{comment}"]

    async def client(person):
        last = {}
        for _ in range(40):
            path, worker = random.choice(paths), random.choice(workers)
            match random.choice(["PUT", "DELETE", "PATCH"]):
                case "PATCH":
                    kind, _, id_ = path.partition("/")
                    answer = await worker.patch(f"/api/like/?{kind}_id={id_}", headers=person)
                case method:
                    answer = await worker.request(method, f"/api/like/{path}", headers=person)
            assert answer.status_code == 200, answer.text
            last[path] = answer.json()["liked"]
        return last

    lasting = await asyncio.gather(*map(client, people))

    for feed in feeds:
        rows, count = await rows_and_count(live_app, feed)
        assert rows == count == sum(last.get(f"feed/{feed}", False) for last in lasting)
    async with live_app.state.sessions() as db, db.begin():
        count = await db.scalar(select(Comment.like_count).where(Comment.id == comment))
        rows = await db.scalar(select(func.count()).where(CommentLike.comment_id == comment))
    assert rows == count == sum(last.get(f"comment/{comment}", False) for last in lasting)


async def test_a_feed_that_is_deleted_while_it_is_liked_goes_in_peace(live_app, workers):
    people = await crowd(live_app, 16)
    async with live_app.state.sessions() as db, db.begin():
        first = await db.scalar(select(User.id).limit(1))
    author = await session_of(live_app, first)
    for _ in range(5):
        feed = await feed_in(live_app)
        path = f"/api/like/feed/{feed}"
        deleted, *answers = await asyncio.gather(
            workers[0].delete(f"/api/feed/delete/{feed}", headers=author),
            *(workers[n % 2].put(path, headers=person) for n, person in enumerate(people)),
            *(workers[n % 2].delete(path, headers=person) for n, person in enumerate(people)),
        )
        assert deleted.status_code == 200
        assert {answer.status_code for answer in answers} <= {200, 404}


async def test_who_pages_while_others_like_sees_everybody_once(live_app, workers):
    earlier, later = await crowd(live_app, 30), await crowd(live_app, 30)
    feed = await feed_in(live_app)
    path = f"/api/like/feed/{feed}"
    await asyncio.gather(*(workers[0].put(path, headers=person) for person in earlier))
    before = (await workers[0].get(f"{path}?limit=100")).json()

    pages, *_ = await asyncio.gather(
        walk(workers[0], f"{path}?limit=4"),
        *(workers[1].put(path, headers=person) for person in later),
    )

    seen = [liker for page in pages for liker in page]
    assert len({liker["user_id"] for liker in seen}) == len(seen)
    assert [liker for liker in seen if liker in before] == before


async def test_whoever_goes_away_takes_nobody_along(live_app, live_client, live_server):
    """The feed is locked meanwhile, so that one batch is under way and one gathers."""
    people = await crowd(live_app, 6)
    feed = await feed_in(live_app)
    path = f"/api/like/feed/{feed}"
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live_server}") as client:
            for person in people[:2]:
                with pytest.raises(httpx.ReadTimeout):
                    await client.put(path, headers=person, timeout=0.2)
        staying = [asyncio.create_task(live_client.put(path, headers=p)) for p in people[2:5]]
        leaving = asyncio.create_task(live_client.put(path, headers=people[5]))
        await asyncio.sleep(0.1)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving

    answers = await asyncio.gather(*staying)

    assert {answer.status_code for answer in answers} == {200}
    rows, count = await rows_and_count(live_app, feed)
    assert rows == count >= 3


async def test_things_do_not_wait_for_each_other(live_app, live_client):
    (ada,) = await crowd(live_app, 1)
    locked, free = [await feed_in(live_app) for _ in range(2)]
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, locked, with_for_update=True)
        waiting = asyncio.create_task(live_client.put(f"/api/like/feed/{locked}", headers=ada))
        await asyncio.sleep(0.1)
        assert (await live_client.put(f"/api/like/feed/{free}", headers=ada)).status_code == 200
        assert not waiting.done()

    assert (await waiting).json() == {"liked": True, "like_count": 1}
