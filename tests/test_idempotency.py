"""Idempotency keys: a write that is sent again is answered again, and done once."""

import inspect
import json
import re
import secrets
from datetime import timedelta

import anyio
import httpx
import pytest
from sqlalchemy import delete, func, select, text, update

from models import metadata
from models.base import NOW
from models.idempotency import IdempotencyKey
from models.link import LinkKind
from models.user import User
from services import idempotency as service
from services import links
from tests import pictures
from tests.conftest import PASSWORD, bearer, client_of, files
from tests.test_openapi import operations
from tests.test_problems import assert_problem

PNG, JPEG = pictures.png(), pictures.camera_jpeg()
EVE = {"email": "eve@example.com", "password": PASSWORD, "nickname": "Eve"}
NEW = "a lighthouse at noon"
WORDS = {"title": "T", "content": "C"}
WRITES = {"POST", "PATCH", "PUT", "DELETE"}
REPLAYED = "idempotent-replayed"
# Writes that keep no answer, and why.
UNKEPT = {
    "login": "its answer is a secret, and secrets are not written down",
    "token": "its answer is a secret, and secrets are not written down",
    "refresh": "its answer is a secret, and secrets are not written down",
    "leave": "the account takes its answers along",
    "logout": "whoever sends it again has no token any more that is good",
}


def key(name=None):
    return {"Idempotency-Key": f'"{name or secrets.token_hex(8)}"'}


class World:
    """A board on which there is something of everything, to be changed."""

    def __init__(self, client, make_user, make_feed, db):
        self.db, self.client, self.make_user, self.make_feed = db, client, make_user, make_feed

    async def build(self):
        self.ada, self.bob = await self.make_user(), await self.make_user()
        self.headers, self.other = bearer(self.ada), self.bob["id"]
        self.feed = (await self.make_feed(self.ada, images=[PNG]))["id"]
        self.comment = (await self.ask("POST", "comment/create", json=self.said()))["id"]
        return self

    async def ask(self, method, path, **sent):
        answer = await self.client.request(method, f"/api/{path}", headers=self.headers, **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def said(self):
        return {"feed_id": self.feed, "content": "Hear, hear"}

    async def presigned(self):
        asked = {"type": "image/jpeg", "bytes": len(JPEG)}
        form = await self.ask("POST", "image/presign", json=asked)
        async with httpx.AsyncClient() as browser:
            await browser.post(form["url"], data=form["fields"], files={"file": ("a", JPEG)})
        return form["id"]

    async def uploaded(self):
        return (await self.ask("POST", "image/upload", files=files("images", PNG)))[0]["id"]

    async def deleted(self, kind, id_):
        await self.ask("DELETE", f"{kind}/delete/{id_}")
        return id_

    async def deleted_comment(self):
        return await self.deleted("comment", self.comment)

    async def deleted_feed(self):
        return await self.deleted("feed", self.feed)

    async def avatar(self):
        return {"json": {"bio": "I walk.", "avatar_id": await self.uploaded()}}

    async def link(self, kind, **more):
        async with self.db.begin():
            user = await self.db.get(User, self.ada["id"])
            return {"json": {"token": await links.issue(self.db, user, kind)} | more}

    async def session(self):
        account = {"email": self.ada["email"], "password": PASSWORD}
        await self.ask("POST", "auth/login", json=account)
        return next(it["id"] for it in await self.ask("GET", "auth/sessions") if not it["current"])

    async def request(self, name):
        """Method, path and content of a request that will be carried out."""
        assert name in REQUESTS, f"say below what {name} is sent, or above why it keeps no answer"
        method, path, sent = REQUESTS[name]
        for place in re.findall(r"\{(\w+)\}", path):
            value = getattr(self, place)
            path = path.format_map({place: await value() if callable(value) else value})
        sent = sent(self)
        return method, path, await sent if inspect.isawaitable(sent) else sent


def nothing(world):
    return {}


# What each route is sent, so that it writes.
REQUESTS = {
    "signup": ("POST", "auth/signup", lambda _: {"json": EVE}),
    "change_password": (
        "POST",
        "auth/password/change",
        lambda _: {"json": {"old_password": PASSWORD, "new_password": NEW}},
    ),
    "forgot_password": (
        "POST",
        "auth/password/forgot",
        lambda world: {"json": {"email": world.ada["email"]}},
    ),
    "reset_password": (
        "POST",
        "auth/password/reset",
        lambda world: world.link(LinkKind.RESET, password=NEW),
    ),
    "send_verification": ("POST", "auth/email/send", nothing),
    "verify_email": ("POST", "auth/email/verify", lambda world: world.link(LinkKind.VERIFY)),
    "end_session": ("DELETE", "auth/sessions/{session}", nothing),
    "create_comment": ("POST", "comment/create", lambda world: {"json": world.said()}),
    "update_comment": ("PATCH", "comment/update/{comment}", lambda _: {"json": {"content": "No"}}),
    "delete_comment": ("DELETE", "comment/delete/{comment}", nothing),
    "restore_comment": ("POST", "comment/restore/{deleted_comment}", nothing),
    "create_feed": (
        "POST",
        "feed/create",
        lambda _: {"data": WORDS, "files": files("images", PNG, JPEG)},
    ),
    "update_feed": (
        "PATCH",
        "feed/update/{feed}",
        lambda _: {"data": WORDS, "files": files("new_images", JPEG)},
    ),
    "delete_feed": ("DELETE", "feed/delete/{feed}", nothing),
    "restore_feed": ("POST", "feed/restore/{deleted_feed}", nothing),
    "upload_images": ("POST", "image/upload", lambda _: {"files": files("images", PNG)}),
    "presign_image": (
        "POST",
        "image/presign",
        lambda _: {"json": {"type": "image/jpeg", "bytes": 1000}},
    ),
    "complete_image": ("POST", "image/{presigned}/complete", nothing),
    "describe_image": ("PATCH", "image/{uploaded}", lambda _: {"json": {"alt": "A dog"}}),
    "delete_image": ("DELETE", "image/{uploaded}", nothing),
    "update_my_profile": ("PATCH", "mypage/profile", World.avatar),
    "toggle_like": ("PATCH", "like/?feed_id={feed}", nothing),
    "like_feed": ("PUT", "like/feed/{feed}", nothing),
    "unlike_feed": ("DELETE", "like/feed/{feed}", nothing),
    "like_comment": ("PUT", "like/comment/{comment}", nothing),
    "unlike_comment": ("DELETE", "like/comment/{comment}", nothing),
    "toggle_follow": ("PATCH", "follow/{other}", nothing),
    "follow": ("PUT", "follow/{other}", nothing),
    "unfollow": ("DELETE", "follow/{other}", nothing),
}


@pytest.fixture
async def app(make_app):
    return await make_app(restore_days=7)


@pytest.fixture
async def world(client, make_user, make_feed, db):
    return await World(client, make_user, make_feed, db).build()


async def contents(db):
    """All that is stored, but for the keys."""
    found = {}
    for table in metadata.tables:
        if table != "idempotency_keys":
            rows = text(f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} t")
            async with db.begin():
                found[table] = await db.scalar(rows)
    return found


def lasting(answer):
    """What of an answer is the same each time."""
    changing = {"date", "x-request-id", REPLAYED}
    headers = {k: v for k, v in answer.headers.items() if k not in changing}
    return answer.status_code, headers, answer.content


def writes(document):
    return {
        operation["operationId"]: operation
        for method, _, operation in operations(document)
        if method in WRITES
    }


async def kept(db):
    async with db.begin():
        return await db.scalar(select(func.count()).select_from(IdempotencyKey))


async def age(db, by):
    async with db.begin():
        await db.execute(update(IdempotencyKey).values(create_dt=NOW - by))


async def test_every_write_sent_again_is_answered_alike_and_done_once(
    app, client, db, make_user, make_feed
):
    for name in writes(app.openapi()).keys() - UNKEPT.keys():
        world = await World(client, make_user, make_feed, db).build()
        method, path, sent = await world.request(name)
        headers = world.headers | key()
        first = await client.request(method, f"/api/{path}", headers=headers, **sent)
        before = await contents(db)
        for _, (_, file) in sent.get("files", ()):
            file.seek(0)

        again = await client.request(method, f"/api/{path}", headers=headers, **sent)

        assert first.status_code == 200, (name, first.text)
        assert REPLAYED not in first.headers
        assert again.headers[REPLAYED] == "true", name
        assert lasting(again) == lasting(first), name
        assert await contents(db) == before, name


def test_the_document_shows_where_keys_are_taken(app):
    for name, operation in writes(app.openapi()).items():
        shown = [it for it in operation.get("parameters", ()) if it["name"] == "Idempotency-Key"]
        assert bool(shown) == (name not in UNKEPT), name
        if shown:
            assert not shown[0]["required"]
            for status, problem in (("409", "Request outstanding"), ("422", "Invalid input")):
                content = operation["responses"][status]["content"]["application/problem+json"]
                assert problem in content["examples"], name


async def test_a_page_elsewhere_may_send_a_key_and_see_that_an_answer_is_replayed(client):
    asked = {"Access-Control-Request-Method": "POST", "Origin": "https://elsewhere.example"}
    preflight = await client.options(
        "/api/feed/create", headers=asked | {"Access-Control-Request-Headers": "idempotency-key"}
    )
    answer = await client.get("/healthz", headers=asked)

    assert preflight.status_code == 200
    assert "idempotency-key" in preflight.headers["access-control-allow-headers"].lower()
    assert "Idempotent-Replayed" in answer.headers["access-control-expose-headers"]


async def test_the_same_key_with_another_request_is_refused(world, client):
    headers = world.headers | key()
    await client.post("/api/comment/create", json=world.said(), headers=headers)

    for method, path, sent in (
        ("POST", "comment/create", {"json": world.said() | {"content": "No"}}),
        ("POST", "comment/create", {"content": json.dumps(world.said(), indent=1)}),
        ("PATCH", f"like/?feed_id={world.feed}", {}),
        ("DELETE", f"like/feed/{world.feed}", {}),
    ):
        json_ = {"Content-Type": "application/json"} if "content" in sent else {}
        answer = await client.request(method, f"/api/{path}", headers=headers | json_, **sent)
        assert_problem(answer, "idempotency-key-reused")
    assert len(await world.ask("GET", f"comment/feed/{world.feed}")) == 2


async def test_a_key_is_its_users_own(world, client):
    headers = key()
    path = f"/api/like/?feed_id={world.feed}"

    answers = [
        await client.patch(path, headers=headers | bearer(user)) for user in (world.ada, world.bob)
    ]

    assert [answer.json()["like_count"] for answer in answers] == [1, 2]


def form(boundary, *, name="a.png", kind="image/png", data=PNG, title="T"):
    """A form, as different clients send it."""
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="title"\r\n\r\n{title}\r\n',
        f'--{boundary}\r\nContent-Disposition: form-data; name="content"\r\n\r\nC\r\n',
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n',
        f"Content-Type: {kind}\r\n\r\n",
    ]
    body = "".join(lines).encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return {
        "content": body,
        "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    }


async def test_a_form_is_the_same_whatever_its_boundary_and_one_object_is_stored(
    client, make_user, stored_keys
):
    mine = bearer(await make_user()) | key()

    async def post(boundary, **changes):
        sent = form(boundary, **changes)
        headers = sent["headers"] | mine
        return await client.post("/api/feed/create", content=sent["content"], headers=headers)

    first = await post("one")
    stored = await stored_keys()
    again = await post("another-one")
    others = [
        await post("one", **change)
        for change in (
            {"name": "b.png"},
            {"kind": "image/jpeg"},
            {"data": PNG[:-1]},
            {"title": "U"},
        )
    ]

    assert lasting(again) == lasting(first)
    assert again.headers[REPLAYED] == "true"
    assert await stored_keys() == stored != set()
    for other in others:
        assert_problem(other, "idempotency-key-reused")


async def test_a_big_file_is_told_from_another_that_differs_in_its_last_byte(client, make_user):
    mine = bearer(await make_user()) | key()
    big = PNG + bytes(3_000_000)  # Kept on disk while it is read.

    async def upload(data):
        sent = files("images", data)
        return await client.post("/api/image/upload", files=sent, headers=mine)

    first, again, other = [await upload(data) for data in (big, big, big[:-1] + b"x")]

    assert first.status_code == 200, first.text
    assert lasting(again) == lasting(first)
    assert_problem(other, "idempotency-key-reused")


@pytest.mark.parametrize(
    ("given", "same"),
    [('"a"', "a"), ('"a b,c;d"', None), (r'"\"\\"', None), ('"' + "x" * 255 + '"', "x" * 255)],
)
async def test_a_key_is_a_string_quoted_or_bare(world, client, given, same):
    path = f"/api/like/?feed_id={world.feed}"
    answers = [
        await client.patch(path, headers=world.headers | {"Idempotency-Key": spelt})
        for spelt in (given, same or given)
    ]

    assert [answer.json()["liked"] for answer in answers] == [True, True]


@pytest.mark.parametrize(
    "given",
    ["", '""', '"', '"a', 'a"', '"a"b"', r'"\a"', "a b", "a,b", '"a";b=1', "x" * 256, "é", "a\tb"],
)
async def test_a_bad_key_is_refused_and_nothing_is_done(world, client, given):
    headers = world.headers | {"Idempotency-Key": given.encode("latin-1")}
    answer = await client.patch(f"/api/like/?feed_id={world.feed}", headers=headers)

    problem = assert_problem(answer, "invalid-input")
    assert problem["errors"][0]["pointer"] == "/Idempotency-Key"
    assert (await world.ask("GET", f"feed/read/{world.feed}"))["like_count"] == 0


async def test_two_keys_are_none(world, client):
    headers = [*world.headers.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await client.patch(f"/api/like/?feed_id={world.feed}", headers=headers)

    assert_problem(answer, "invalid-input")


async def test_a_refusal_is_replayed_with_the_first_ones_id(world, client, make_feed):
    theirs = (await make_feed(world.bob))["id"]
    headers = world.headers | key()

    first, again = [
        await client.delete(f"/api/feed/delete/{theirs}", headers=headers) for _ in range(2)
    ]

    problem = assert_problem(first, "forbidden")
    assert lasting(again) == lasting(first)
    assert again.headers[REPLAYED] == "true"
    assert again.json()["instance"] == problem["instance"] != again.headers["x-request-id"]


async def test_what_was_not_carried_out_leaves_the_key_free(world, client, db):
    mine = world.headers | key()
    for headers, sent in (
        (key(mine["Idempotency-Key"].strip('"')), world.said()),  # nobody's
        (mine, {"feed_id": world.feed}),
        (mine, {"feed_id": "x", "content": ""}),
    ):
        refused = await client.post("/api/comment/create", json=sent, headers=headers)
        assert refused.status_code in {401, 422}
        assert await kept(db) == 0

    done = await client.post("/api/comment/create", json=world.said(), headers=mine)

    assert done.status_code == 200


async def test_a_fault_of_ours_leaves_the_key_free(make_app, world, client, db):
    headers = world.headers | key()
    sent = form("b")
    headers |= sent.pop("headers")
    async with client_of(await make_app(s3_endpoint_url="http://127.0.0.1:1")) as without:
        failed = await without.post("/api/feed/create", headers=headers, **sent)
    assert_problem(failed, "storage-unavailable")
    assert await kept(db) == 0

    done = await client.post("/api/feed/create", headers=headers, **sent)

    assert done.status_code == 200
    assert REPLAYED not in done.headers


async def test_after_a_day_a_key_is_new(world, client, db):
    headers = world.headers | key()
    path = f"/api/like/?feed_id={world.feed}"

    liked = []
    for hours in (0, 23.9, 24):
        await age(db, timedelta(hours=hours))
        liked.append((await client.patch(path, headers=headers)).json()["liked"])

    assert liked == [True, True, False]


async def test_old_keys_are_forgotten_and_young_ones_are_not(world, client, db):
    for _ in range(5):
        await client.patch(f"/api/like/?feed_id={world.feed}", headers=world.headers | key())
    await age(db, service.KEPT)
    await client.patch(f"/api/like/?feed_id={world.feed}", headers=world.headers | key())

    assert await service.purge(db, batch=2) == 5
    assert await kept(db) == 1


async def test_a_stranger_with_the_same_key_opens_an_account_of_their_own(client, db):
    accounts = [
        {"email": f"{name}@example.com", "password": PASSWORD, "nickname": name}
        for name in ("Grace", "Heidi")
    ]
    accounts.append(accounts[0] | {"password": PASSWORD + "?"})

    grace, heidi, guess, again = [
        await client.post("/api/auth/signup", json=account, headers=key("1"))
        for account in (*accounts, accounts[0])
    ]

    assert grace.json()["nickname"] == "Grace"
    assert heidi.json()["nickname"] == "Heidi"
    assert_problem(guess, "email-taken")
    assert lasting(again) == lasting(grace)
    async with db.begin():
        assert set(await db.scalars(select(IdempotencyKey.user_id))) == {None}


async def test_a_token_that_is_no_good_does_not_keep_anybody_from_signing_up(client):
    account = {"email": "ivan@example.com", "password": PASSWORD, "nickname": "Ivan"}
    headers = key() | {"Authorization": "Bearer expired"}

    assert (await client.post("/api/auth/signup", json=account, headers=headers)).status_code == 200


async def test_no_secret_is_written_down(world, client, db):
    account = {"email": world.ada["email"], "password": PASSWORD}
    form_ = {"grant_type": "password", "username": world.ada["email"], "password": PASSWORD}
    new = {"email": "judy@example.com", "password": PASSWORD, "nickname": "Judy"}

    logins = [
        await client.post("/api/auth/login", json=account, headers=key("a")) for _ in range(2)
    ]
    logins.append(await client.post("/api/auth/token", data=form_, headers=key("a")))
    await client.post("/api/auth/signup", json=new, headers=key("a"))

    assert [login.status_code for login in logins] == [200] * 3
    assert not any(REPLAYED in login.headers for login in logins)
    async with db.begin():
        (row,) = (await db.execute(select(IdempotencyKey.__table__))).all()
    assert PASSWORD not in str(row)


async def test_an_account_takes_its_answers_along(make_user, client, db):
    user = await make_user()
    await client.patch("/api/mypage/profile", json={"bio": "B"}, headers=bearer(user) | key())
    assert await kept(db) == 1

    async with db.begin():
        await db.execute(delete(User).where(User.id == user["id"]))

    assert await kept(db) == 0


async def test_another_condition_is_another_request(world, client):
    headers = world.headers | key()
    path, sent = f"/api/comment/update/{world.comment}", {"content": "N"}
    seen = await client.get(f"/api/comment/read/{world.comment}", headers=world.headers)

    first, other = [
        await client.patch(path, json=sent, headers=headers | {"If-Match": tag})
        for tag in (seen.headers["etag"], '"2"')
    ]

    assert first.status_code == 200
    assert_problem(other, "idempotency-key-reused")


async def test_what_was_completed_before_is_answered_under_a_key_as_well(world, client):
    path = f"/api/image/{await world.presigned()}/complete"
    await world.ask("POST", path.removeprefix("/api/"))
    headers = world.headers | key()

    first, again = [await client.post(path, headers=headers) for _ in range(2)]

    assert first.status_code == 200
    assert lasting(again) == lasting(first)
    assert again.headers[REPLAYED] == "true"


async def test_what_is_kept_of_a_request_tells_nothing_without_the_secret(make_app, client, db):
    """Else a password could be guessed by it, as a bare hash can."""
    async with client_of(await make_app(secret_key=secrets.token_hex(32))) as elsewhere:
        answers = [
            await board.post("/api/auth/signup", json=EVE, headers=key("1"))
            for board in (client, elsewhere)
        ]

    assert [answer.status_code for answer in answers] == [200, 409]
    async with db.begin():
        one, two = (await db.scalars(select(IdempotencyKey))).all()
    assert {one.key_hash, one.fingerprint}.isdisjoint({two.key_hash, two.fingerprint})


async def test_whoever_is_cancelled_lets_go_of_the_key_all_the_same(sessions, db):
    found = await service.claim(sessions, user_id=None, key_hash=b"k", fingerprint=b"f")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await service.settle(sessions, service.Claim(found, None), None)

    assert await kept(db) == 0
