"""More than the service can do: what is too much is refused at once, and the rest stays quick."""

import asyncio
import time

import pytest

from app import shedding
from services import showing
from tests.conftest import client_of
from tests.test_problems import assert_problem
from tests.test_slow import HEAD, answer

HOME = "/api/feed/home"
# Not by the fast lane.
PLAINLY = {"Content-Type": "text/plain"}


@pytest.fixture
def _few(monkeypatch):
    """Two of a kind may be at work."""
    monkeypatch.setattr(shedding, "SOME", 2)
    monkeypatch.setattr(shedding, "A_THREAD", 1)


@pytest.fixture
async def crowded(make_app, monkeypatch, _few):
    """A service with as many reads at work as it takes on, until the event is set."""
    over, inside = asyncio.Event(), asyncio.Semaphore(0)

    async def waits(*rest):
        inside.release()
        await over.wait()
        raise TimeoutError

    app = await make_app()
    monkeypatch.setattr(showing, "read", waits)
    async with client_of(app) as client, asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(client.get("/api/feed/read/1", headers=PLAINLY))
        for _ in range(2):
            await inside.acquire()
        yield app, client, over
        over.set()


async def test_who_comes_when_too_many_are_at_work_is_refused_at_once(crowded):
    _, client, _ = crowded
    origin = {"Origin": "https://elsewhere.example", "X-Request-ID": "mine"}

    began = time.monotonic()
    refused = await client.get(HOME, headers=origin)

    assert refused.status_code == 503
    assert assert_problem(refused, "overloaded")["instance"] == "mine"
    assert int(refused.headers["retry-after"]) > 0
    # As any other answer: scripts of other origins may read it, and it is guarded.
    assert refused.headers["access-control-allow-origin"] == "*"
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert time.monotonic() - began < 5


async def test_health_and_other_kinds_of_requests_are_served_meanwhile(crowded):
    _, client, _ = crowded

    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.options(HOME, headers={"Origin": "https://x.y"})).status_code != 503
    account = {"email": "nobody@example.com", "password": "x"}
    assert (await client.post("/api/auth/login", json=account)).status_code == 401


async def test_it_is_over_at_once_when_they_are_answered(crowded):
    _, client, over = crowded
    assert (await client.get("/api/user/999999")).status_code == 503

    over.set()
    async with asyncio.timeout(5):
        while (await client.get("/api/user/999999")).status_code == 503:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("_few")
async def test_who_sends_slowly_keeps_nobody_out(make_app):
    app = await make_app()
    sending, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def slowly():
        yield b"{"
        waiting.release()
        await sending.wait()
        yield b"}"

    json = {"Content-Type": "application/json"}
    async with client_of(app) as client, asyncio.TaskGroup() as group:
        slow = [
            group.create_task(client.post("/api/auth/login", content=slowly(), headers=json))
            for _ in range(5)
        ]
        for _ in slow:
            await waiting.acquire()
        account = {"email": "nobody@example.com", "password": "x"}
        quick = await client.post("/api/auth/login", json=account)
        sending.set()

    assert quick.status_code == 401
    assert {task.result().status_code for task in slow} <= {422, 503}


def test_a_bound_falls_while_answers_are_late_and_grows_where_it_is_used(monkeypatch):
    bound = shedding.Bound(100, 1)
    for _ in range(100):
        bound.answered(2.0)
    assert bound.limit == 50

    bound.answered(0.1)
    assert bound.limit == 50  # one was late a moment ago
    monkeypatch.setattr(bound, "_calm_from", 0)
    bound.answered(0.1)
    assert bound.limit == 100  # nobody needs more
    bound.at_work = 100
    assert bound.full
    bound.answered(0.1)
    assert not bound.full


def test_work_that_is_late_presses_what_is_quick_beside_it_which_does_not_grow_at_once():
    quick = shedding.Bound(100, 1, least=20)
    work = shedding.Bound(100, 1, beside=[quick])
    for _ in range(100):
        work.answered(2.0)
    assert quick.limit == 20

    quick.at_work = 20
    quick.answered(0.1)
    assert quick.full


async def test_a_connection_is_not_heard_for_a_while_after_a_refusal(
    live_app, live_server, monkeypatch
):
    monkeypatch.setattr(shedding.Bound, "full", property(lambda bound: True))
    ask = b"GET /api/feed/home HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = HEAD + b"Connection: close\r\n\r\n"

    began = time.monotonic()
    both = await answer(live_server, ask, last)

    assert both.count(b"HTTP/1.1 503 ") == 1
    assert both.count(b"HTTP/1.1 200 ") == 1
    assert time.monotonic() - began >= shedding.PAUSE
