"""Guessing passwords gets slower and slower, and stops nobody else from logging in."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from services import attempts as rules
from services.attempts import LoginAttempts
from services.counters import Counters
from services.errors import DatabaseUnavailable, InvalidCredentials, TooManyAttempts
from tests.conftest import PASSWORD, bearer, client_of, user_maker
from tests.test_problems import assert_problem
from tests.test_rate_limits import from_address

ADA, HOME, STRANGER = "ada@example.com", "192.0.2.1", "198.51.100.9"
FREE = rules.FREE_OF_PAIR


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so."""
    clock = SimpleNamespace(now=1_000_000.0)
    ours = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr("services.counters.time", ours)
    return clock


@pytest.fixture
def attempts(clock):
    return LoginAttempts(Counters())


async def log_in(attempts, email=ADA, address=HOME, fault=None):
    """None for a log-in that is let through and ends so, else the seconds that it has to wait."""
    try:
        async with attempts.attempt(email, address):
            if fault:
                raise fault
    except TooManyAttempts as refusal:
        return refusal.retry_after
    except (InvalidCredentials, DatabaseUnavailable):
        pass
    return None


async def fail(attempts, times, email=ADA, address=STRANGER):
    return [await log_in(attempts, email, address, InvalidCredentials()) for _ in range(times)]


async def fail_for_an_hour(attempts, clock, email, address):
    """Guess for as long as it goes; gives how many guesses were let through."""
    began, tried = clock.now, 0
    while clock.now < began + 3600:
        wait = await log_in(attempts, email, address, InvalidCredentials())
        tried += wait is None
        clock.now += wait or 0.01
    return tried


async def test_after_a_few_failures_each_attempt_waits_twice_as_long_up_to_minutes(attempts, clock):
    assert await fail(attempts, FREE) == [None] * FREE
    waits = []
    for _ in range(9):
        (wait,) = await fail(attempts, 1)
        waits.append(wait)
        assert await fail(attempts, 1) == [wait]  # Asking meanwhile makes it no longer.
        clock.now += wait
        assert await fail(attempts, 1) == [None]

    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300]


async def test_the_right_password_has_to_wait_too_and_then_ends_the_waiting(attempts, clock):
    await fail(attempts, FREE, address=HOME)
    assert await log_in(attempts) == 2
    clock.now += 2

    assert await log_in(attempts) is None
    assert await fail(attempts, FREE, address=HOME) == [None] * FREE


async def test_an_hour_of_guessing_is_a_few_dozen_guesses(attempts, clock):
    assert await fail_for_an_hour(attempts, clock, ADA, STRANGER) < 30


async def test_a_stranger_who_guesses_slows_nobody_elsewhere(attempts, clock):
    await fail_for_an_hour(attempts, clock, ADA, STRANGER)
    await fail(attempts, 100)

    assert await log_in(attempts, address=HOME) is None
    assert await log_in(attempts, "bob@example.com", STRANGER) is None


async def test_strangers_everywhere_are_slowed_together_and_the_owner_at_home_is_not(attempts):
    assert await log_in(attempts) is None
    for number in range(rules.FREE_OF_ACCOUNT):
        await fail(attempts, 1, address=f"203.0.113.{number}")

    assert await fail(attempts, 1, address="203.0.113.200") == [2]
    assert await log_in(attempts) is None
    assert await fail(attempts, 1, "bob@example.com", "203.0.113.200") == [None]


async def test_one_address_is_slowed_over_all_accounts_but_not_for_those_at_home_there(attempts):
    assert await log_in(attempts, address=STRANGER) is None
    for number in range(rules.FREE_OF_ADDRESS):
        await fail(attempts, 1, f"user{number}@example.com")

    assert await fail(attempts, 1, "another@example.com") == [2]
    assert await log_in(attempts, address=STRANGER) is None
    assert await fail(attempts, 1, "another@example.com", HOME) == [None]


async def test_good_log_ins_to_an_own_account_do_not_clear_an_address(attempts):
    for number in range(rules.FREE_OF_ADDRESS):
        await fail(attempts, 1, f"user{number}@example.com")
        assert await log_in(attempts, "mallory@example.com", STRANGER) in {None, 2}

    assert await fail(attempts, 1, "another@example.com") == [2]


async def test_attempts_of_the_same_moment_do_not_slip_through(attempts):
    decided = asyncio.Event()
    let_through = 0

    async def guess():
        nonlocal let_through
        async with attempts.attempt(ADA, STRANGER):
            let_through += 1
            await decided.wait()
            raise InvalidCredentials

    guesses = [asyncio.create_task(guess()) for _ in range(100)]
    await asyncio.sleep(0)
    decided.set()
    ends = await asyncio.gather(*guesses, return_exceptions=True)

    assert let_through == FREE
    assert sum(isinstance(end, TooManyAttempts) for end in ends) == 100 - FREE


async def test_a_fault_of_ours_is_no_failure_of_theirs(attempts):
    for _ in range(20):
        assert await log_in(attempts, fault=DatabaseUnavailable()) is None


async def test_spellings_of_an_address_are_one_account_and_a_network_one_place(attempts):
    for n in range(FREE):
        await fail(attempts, 1, "Ada@Example.COM" if n % 2 else ADA, f"2001:db8::{n + 1}")

    assert await fail(attempts, 1, "ADA@example.com", "2001:db8::99") == [2]


@pytest.mark.parametrize("route", ["login", "token"])
async def test_over_http_known_and_unknown_accounts_are_answered_alike(make_app, route):
    app = await make_app(rate_limits="log-in=1000/day,sign-up=1000/day")
    async with client_of(app) as client:
        ada = await user_maker(client)()

        async def guess(email) -> httpx.Response:
            if route == "login":
                return await client.post(
                    "/api/auth/login", json={"email": email, "password": "wrong"}
                )
            form = {"grant_type": "password", "username": email, "password": "wrong"}
            return await client.post("/api/auth/token", data=form)

        known = [await guess(ada["email"]) for _ in range(FREE + 1)]
        unknown = [await guess("nobody@example.com") for _ in range(FREE + 1)]

        problem = assert_problem(known[-1], "too-many-attempts")
        assert problem["detail"] == assert_problem(unknown[-1], "too-many-attempts")["detail"]
        assert known[-1].headers["retry-after"] == unknown[-1].headers["retry-after"] == "2"
        assert [a.status_code for a in known] == [a.status_code for a in unknown]
        assert [a.status_code for a in known] == [401] * FREE + [429]
    async with from_address(app, HOME) as home:
        login = {"email": ada["email"], "password": PASSWORD}
        assert (await home.post("/api/auth/login", json=login)).status_code == 200


NEW = "a lighthouse at noon"


async def change(client, user, old, new=NEW):
    body = {"old_password": old, "new_password": new}
    return await client.post("/api/auth/password/change", json=body, headers=bearer(user))


async def leave(client, user, password):
    body = {"password": password}
    return await client.request("DELETE", "/api/mypage", json=body, headers=bearer(user))


@pytest.fixture
async def places(make_app, clock):
    """Clients of one board: at home, and at a stranger's."""
    app = await make_app(rate_limits="log-in=1000/day,sign-up=1000/day")
    async with from_address(app, HOME) as home, from_address(app, STRANGER) as stranger:
        yield home, stranger


@pytest.mark.parametrize(("ask", "wrong"), [(change, 422), (leave, 401)])
async def test_a_stolen_token_is_no_second_way_to_guess_a_password(places, clock, ask, wrong):
    home, stranger = places
    ada, bob = await user_maker(home)(), await user_maker(stranger)()
    login = {"email": ada["email"], "password": PASSWORD}

    guesses = [await ask(stranger, ada, f"guess {n}") for n in range(FREE + 1)]
    last = await ask(stranger, ada, PASSWORD)

    assert [guess.status_code for guess in guesses] == [wrong] * FREE + [429]
    for refused in (guesses[-1], last, await stranger.post("/api/auth/login", json=login)):
        assert_problem(refused, "too-many-attempts")
        assert refused.headers["retry-after"] == "2"
    # Neither the owner waits, nor another at that place.
    assert (await home.post("/api/auth/login", json=login)).status_code == 200
    assert (await ask(stranger, bob, PASSWORD)).status_code == 200
    clock.now += 2
    assert (await ask(stranger, ada, "another guess")).status_code == wrong
    assert (await ask(stranger, ada, PASSWORD)).headers["retry-after"] == "4"
    clock.now += 4
    assert (await ask(stranger, ada, PASSWORD)).status_code == 200


async def test_failed_log_ins_and_wrong_old_passwords_are_counted_together(places):
    home, _ = places
    ada = await user_maker(home)()
    for _ in range(FREE):
        await home.post("/api/auth/login", json={"email": ada["email"], "password": "wrong"})

    assert_problem(await change(home, ada, "wrong"), "too-many-attempts")
    assert_problem(await leave(home, ada, "wrong"), "too-many-attempts")


async def test_the_right_old_password_ends_the_waiting_and_a_weak_new_one_begins_none(places):
    home, _ = places
    ada = await user_maker(home)()
    for _ in range(FREE - 1):
        await change(home, ada, "wrong")

    weak = [await change(home, ada, PASSWORD, "password1") for _ in range(FREE + 1)]
    wrong = [await change(home, ada, "wrong") for _ in range(FREE)]

    for refused in weak:
        assert assert_problem(refused, "invalid-input")["errors"][0]["pointer"] == "/new_password"
    assert [refused.status_code for refused in wrong] == [422] * FREE
