"""Signing up, logging in, and what a token opens."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from services.errors import NotAuthenticated
from services.tokens import Tokens, key_id
from tests.conftest import PASSWORD, SECRET, bearer, make_settings

ACCOUNT = {"email": "ada@example.com", "password": PASSWORD, "nickname": "Ada"}


async def test_a_new_user_is_shown_without_any_secret(client):
    signed_up = await client.post("/api/auth/signup", json=ACCOUNT)

    assert signed_up.status_code == 200
    user = signed_up.json()
    assert set(user) == {"id", "email", "nickname", "create_dt"}
    assert (user["email"], user["nickname"]) == ("ada@example.com", "Ada")
    assert datetime.fromisoformat(user["create_dt"]).utcoffset() == timedelta(0)


async def test_an_email_address_is_one_account_whatever_its_case(client):
    await client.post("/api/auth/signup", json=ACCOUNT | {"email": "Ada@Example.com"})

    again = await client.post("/api/auth/signup", json=ACCOUNT | {"email": "aDA@exaMPLE.com"})
    logged_in = await client.post(
        "/api/auth/login", json={"email": "ADA@EXAMPLE.COM", "password": PASSWORD}
    )

    assert again.status_code == 409
    assert again.json()["type"] == "/problems/email-taken"
    assert logged_in.status_code == 200


@pytest.mark.parametrize(
    "address",
    [
        " spaces@example.com ",
        "cafe\u0301@example.com",
        "x@xn--exmple-cua.com",
        "z@example\u3002com",
        "Ｆｕｌｌ@example.com",
    ],
)
async def test_who_signed_up_can_log_in_with_the_very_address_they_typed(client, address):
    signed_up = await client.post("/api/auth/signup", json=ACCOUNT | {"email": address})
    logged_in = await client.post("/api/auth/login", json={"email": address, "password": PASSWORD})

    assert (signed_up.status_code, logged_in.status_code) == (200, 200)


async def test_domains_that_differ_are_different_accounts(client):
    for address, nickname in (("a@fass.de", "Ada"), ("a@faß.de", "Grace")):
        account = ACCOUNT | {"email": address, "nickname": nickname}
        signed_up = await client.post("/api/auth/signup", json=account)
        assert signed_up.status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "not an address"),
        ("email", "ada@localhost"),
        ("email", "a@b@example.com"),
        ("email", "Ada <ada@example.com>"),
        ("password", "short"),
        ("password", "x" * 129),
        ("nickname", "   "),
        ("nickname", "x" * 51),
        ("nickname", "Ada\0"),
        ("surname", "Lovelace"),
    ],
)
async def test_a_faulty_sign_up_is_told_which_field_is_wrong(client, field, value):
    refused = await client.post("/api/auth/signup", json=ACCOUNT | {field: value})

    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == [f"/{field}"]


async def test_a_log_in_gives_a_token_that_opens_the_board(client, make_user):
    user = await make_user(email="ada@example.com")

    assert (user["token_type"], user["expires_in"]) == ("bearer", 900)
    posted = await client.post(
        "/api/feed/create", data={"title": "T", "content": "C"}, headers=bearer(user)
    )
    assert posted.json()["author_email"] == "ada@example.com"


async def test_the_token_route_takes_the_form_that_authorize_sends(client, make_user):
    await make_user(email="ada@example.com")
    form = {
        "grant_type": "password",
        "username": "ada@example.com",
        "password": PASSWORD,
        "scope": "",
        "client_id": "",
        "client_secret": "",
    }

    granted = await client.post("/api/auth/token", data=form)

    assert granted.status_code == 200
    assert granted.json()["token_type"] == "bearer"


@pytest.mark.parametrize("email", ["ada@example.com", "nobody@example.com", "not an address"])
async def test_a_wrong_log_in_does_not_say_what_was_wrong(client, make_user, email):
    await make_user(email="ada@example.com")

    refused = await client.post("/api/auth/login", json={"email": email, "password": "wrong one"})

    assert refused.status_code == 401
    assert refused.json()["detail"] == "Invalid Credentials"
    assert refused.headers["www-authenticate"] == "Bearer"


async def test_an_unknown_address_is_verified_against_a_hash_all_the_same(client, capabilities):
    """The work is counted, not the time: a clock on a busy machine proves nothing."""
    passwords, verified = capabilities.passwords, []
    real = passwords._verify
    passwords._verify = lambda *args: verified.append(args) or real(*args)
    try:
        await client.post(
            "/api/auth/login", json={"email": "nobody@example.com", "password": PASSWORD}
        )
    finally:
        del passwords._verify

    assert len(verified) == 1
    assert verified[0][1].startswith("$argon2id$")


def _token(secret: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    now = datetime.now(UTC)
    standard = {"sub": "1", "sid": 1, "iat": now, "exp": now + timedelta(minutes=5)}
    kid = claims.pop("kid", key_id(SECRET))
    headers = {"kid": kid} if kid else {}
    present = {k: v for k, v in (standard | claims).items() if v is not None}
    return jwt.encode(present, secret, algorithm=algorithm, headers=headers)


BAD_TOKENS = {
    "absent": None,
    "empty": "Bearer ",
    "another scheme": "Basic YWRhOmFkYQ==",
    "no token at all": "Bearer nonsense",
    "of another key": f"Bearer {_token('another secret that is long enough, too')}",
    "of another algorithm": f"Bearer {_token(SECRET * 2, 'HS512')}",
    "unsigned": f"Bearer {_token('', 'none')}",
    "of an unknown key id": f"Bearer {_token(kid='0123456789abcdef')}",
    "without a key id": f"Bearer {_token(kid=None)}",
    "issued in the future": f"Bearer {_token(iat=datetime.now(UTC) + timedelta(days=1))}",
    "without a session": f"Bearer {_token(sid=None)}",
    "of a session with a name": f"Bearer {_token(sid='ada')}",
    "of a session beyond all ids": f"Bearer {_token(sid=2**63)}",
    "of a session that is no number": f"Bearer {_token(sid=[1])}",
    "expired": f"Bearer {_token(exp=datetime.now(UTC) - timedelta(seconds=1))}",
    "without an end": f"Bearer {_token(exp=None)}",
    "of a name": f"Bearer {_token(sub='ada')}",
    "of nobody": f"Bearer {_token(sub=str(2**63 - 1))}",
    "of a number beyond all ids": f"Bearer {_token(sub=str(2**63))}",
}


@pytest.mark.parametrize("header", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_a_bad_token_opens_nothing(client, header):
    headers = {} if header is None else {"Authorization": header}

    refused = await client.delete("/api/feed/delete/1", headers=headers)

    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["type"] == "/problems/not-authenticated"


def test_a_bad_token_is_known_by_itself_whatever_sessions_there_are():
    tokens = Tokens(make_settings())
    assert tokens.read(_token())[:2] == (1, 1)

    for header in set(BAD_TOKENS.values()) - {None, BAD_TOKENS["of nobody"]}:
        with pytest.raises(NotAuthenticated):
            tokens.read(header.removeprefix("Bearer "))


async def test_two_who_sign_up_at_once_with_one_address_are_one_account(live_client):
    account = ACCOUNT | {"email": "twice@example.com", "nickname": "Twice"}

    answers = await asyncio.gather(
        *(live_client.post("/api/auth/signup", json=account) for _ in range(8))
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


async def test_ten_log_ins_at_once_leave_the_service_answering(live_app, live_client):
    """Each hash is held until others have been answered: on the event loop, nobody would be."""
    account = ACCOUNT | {"email": "busy@example.com", "nickname": "Busy"}
    await live_client.post("/api/auth/signup", json=account)
    account.pop("nickname")
    passwords, at_once, most = live_app.state.passwords, threading.Semaphore(0), []
    real, working = passwords._verify, set()

    def held(*arguments):
        working.add(threading.get_ident())
        most.append(len(working))
        assert at_once.acquire(timeout=20)
        working.discard(threading.get_ident())
        return real(*arguments)

    passwords._verify = held
    try:
        log_ins = asyncio.gather(
            *(live_client.post("/api/auth/login", json=account) for _ in range(10))
        )
        for done in range(10):
            while len(most) <= done:
                assert (await live_client.get("/healthz")).status_code == 200
                await asyncio.sleep(0)
            at_once.release()
        answers = await log_ins
    finally:
        del passwords._verify

    assert {answer.status_code for answer in answers} == {200}
    assert set(most) == {live_app.state.settings.password_workers}
