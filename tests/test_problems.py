"""Errors: one shape for all of them, and what else a client may rely on when one comes."""

import re
from typing import Any
from uuid import UUID

import httpx
import pytest
import structlog
from sqlalchemy import text

from config.db import open_engine, session_factory
from routers.dependencies import Db
from routers.problems import KINDS
from services.errors import Refusal
from tests import pictures
from tests.conftest import PASSWORD, bearer, client_of, files

WORDS = {"title": "T", "content": "C"}
ADA = {"email": "ada@example.com", "password": PASSWORD, "nickname": "Ada"}
JSON = {"Content-Type": "application/json"}
MINE, HERS = "/api/feed/update/{mine}", "/api/feed/update/{hers}"
PNG = pictures.png()

# What is asked, as whom, and the kind of problem that answers.
PROBLEMS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "no such path": ("GET", "/nowhere", {}, "route-not-found"),
    "no such method": ("PUT", "/healthz", {}, "method-not-allowed"),
    "no such feed": ("GET", "/api/feed/read/999999999", {}, "feed-not-found"),
    "no such comment": ("DELETE", "/api/comment/delete/999999999", {}, "comment-not-found"),
    "no such image": ("GET", "/images/none.jpg", {}, "image-not-found"),
    "no such kind of problem": ("GET", "/problems/none", {}, "route-not-found"),
    "no such asset": ("GET", "/docs/assets/none.js", {}, "route-not-found"),
    "an unknown parameter": ("GET", "/api/feed/list?page=2", {}, "invalid-input"),
    "a bad parameter": ("GET", "/api/feed/list?limit=0", {}, "invalid-input"),
    "a bad cursor": ("GET", "/api/feed/list?cursor=x", {}, "invalid-input"),
    "a bad id": ("GET", "/api/feed/read/x", {}, "invalid-input"),
    "a taken address": ("POST", "/api/auth/signup", {"json": ADA}, "email-taken"),
    "a taken nickname": (
        "POST",
        "/api/auth/signup",
        {"json": ADA | {"email": "new@example.com"}},
        "nickname-taken",
    ),
    "no such user": ("GET", "/api/user/999999999", {}, "user-not-found"),
    "a link that is none": (
        "POST",
        "/api/auth/email/verify",
        {"json": {"token": "x"}},
        "link-not-found",
    ),
    "no such session": ("DELETE", "/api/auth/sessions/999999999", {}, "session-not-found"),
    "no such refresh token": (
        "POST",
        "/api/auth/refresh",
        {"json": {"refresh_token": "none"}},
        "invalid-refresh-token",
    ),
    "following oneself": ("PUT", "/api/follow/{me}", {}, "following-oneself"),
    "a missing field": ("POST", "/api/auth/signup", {"json": {}}, "invalid-input"),
    "broken JSON": ("POST", "/api/auth/login", {"headers": JSON, "content": b"{"}, "invalid-input"),
    "JSON too deep": (
        "POST",
        "/api/auth/login",
        {"headers": JSON, "content": b"[" * 9999},
        "malformed-body",
    ),
    "a wrong password": (
        "POST",
        "/api/auth/login",
        {"json": {"email": "ada@example.com", "password": "wrong"}},
        "invalid-credentials",
    ),
    "a body too large": (
        "POST",
        "/api/auth/login",
        {"json": {"email": "x" * 70_000}},
        "content-too-large",
    ),
    "a body of another kind": ("PATCH", MINE, {"json": {}}, "unsupported-media-type"),
    "no token": ("PATCH", MINE, {"headers": {"Authorization": ""}}, "not-authenticated"),
    "another's feed": ("PATCH", HERS, {"data": WORDS}, "forbidden"),
    "no image": ("PATCH", MINE, {"files": files("new_images", b"x")}, "unsupported-image"),
    "half an image": ("PATCH", MINE, {"files": files("new_images", PNG[:-9])}, "damaged-image"),
    "an image too large": (
        "PATCH",
        MINE,
        {"files": files("new_images", pictures.bomb_png())},
        "image-too-large",
    ),
    "no form": (
        "PATCH",
        MINE,
        {"headers": {"Content-Type": "multipart/form-data"}, "content": b"x"},
        "malformed-body",
    ),
    "a range outside": (
        "GET",
        "{image}",
        {"headers": {"Range": "bytes=99999-"}},
        "range-not-satisfiable",
    ),
}


def assert_problem(answer: httpx.Response, kind: str) -> dict[str, Any]:
    """The one shape (RFC 9457), whatever the problem is."""
    problem: dict[str, Any] = answer.json()
    known = KINDS[f"/problems/{kind}"]
    members = {"type", "title", "status", "detail", "instance"}
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(problem) - {"errors"} == members
    assert (problem["type"], problem["title"]) == (known.type(), known.title())
    assert problem["status"] == answer.status_code == known.status
    assert problem["detail"].strip()
    assert problem["instance"] == answer.headers["x-request-id"]
    for error in problem.get("errors", ()):
        assert set(error) == {"pointer", "detail"}
        assert re.fullmatch("(/.+)*", error["pointer"])
        assert error["detail"].strip()
    return problem


@pytest.mark.parametrize(("method", "url", "sent", "kind"), PROBLEMS.values(), ids=PROBLEMS)
async def test_every_problem_has_one_shape(
    client, make_user, make_feed, stored_keys, method, url, sent, kind
):
    ada = await make_user(email="ada@example.com", nickname="Ada")
    mine = await make_feed(author=ada, images=[PNG])
    hers = await make_feed(author=await make_user())
    image = mine["image_urls"][0].removeprefix("http://localhost:8000")

    answer = await client.request(
        method,
        url.format(mine=mine["id"], hers=hers["id"], me=ada["id"], image=image),
        **(sent | {"headers": bearer(ada) | sent.get("headers", {})}),
    )

    problem = assert_problem(answer, kind)
    assert (answer.status_code == 422) == ("errors" in problem)
    assert answer.headers.get("www-authenticate") == (
        "Bearer" if problem["status"] == 401 else None
    )


def test_every_kind_of_problem_has_been_shown():
    faults_of_ours = {"internal-error", "storage-unavailable", "database-unavailable", "not-ready"}
    elsewhere = {"nothing-uploaded", "quota-exceeded"}  # in test_direct_uploads and test_quotas
    elsewhere |= {"too-many-requests", "too-many-attempts"}  # test_rate_limits, test_attempts
    elsewhere |= {"email-not-verified"}  # test_accounts
    elsewhere |= {"refresh-token-reused", "export-running"}  # test_sessions, test_export
    elsewhere |= {"precondition-failed", "unknown-host"}  # test_conditions, test_hardening
    elsewhere |= {"malformed-request", "request-timeout", "took-too-long"}  # test_slow
    elsewhere |= {"too-many-connections", "overloaded"}  # test_slow, test_shedding
    elsewhere |= {"idempotency-key-reused", "request-outstanding"}  # in test_idempotency and _races
    shown = {kind for *_, kind in PROBLEMS.values()} | faults_of_ours | elsewhere

    assert {f"/problems/{kind}" for kind in shown} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
async def test_the_type_of_a_problem_leads_to_what_it_means(client, kind: type[Refusal]):
    page = await client.get(kind.type())

    assert page.status_code == 200
    assert page.json()["title"] == kind.title()
    assert page.json()["description"].endswith(".")


async def test_each_fault_of_the_input_is_named(client):
    refused = await client.post("/api/auth/signup", json={"email": "x", "password": "short"})

    named = assert_problem(refused, "invalid-input")["errors"]
    assert [error["pointer"] for error in named] == ["/email", "/password", "/nickname"]


async def _fail() -> None:
    raise RuntimeError("an inner secret")


async def _fail_in_the_database(db: Db) -> None:
    async with db.begin():
        await db.execute(text("SELECT an_inner_secret"))


@pytest.mark.parametrize("fault", [_fail, _fail_in_the_database])
async def test_a_fault_of_ours_tells_nothing_and_is_logged_under_the_requests_id(app, fault):
    app.get("/fault")(fault)
    processors = [structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info]

    async with client_of(app) as client:
        with structlog.testing.capture_logs(processors) as logged:
            answer = await client.get("/fault", headers={"Origin": "https://elsewhere.example"})

    problem = assert_problem(answer, "internal-error")
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == "*"
    (entry,) = [entry for entry in logged if entry["log_level"] == "error"]
    assert entry["request_id"] == problem["instance"]
    assert "secret" in entry["exception"]


async def test_a_browser_elsewhere_can_read_a_problem(client):
    answer = await client.get("/nowhere", headers={"Origin": "https://elsewhere.example"})

    assert answer.headers["access-control-allow-origin"] == "*"
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


async def test_a_database_that_is_down_is_said_to_be_so(app, settings, capabilities):
    dead = settings.model_copy(update={"database_url": "postgresql+asyncpg://a@127.0.0.1:1/a"})
    token = bearer({"access_token": capabilities.tokens.issue(1, 1)})
    async with open_engine(dead) as engine, client_of(app) as client:
        app.state.sessions = app.state.reading = session_factory(engine)
        answers = [
            await client.get("/api/feed/list"),
            await client.post("/api/auth/signup", json=ADA),
            await client.delete("/api/feed/delete/1", headers=token),
        ]
        ready = await client.get("/readyz")
        alive = await client.get("/healthz")

    for answer in answers:
        assert_problem(answer, "database-unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert "database" in assert_problem(ready, "not-ready")["detail"]
    assert int(ready.headers["retry-after"]) > 0
    assert alive.status_code == 200


async def test_a_store_that_is_down_is_said_to_be_so(make_app, client, make_user):
    author = await make_user()
    async with client_of(await make_app(s3_endpoint_url="http://127.0.0.1:1")) as without:
        refused = await without.post(
            "/api/feed/create", data=WORDS, files=files("images", PNG), headers=bearer(author)
        )

    assert_problem(refused, "storage-unavailable")
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "given", ["a", "A-1.b_2", "x" * 128, "0199d4a2-7c1e-7b3f-9a54-3f1c2d6e8b90"]
)
async def test_a_sane_request_id_is_taken_over(client, given):
    answer = await client.get("/nowhere", headers={"X-Request-ID": given})

    assert assert_problem(answer, "route-not-found")["instance"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\tb", "{}", "é", "<script>"])
async def test_an_insane_request_id_is_replaced_by_a_new_one(client, given):
    headers = {} if given is None else {"X-Request-ID": given.encode("latin-1")}

    answers = [await client.get("/nowhere", headers=headers) for _ in range(2)]

    first, second = (
        UUID(assert_problem(answer, "route-not-found")["instance"]) for answer in answers
    )
    assert first.version == second.version == 7
    assert first < second


async def test_a_success_bears_its_request_id_too(client):
    answer = await client.get("/healthz", headers={"X-Request-ID": "mine"})

    assert answer.headers["x-request-id"] == "mine"
