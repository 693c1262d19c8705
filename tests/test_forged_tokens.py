"""Access tokens that somebody made up, wholly or in part: none of them opens anything."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.errors import NotAuthenticated
from services.tokens import key_id
from tests.conftest import SECRET, Json, bearer

KID = key_id(SECRET)
NOW, DAY = int(time.time()), 24 * 60 * 60  # Tests come long after this module is read.
THEIRS = "a key of the attacker's own, long enough for anything"


def _segment(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _signed(head: bytes, claims: bytes, key: str = SECRET, digest: str = "sha256") -> str:
    """By hand: a library would not sign most of this."""
    text = f"{_segment(head)}.{_segment(claims)}"
    return f"{text}.{_segment(hmac.digest(key.encode(), text.encode(), digest))}"


def _token(claims: Json, head: Json, key: str = SECRET, digest: str = "sha256") -> str:
    standard = {"alg": "HS256", "typ": "JWT", "kid": KID}
    present = {name: value for name, value in (standard | head).items() if value is not ...}
    return _signed(json.dumps(present).encode(), json.dumps(claims).encode(), key, digest)


# What is changed in a good token's head, and what it is signed with instead.
HEADS: dict[str, tuple[Json, str, str]] = {
    **{
        f"the algorithm {name!r}": ({"alg": name}, SECRET, "sha256")
        for name in ("none", "None", "NONE", "nOnE", "", None, ["HS256"], "hs256", "HS256 ", 256)
    },
    "no algorithm": ({"alg": ...}, SECRET, "sha256"),
    "HS384 with our key": ({"alg": "HS384"}, SECRET, "sha384"),
    "HS512 with our key": ({"alg": "HS512"}, SECRET, "sha512"),
    **{
        f"{name}, with our key for a public one": ({"alg": name}, SECRET, "sha256")
        for name in ("RS256", "ES256", "PS256", "EdDSA")
    },
    "another key": ({}, THEIRS, "sha256"),
    "the key's name for a key": ({}, KID, "sha256"),
    "no key": ({}, "", "sha256"),
    "a path for a key, of an empty file": ({"kid": "/dev/null"}, "", "sha256"),
    "a path from here": ({"kid": "../../../../dev/null"}, "", "sha256"),
    "SQL for a key": ({"kid": f"x' UNION SELECT '{THEIRS}' --"}, THEIRS, "sha256"),
    "a command for a key": ({"kid": "|echo x"}, THEIRS, "sha256"),
    "no name of a key": ({"kid": ...}, SECRET, "sha256"),
    **{
        f"a key called {name!r}": ({"kid": name}, SECRET, "sha256")
        for name in (None, "", 0, True, [KID], {"kid": KID}, KID.upper(), KID + "\0", "__class__")
    },
    "a key that it brings along": (
        {"kid": "theirs", "jwk": {"kty": "oct", "k": _segment(THEIRS.encode())}},
        THEIRS,
        "sha256",
    ),
    "keys to be fetched": (
        {"kid": "theirs", "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"},
        THEIRS,
        "sha256",
    ),
    "an extension that has to be understood": ({"crit": ["exp"], "exp": 1}, SECRET, "sha256"),
    "claims that are not encoded": ({"b64": False}, SECRET, "sha256"),
}
# All that int() would take, and then some.
_ODD = [..., None, True, [1], {"": 1}, "", "x", "1 OR 1=1", "\u0661", 1.9, float("inf")]
SUBJECTS = [*_ODD, 1, 1.0, "0", "-1", str(2**63), "9" * 5000, "%", " 1", "+1", "01", "1_0", "1\0"]
SESSIONS = [*_ODD, "1", 0, -1, 2**63, 10**4000, float("nan")]
# What is changed in a good token's claims; signed with our own key, as if that had leaked.
CLAIMS: dict[str, Json] = {
    "expired": {"exp": NOW - 10},
    "not yet issued": {"iat": NOW + DAY},
    "not yet valid": {"nbf": NOW + DAY},
    "for somebody else": {"aud": "another service"},
    **{f"ends at {end!r}": {"exp": end} for end in (..., None, "x", [], -1, -(10**400))},
    **{f"issued at {at!r}": {"iat": at} for at in (..., None, "x", [], 10**400)},
    **{f"of the user {sub!r}": {"sub": sub} for sub in SUBJECTS},
    **{f"in the session {sid!r}": {"sid": sid} for sid in SESSIONS},
}


async def _opens_nothing(app: FastAPI, client: httpx.AsyncClient, token: str, what: str) -> None:
    with suppress(NotAuthenticated):
        pytest.fail(f"{what}: {app.state.tokens.read(token)}")
    # Each of the three ways in which a route asks who it is.
    for method, url in (
        ("GET", "/api/mypage/profile"),
        ("GET", "/api/feed/list"),
        ("PUT", "/api/like/feed/1"),
    ):
        refused = await client.request(method, url, headers={"Authorization": f"Bearer {token}"})
        assert refused.status_code == 401, (what, method, url, refused.text)
        assert refused.json()["type"] == "/problems/not-authenticated"


def _claims(app: FastAPI, user: Json, **changes: Any) -> Json:
    access = app.state.tokens.read(user["access_token"])
    now = int(time.time())
    good = {"sub": str(access.user_id), "sid": access.session_id, "iat": now, "exp": now + 300}
    return {name: value for name, value in (good | changes).items() if value is not ...}


async def test_a_token_that_is_made_as_we_make_them_is_good(app, client, make_user):
    """Else all that follows would prove nothing."""
    token = _token(_claims(app, await make_user()), {})

    read = await client.get("/api/mypage/profile", headers={"Authorization": f"Bearer {token}"})

    assert read.status_code == 200


async def test_no_head_of_a_token_talks_us_into_another_key(app, client, make_user):
    user = await make_user()
    for what, (head, key, digest) in HEADS.items():
        token = _token(_claims(app, user), head, key, digest)

        await _opens_nothing(app, client, token, what)
        await _opens_nothing(app, client, token.rpartition(".")[0] + ".", f"{what}, unsigned")


async def test_no_claim_is_taken_for_what_it_is_not(app, client, make_user):
    user = await make_user()
    for what, changes in CLAIMS.items():
        # Of the first user in the first session, whose ids odd claims would be read as.
        claims = _claims(app, user, **{"sub": "1", "sid": 1} | changes)

        await _opens_nothing(app, client, _token(claims, {}), what[:40])


DEEP = b"[" * 20_000
BYTES = {
    "claims without end": (json.dumps({"alg": "HS256", "kid": KID}).encode(), DEEP),
    "a head without end": (DEEP, b"{}"),
    "a head of heads": (b'{"kid":' * 5000 + b"1" + b"}" * 5000, b"{}"),
    "a number of 9 000 digits": (b'{"alg":"HS256","kid":' + b"9" * 9000 + b"}", b"{}"),
    "a head that is a list": (b"[]", b"{}"),
    "claims that are a list": (json.dumps({"alg": "HS256", "kid": KID}).encode(), b"[]"),
    "no UTF-8": (b"\xff\xfe", b"\xff"),
    "nothing": (b"", b""),
}


async def test_what_is_no_token_at_all_is_refused_as_calmly(app, client):
    for what, (head, claims) in BYTES.items():
        await _opens_nothing(app, client, _signed(head, claims), what)


async def test_parts_of_good_tokens_make_no_good_one(app, client, make_user):
    ada, eve = await make_user(), await make_user()
    hers, mine = (user["access_token"].split(".") for user in (ada, eve))
    sid = app.state.tokens.read(eve["access_token"]).session_id

    for parts in (
        (mine[0], hers[1], mine[2]),
        hers[:2],
        (*hers, hers[2]),
        (hers[0], hers[1], hers[2][:-4]),
        (hers[0], hers[1], hers[2].swapcase()),
    ):
        await _opens_nothing(app, client, ".".join(parts), str(parts))
    # With our own signature, even: Ada's id with Eve's session (see also test_sessions.py).
    mixed = {"access_token": _token(_claims(app, ada, sid=sid), {})}
    refused = await client.get("/api/mypage/profile", headers=bearer(mixed))
    assert refused.status_code == 401


async def test_a_token_is_good_for_its_own_purpose_and_place_alone(app, client, make_user):
    user = await make_user()

    await _opens_nothing(app, client, user["refresh_token"], "a refresh token")
    grant = {"refresh_token": user["access_token"][:200]}
    assert (await client.post("/api/auth/refresh", json=grant)).status_code == 401
    for name in ("access_token", "token", "Authorization"):
        url = f"/api/mypage/profile?{name}={user['access_token']}"
        assert (await client.get(url)).status_code in {401, 422}
        cookie = {"Cookie": f"{name}={user['access_token']}"}
        assert (await client.get("/api/mypage/profile", headers=cookie)).status_code == 401
