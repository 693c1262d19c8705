"""Keeping an account: a new password, a forgotten one, and whose e-mail address it is."""

import asyncio
import json
from datetime import timedelta

import pytest
import structlog
from fastapi.routing import iter_route_contexts
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import delete, event, select, text, update

from models.base import NOW
from models.link import Link, LinkKind
from models.mail import MailKind
from models.user import User
from routers.dependencies import verified
from services import accounts, links, postman
from services.errors import DatabaseUnavailable, LinkNotFound
from tests.conftest import PASSWORD, bearer, client_of, user_maker
from tests.mail import Letterbox
from tests.test_problems import assert_problem

NEW = "a lighthouse at noon"
EMAIL = "ada@example.com"
ACCOUNT = {"email": EMAIL, "password": PASSWORD, "nickname": "Ada Lovelace"}
GONE = {"token": "DmqkLjB9nV0aXjMzV0yq3ADmqkLjB9nV0aXjMzV0yq3A"}


@pytest.fixture
async def letterbox(settings, sessions, monkeypatch):
    monkeypatch.setattr(postman, "SPACING", timedelta(0))
    return Letterbox(settings, sessions)


@pytest.fixture
async def ada(make_user, letterbox):
    user = await make_user(email=EMAIL, nickname="Ada Lovelace")
    await letterbox.fetch()
    return user


@pytest.fixture
async def logged_in(ada, client):
    """Where Ada is logged in, asked of two devices: the one at hand, and another."""
    account = {"email": EMAIL, "password": PASSWORD}
    other = (await client.post("/api/auth/login", json=account)).json()

    async def ask():
        answers = [
            await client.get("/api/mypage/profile", headers=bearer(at)) for at in (ada, other)
        ]
        return [answer.status_code == 200 for answer in answers]

    return ask


@pytest.fixture
def post(client):
    """Post JSON to a route of accounts."""

    async def post(route, body=None, user=None):
        headers = bearer(user) if user else {}
        return await client.post(f"/api/auth/{route}", json=body, headers=headers)

    return post


@pytest.fixture
def log_in(post):
    async def log_in(password, email=EMAIL):
        return (await post("login", {"email": email, "password": password})).status_code

    return log_in


@pytest.fixture
def forgotten(post, letterbox):
    """Forget the password; gives the token that comes by mail."""

    async def forgotten(email=EMAIL):
        assert (await post("password/forgot", {"email": email})).status_code == 200
        return await letterbox.token()

    return forgotten


async def test_a_changed_password_replaces_the_old_one_and_ends_other_sessions(
    ada, post, log_in, logged_in
):
    change = {"old_password": PASSWORD, "new_password": NEW}

    assert (await post("password/change", change, ada)).json() == {"message": "Password Changed"}

    assert (await log_in(PASSWORD), await log_in(NEW)) == (401, 200)
    assert await logged_in() == [True, False]


async def test_whoever_does_not_know_the_password_does_not_change_it(ada, post, log_in, logged_in):
    change = {"old_password": "not this one", "new_password": NEW}

    refused = await post("password/change", change, ada)

    assert assert_problem(refused, "invalid-input")["errors"][0]["pointer"] == "/old_password"
    assert await log_in(PASSWORD) == 200
    assert await logged_in() == [True, True]


async def test_a_changed_password_voids_links_to_a_new_one(ada, post, forgotten):
    token = await forgotten()
    change = {"old_password": PASSWORD, "new_password": NEW}
    await post("password/change", change, ada)

    refused = await post("password/reset", {"token": token, "password": PASSWORD})

    assert_problem(refused, "link-not-found")


async def test_a_forgotten_password_is_replaced_by_a_mails_link(
    ada, post, log_in, forgotten, logged_in
):
    token = await forgotten("ADA@Example.com")

    done = await post("password/reset", {"token": token, "password": NEW})

    assert done.json() == {"message": "Password Changed"}
    assert (await log_in(PASSWORD), await log_in(NEW)) == (401, 200)
    assert await logged_in() == [False, False]


@pytest.fixture(params=["change", "reset"])
def change(request, ada, post, forgotten):
    """Change the password by either way."""

    async def change(new=NEW):
        if request.param == "reset":
            return await post("password/reset", {"token": await forgotten(), "password": new})
        body = {"old_password": PASSWORD, "new_password": new}
        return await post("password/change", body, ada)

    return change


async def test_whose_password_was_changed_is_told_by_mail(change, letterbox, settings):
    assert (await change()).status_code == 200

    (mail,) = await letterbox.fetch()
    assert (mail["To"], mail["Subject"]) == (EMAIL, "Your password was changed")
    assert settings.base_url in mail.get_content()
    assert '"forgot password"' in mail.get_content()
    assert "token" not in mail.as_string()


async def test_a_password_that_stays_is_no_reason_for_a_mail(ada, change, post, letterbox):
    wrong = {"old_password": "not this one", "new_password": NEW}

    assert_problem(await change("lovelace99"), "invalid-input")
    assert_problem(await post("password/change", wrong, ada), "invalid-input")
    assert_problem(await post("password/reset", GONE | {"password": NEW}), "link-not-found")

    assert await letterbox.fetch() == []


@pytest.mark.parametrize("fails", ["postman.ask", "sessions.end_all", "idempotency.keep"])
async def test_a_password_is_changed_and_told_of_or_neither(
    change, letterbox, log_in, monkeypatch, fails
):
    module, function = fails.split(".")
    real = getattr(getattr(accounts, module), function)

    async def fail(db, *args, **also):
        if args[0] in (MailKind.RESET, accounts._ASKED):  # What is asked for beforehand.
            return await real(db, *args, **also)
        raise DatabaseUnavailable

    monkeypatch.setattr(getattr(accounts, module), function, fail)
    assert_problem(await change(), "database-unavailable")

    assert (await log_in(PASSWORD), await log_in(NEW)) == (200, 401)
    assert await letterbox.fetch() == []


async def test_a_link_works_once(ada, post, log_in, forgotten):
    token = await forgotten()
    await post("password/reset", {"token": token, "password": NEW})

    again = await post("password/reset", {"token": token, "password": PASSWORD})

    assert "Ask for a new mail" in assert_problem(again, "link-not-found")["detail"]
    assert await log_in(NEW) == 200


@pytest.mark.parametrize("late", [timedelta(minutes=31), timedelta(minutes=29)])
async def test_a_link_to_a_new_password_is_good_for_30_minutes(ada, post, forgotten, db, late):
    token = await forgotten()
    async with db.begin():
        await db.execute(update(Link).values(expires_dt=Link.expires_dt - late))

    answer = await post("password/reset", {"token": token, "password": NEW})

    assert answer.status_code == (404 if late > timedelta(minutes=30) else 200)


async def test_a_new_link_voids_the_one_before(ada, post, forgotten):
    first, second = await forgotten(), await forgotten()

    assert_problem(
        await post("password/reset", {"token": first, "password": NEW}), "link-not-found"
    )
    assert (await post("password/reset", {"token": second, "password": NEW})).status_code == 200


async def test_a_link_is_good_for_what_it_was_sent_for(ada, post, forgotten):
    token = await forgotten()

    assert_problem(await post("email/verify", {"token": token}), "link-not-found")
    assert (await post("password/reset", {"token": token, "password": NEW})).status_code == 200


async def test_a_weak_password_leaves_the_link_good(ada, post, forgotten):
    token = await forgotten()

    weak = await post("password/reset", {"token": token, "password": "lovelace1"})
    strong = await post("password/reset", {"token": token, "password": NEW})

    assert assert_problem(weak, "invalid-input")["errors"][0]["pointer"] == "/password"
    assert strong.status_code == 200


@pytest.mark.parametrize("token", ["", "x", "x" * 101, GONE["token"], "\0", "é"])
async def test_a_token_of_nothing_is_refused_before_any_work(client, post, capabilities, token):
    hashed = []
    capabilities.passwords._hash = lambda *args: hashed.append(args)
    try:
        answers = [
            await post("password/reset", {"token": token, "password": NEW}),
            await post("email/verify", {"token": token}),
        ]
    finally:
        del capabilities.passwords._hash

    wanted = "link-not-found" if 0 < len(token) <= 100 else "invalid-input"
    for answer in answers:
        assert_problem(answer, wanted)
    assert hashed == []


async def test_an_account_that_is_deleted_takes_its_links_along(ada, post, forgotten, db):
    token = await forgotten()
    async with db.begin():
        await db.execute(delete(User).where(User.id == ada["id"]))

    refused = await post("password/reset", {"token": token, "password": NEW})

    assert_problem(refused, "link-not-found")


async def test_of_two_who_use_one_link_at_once_one_does(live_app, live_client):
    user = await user_maker(live_client)(email="raced@example.com")
    sessions = live_app.state.sessions
    async with sessions() as db, db.begin():
        token = await links.issue(db, await db.get_one(User, user["id"]), LinkKind.RESET)

    async def use_second() -> None:
        async with sessions() as db, db.begin():
            await links.use(db, LinkKind.RESET, token)

    async with sessions() as db, sessions() as other:
        async with db.begin():
            await links.use(db, LinkKind.RESET, token)
            second = asyncio.create_task(use_second())
            await _waits_for_a_lock(other)
        with pytest.raises(LinkNotFound):
            await second


async def _waits_for_a_lock(db) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with asyncio.timeout(20):
        while True:
            async with db.begin():
                if await db.scalar(waiting):
                    return
            await asyncio.sleep(0.01)


async def test_asking_is_answered_and_worked_on_alike_for_known_and_unknown_addresses(
    ada, post, letterbox, engine
):
    """The statements are counted, not the time; and sending comes after the answer."""
    ran, answers = [], []

    def note(connection, cursor, statement, *rest):
        ran[-1].append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        for email in (EMAIL, "nobody@example.com"):
            ran.append([])
            answers.append(await post("password/forgot", {"email": email}))
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)

    known, unknown = ran
    assert answers[0].content == answers[1].content
    assert dict(answers[0].headers) | {"x-request-id": ""} == dict(answers[1].headers) | {
        "x-request-id": ""
    }
    # Savepoints are numbered.
    assert [s for s in known if "SAVEPOINT" not in s] == [
        s for s in unknown if "SAVEPOINT" not in s
    ]
    assert [mail["To"] for mail in await letterbox.fetch()] == [EMAIL]


WEAK = ["password", "12345678", "aaaaaaaaaaaa", "qwertyuiop", EMAIL, "lovelace", "AdaLovelace1"]


@pytest.mark.parametrize("weak", WEAK)
async def test_a_password_that_is_easily_guessed_is_refused_with_advice(post, weak):
    refused = await post("signup", ACCOUNT | {"password": weak})

    (error,) = assert_problem(refused, "invalid-input")["errors"]
    assert error["pointer"] == "/password"
    assert error["detail"].startswith("This password is easily guessed. ")
    assert "Add another word or two." in error["detail"]


@pytest.mark.parametrize("strong", [NEW, "한국어비밀번호다", "xK9#mQ2!", "wholly lower case words"])
async def test_no_rule_says_which_characters_a_good_password_has(post, strong):
    assert (await post("signup", ACCOUNT | {"password": strong})).status_code == 200


async def test_a_changed_password_has_to_be_hard_to_guess_too(ada, post, log_in):
    change = {"old_password": PASSWORD, "new_password": "lovelace99"}

    refused = await post("password/change", change, ada)

    assert assert_problem(refused, "invalid-input")["errors"][0]["pointer"] == "/new_password"
    assert await log_in(PASSWORD) == 200


async def test_a_hash_of_another_cost_is_renewed_by_a_log_in(ada, log_in, db):
    cheap = PasswordHash([Argon2Hasher(time_cost=1, memory_cost=1024)]).hash(PASSWORD)
    stored = select(User.password_hash).where(User.id == ada["id"])
    async with db.begin():
        await db.execute(update(User).where(User.id == ada["id"]).values(password_hash=cheap))

    assert await log_in("not this one") == 401
    async with db.begin():
        assert await db.scalar(stored) == cheap
    assert await log_in(PASSWORD) == 200
    async with db.begin():
        renewed = await db.scalar(stored)
    assert "m=19456,t=2,p=1" in renewed
    assert await log_in(PASSWORD) == 200
    async with db.begin():
        assert await db.scalar(stored) == renewed


@pytest.fixture
async def strict(make_app):
    """A client of a board where only those write whose address is verified."""
    async with client_of(await make_app(require_verified_email=True)) as client:
        yield client


WORDS = {"title": "T", "content": "C"}


async def test_who_is_not_verified_reads_and_does_not_write_and_is_told_what_to_do(
    strict, letterbox
):
    user = await user_maker(strict)()
    headers = bearer(user)

    refused = await strict.post("/api/feed/create", data=WORDS, headers=headers)
    assert "POST /api/auth/email/send" in assert_problem(refused, "email-not-verified")["detail"]
    assert (await strict.get("/api/mypage/feeds", headers=headers)).status_code == 200
    assert (await strict.get("/api/feed/list")).status_code == 200

    token = await letterbox.token()
    confirmed = await strict.post("/api/auth/email/verify", json={"token": token})
    assert confirmed.json() == {"message": "E-Mail Address Confirmed"}
    posted = await strict.post("/api/feed/create", data=WORDS, headers=headers)
    assert posted.status_code == 200


async def test_a_new_password_by_mail_verifies_the_address_too(strict, letterbox):
    user = await user_maker(strict)()
    await letterbox.fetch()
    await strict.post("/api/auth/password/forgot", json={"email": user["email"]})
    reset = {"token": await letterbox.token(), "password": NEW}

    await strict.post("/api/auth/password/reset", json=reset)

    account = {"email": user["email"], "password": NEW}
    session = (await strict.post("/api/auth/login", json=account)).json()
    posted = await strict.post("/api/feed/create", data=WORDS, headers=bearer(session))
    assert posted.status_code == 200


async def test_who_is_not_verified_keeps_their_account_all_the_same(strict):
    user = await user_maker(strict)()
    change = {"old_password": PASSWORD, "new_password": NEW}

    for route, body in (("password/change", change), ("email/send", None)):
        done = await strict.post(f"/api/auth/{route}", json=body, headers=bearer(user))
        assert done.status_code == 200


async def test_without_the_setting_everybody_writes(client, make_user, make_feed):
    assert await make_feed(await make_user())


async def test_another_mail_can_be_had_until_the_address_is_verified(make_user, post, letterbox):
    user = await make_user()
    first = await letterbox.token()
    again = await post("email/send", user=user)
    second = await letterbox.token()

    assert again.json() == {"message": "A mail is on its way."}
    assert_problem(await post("email/verify", {"token": first}), "link-not-found")
    assert (await post("email/verify", {"token": second})).status_code == 200
    told = (await post("email/send", user=user)).json()
    assert told == {"message": "Your e-mail address is confirmed already."}
    assert await letterbox.fetch() == []


async def test_a_link_to_verify_is_good_for_a_day(make_user, post, letterbox, db):
    await make_user()
    token = await letterbox.token()
    async with db.begin():
        left = (await db.scalars(select(Link.expires_dt - NOW))).one()

    assert timedelta(hours=23, minutes=59) < left <= timedelta(days=1)
    assert (await post("email/verify", {"token": token})).status_code == 200


@pytest.mark.parametrize("required", [True, False])
async def test_every_write_but_those_of_accounts_waits_for_a_verified_address(make_app, required):
    app = await make_app(require_verified_email=required)
    document, seen = app.openapi(), set()
    for route in iter_route_contexts(app.routes):
        for method in set(route.methods or ()) - {"GET", "HEAD"}:
            operation = document["paths"][route.path_format][method.lower()]
            guards = [guard.call for guard in route.dependant.dependencies]
            listed = json.dumps(operation["responses"].get("403", {}))
            # Whoever is not verified keeps their account, and may leave.
            kept = operation["tags"] == ["Auth"] or operation["operationId"] == "leave"
            guarded = required and not kept
            assert (verified in guards) == guarded, route.path_format
            assert ("/problems/email-not-verified" in listed) == guarded, route.path_format
            seen.add(guarded)
    assert seen == {False, required}


async def test_no_line_tells_a_token_or_a_password(ada, post, forgotten, letterbox):
    with structlog.testing.capture_logs() as lines:
        token = await forgotten()
        await post("password/reset", {"token": token, "password": "lovelace1"})
        await post("password/reset", {"token": token, "password": NEW})
        await post("email/verify", {"token": token})
        await post("password/change", {"old_password": NEW, "new_password": PASSWORD}, ada)

    assert len(lines) > 5
    told = json.dumps(lines)
    assert not any(secret in told for secret in (token, NEW, PASSWORD, "lovelace1", EMAIL))
