"""Idempotency keys at the same moment, through two services on one database, with real commits."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update

from app.main import create_app
from models.base import NOW
from models.comment import Comment
from models.feed import Feed
from models.idempotency import IdempotencyKey
from models.image import Image
from services import idempotency
from tests.conftest import bearer, client_of
from tests.test_idempotency import REPLAYED, form, key, lasting
from tests.test_likes import crowd, feed_in, rows_and_count
from tests.test_problems import assert_problem


@pytest.fixture
async def services(live_app):
    """Two services on one database; gives a client of each."""
    other = create_app(live_app.state.settings)
    async with (
        other.router.lifespan_context(other),
        client_of(live_app) as one,
        client_of(other) as two,
    ):
        yield one, two


@pytest.fixture
async def ada(live_app):
    return (await crowd(live_app, 1))[0]


@pytest.fixture
async def feed(live_app, ada):
    return await feed_in(live_app)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(idempotency, "PATIENCE", 0.1)


async def comments(app, feed):
    async with app.state.sessions() as db, db.begin():
        return await db.scalar(select(func.count()).where(Comment.feed_id == feed))


async def claims(app):
    """How many requests have claimed their keys and are not answered."""
    async with app.state.sessions() as db, db.begin():
        return await db.scalar(select(func.count()).where(IdempotencyKey.status.is_(None)))


async def lease_ends(app):
    """What is claimed now was claimed so long ago that its holder counts as dead."""
    aged = update(IdempotencyKey).where(IdempotencyKey.status.is_(None))
    async with app.state.sessions() as db, db.begin():
        await db.execute(aged.values(create_dt=NOW - idempotency.LEASE))


async def until(found):
    async with asyncio.timeout(20):
        while not await found():
            await asyncio.sleep(0.01)


async def waiting_for_locks(app, number):
    """Wait until so many statements wait for a lock."""
    waits = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def found():
        async with app.state.sessions() as db, db.begin():
            return await db.scalar(waits) >= number

    await until(found)


def comment_of(client, feed, headers):
    said = {"feed_id": feed, "content": "Hear, hear"}
    return client.post("/api/comment/create", json=said, headers=headers)


async def test_an_answer_of_one_process_is_replayed_by_another(services, ada, feed):
    one, two = services
    headers = ada | key()

    first, again = [await comment_of(client, feed, headers) for client in (one, two)]

    assert first.status_code == 200
    assert lasting(again) == lasting(first)
    assert again.headers[REPLAYED] == "true"


async def test_ten_twins_at_once_are_one_write_with_one_answer(live_app, services, ada, feed):
    path = f"/api/like/?feed_id={feed}"
    for _ in range(3):
        said, liked = ada | key(), ada | key()
        comments_before, (_, likes_before) = (
            await comments(live_app, feed),
            await rows_and_count(live_app, feed),
        )
        answers = await asyncio.gather(
            *(comment_of(services[n % 2], feed, said) for n in range(10)),
            *(services[n % 2].patch(path, headers=liked) for n in range(10)),
        )

        for twins in (answers[:10], answers[10:]):
            assert {answer.status_code for answer in twins} == {200}
            assert len({answer.content for answer in twins}) == 1
            assert [REPLAYED in answer.headers for answer in twins].count(False) == 1
        assert await comments(live_app, feed) == comments_before + 1
        assert await rows_and_count(live_app, feed) == (1 - likes_before, 1 - likes_before)


async def test_ten_twins_with_an_image_store_it_once(live_app, services, ada):
    sent = form("b")
    headers = ada | key() | sent["headers"]
    images = select(func.count()).where(Image.original_id.is_(None))
    async with live_app.state.sessions() as db, db.begin():
        before = await db.scalar(images)

    answers = await asyncio.gather(
        *(
            services[n % 2].post("/api/feed/create", content=sent["content"], headers=headers)
            for n in range(10)
        )
    )

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    async with live_app.state.sessions() as db, db.begin():
        assert await db.scalar(images) == before + 1


async def test_a_twin_that_has_waited_long_enough_is_told_to_come_again(
    live_app, services, ada, feed, impatient
):
    headers = ada | key()
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        first = asyncio.create_task(comment_of(services[0], feed, headers))
        await waiting_for_locks(live_app, 1)
        twin = await comment_of(services[1], feed, headers)

    assert_problem(twin, "request-outstanding")
    assert int(twin.headers["retry-after"]) > 0
    assert (await first).status_code == 200
    assert (await comment_of(services[1], feed, headers)).content == (await first).content


async def test_whoever_was_taken_for_dead_cannot_write_any_more(live_app, services, ada, feed):
    headers = ada | key()
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        old = asyncio.create_task(comment_of(services[0], feed, headers))
        await waiting_for_locks(live_app, 1)
        await lease_ends(live_app)
        new = asyncio.create_task(comment_of(services[1], feed, headers))
        await waiting_for_locks(live_app, 2)

    assert_problem(await old, "request-outstanding")
    assert (await new).status_code == 200
    assert REPLAYED not in (await new).headers
    assert await comments(live_app, feed) == 1
    again = await comment_of(services[0], feed, headers)
    assert lasting(again) == lasting(await new)


async def test_nor_can_whose_like_waited_for_a_batch(live_app, services, ada, feed):
    (bob,) = await crowd(live_app, 1)
    path, headers = f"/api/like/?feed_id={feed}", ada | key()
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        ahead = asyncio.create_task(services[0].patch(path, headers=bob))
        await waiting_for_locks(live_app, 1)
        old = asyncio.create_task(services[0].patch(path, headers=headers))
        await until(lambda: claims(live_app))
        await lease_ends(live_app)
        new = asyncio.create_task(services[1].patch(path, headers=headers))
        await waiting_for_locks(live_app, 2)

    assert_problem(await old, "request-outstanding")
    assert (await new).json()["liked"] is True
    assert (await ahead).json()["liked"] is True
    assert await rows_and_count(live_app, feed) == (2, 2)


async def test_an_answer_that_is_being_written_is_not_taken_over(
    live_app, services, ada, feed, impatient, monkeypatch
):
    headers = ada | key()
    path = f"/api/like/?feed_id={feed}"
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        # A batch holds its claims for as long as it writes.
        first = asyncio.create_task(services[0].patch(path, headers=headers))
        await waiting_for_locks(live_app, 1)
        monkeypatch.setattr(idempotency, "LEASE", timedelta(0))
        twin = await services[1].patch(path, headers=headers)

    assert_problem(twin, "request-outstanding")
    assert (await first).json()["liked"] is True
    assert await rows_and_count(live_app, feed) == (1, 1)


async def test_whoever_goes_away_leaves_the_key_free_or_answered(live_app, services, ada, feed):
    headers = ada | key()
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        leaving = asyncio.create_task(comment_of(services[0], feed, headers))
        await waiting_for_locks(live_app, 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await claims(live_app) == 0

    answer = await comment_of(services[1], feed, headers)

    assert answer.status_code == 200
    assert await comments(live_app, feed) == 1


async def test_a_like_whose_liker_goes_away_is_counted_once(live_app, services, ada, feed):
    path, headers = f"/api/like/?feed_id={feed}", ada | key()
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed, with_for_update=True)
        leaving = asyncio.create_task(services[0].patch(path, headers=headers))
        await waiting_for_locks(live_app, 1)
        leaving.cancel()
        await waiting_for_locks(live_app, 2)  # It lets go of a key that its batch holds.
    with pytest.raises(asyncio.CancelledError):
        await leaving

    again = await services[1].patch(path, headers=headers)

    # The batch had it, and went on.
    assert again.json()["liked"] is True
    assert again.headers[REPLAYED] == "true"
    assert await rows_and_count(live_app, feed) == (1, 1)


async def test_a_user_who_is_gone_is_told_so(live_app, services):
    gone = bearer({"access_token": live_app.state.tokens.issue(10**15, 10**15)})

    answer = await services[0].put("/api/like/feed/1", headers=gone | key())

    assert_problem(answer, "not-authenticated")
