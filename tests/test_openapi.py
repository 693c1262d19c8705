"""The OpenAPI document: true, complete, and fit for tools."""

import asyncio
import os
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC
from hashlib import sha256
from typing import Any

import httpx
import pytest
import schemathesis
from email_validator import EmailNotValidError, validate_email
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import events, from_schema
from schemathesis.openapi.checks import RejectedPositiveData
from sqlalchemy import select, update

from config.db import get_db, open_engine, session_factory
from config.s3 import open_s3
from config.settings import Settings
from models.base import MAX_ID, NOW
from models.feed import SortBy
from models.image import Image
from models.link import EmailVerification, Link, LinkKind, PasswordReset
from models.session import RefreshGrant, RefreshToken
from models.user import User
from routers.dependencies import _current_user, _current_user_id
from routers.idempotency import HEADER, PATTERN
from routers.rates import class_of
from services import links
from services.cursors import Cursor
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    InvalidInput,
    NotAuthenticated,
    Overloaded,
    Refusal,
    TooManyConnections,
)
from tests import pictures
from tests.conftest import PASSWORD, Json, bearer, files
from tests.live import served
from tests.test_access import TABLE

# Examples per operation and phase. Unset: a few, drawn alike each time, so that no run of the suite
# fails by chance; set (`make fuzz`): that many, new ones each time.
FUZZ = int(os.environ.get("FEEDBOARD_FUZZ", "0"))

# What a schema cannot say: fields that must fit each other, or what is stored. A 422 for valid
# single values is right where it names one of these.
BEYOND_SCHEMAS = {
    # A cursor carries its own order and its own place; one in nested order is of comments.
    ("GET /api/feed/list", "/sort_by"),
    ("GET /api/feed/list", "/skip"),
    ("GET /api/feed/list", "/cursor"),
    # Only an image that this feed shows can be removed from it.
    ("PATCH /api/feed/update/{feed_id}", "/target_image_urls"),
    # The limit counts the images that the feed has already.
    ("PATCH /api/feed/update/{feed_id}", "/new_images"),
    # And it counts images uploaded before and files together.
    ("POST /api/feed/create", "/images"),
    # Only the caller's own images, each once, can be posted or put in order.
    ("POST /api/feed/create", "/image_ids"),
    ("PATCH /api/feed/update/{feed_id}", "/image_ids"),
    # Only comments on the same feed can be replied to, and not for ever deeper.
    ("POST /api/comment/create", "/parent_id"),
    # The largest id is no double, and the document's maximum is one that is a little larger.
    ("POST /api/comment/create", "/feed_id"),
    # A list of comments is by `create_dt` alone, and one's own newest first.
    ("GET /api/comment/feed/{feed_id}", "/cursor"),
    ("GET /api/comment/feed/{feed_id}", "/sort_by"),
    ("GET /api/mypage/comments", "/cursor"),
    # The same of one author's feeds, and of mine; an author is named in exactly one way.
    ("GET /api/feed/list-by-user", "/sort_by"),
    ("GET /api/feed/list-by-user", "/skip"),
    ("GET /api/feed/list-by-user", "/cursor"),
    ("GET /api/feed/list-by-user", "/"),
    ("GET /api/mypage/feeds", "/sort_by"),
    ("GET /api/mypage/feeds", "/skip"),
    ("GET /api/mypage/feeds", "/cursor"),
    # Newest first is the only order of these.
    ("GET /api/image/mine", "/cursor"),
    ("GET /api/mypage/deleted", "/cursor"),
    ("GET /api/feed/history/{feed_id}", "/cursor"),
    ("GET /api/like/feed/{feed_id}", "/cursor"),
    ("GET /api/feed/home", "/cursor"),
    ("GET /api/mypage/{user_id}/followers", "/cursor"),
    ("GET /api/mypage/{user_id}/followings", "/cursor"),
    # A new password has to be hard to guess, and the old one to be the caller's.
    ("POST /api/auth/signup", "/password"),
    ("POST /api/auth/password/change", "/old_password"),
    ("POST /api/auth/password/change", "/new_password"),
    ("POST /api/auth/password/reset", "/password"),
    ("GET /api/auth/sessions", "/cursor"),
    # A nickname has to show something; an avatar is a pending image of the caller's.
    ("POST /api/auth/signup", "/nickname"),
    ("PATCH /api/mypage/profile", "/nickname"),
    ("PATCH /api/mypage/profile", "/avatar_id"),
    # Either a feed or a comment.
    ("PATCH /api/like/", "/"),
    # One description for each image; and an empty file counts as none, so there may be none left.
    ("POST /api/image/upload", "/"),
    ("POST /api/image/upload", "/images"),
}

# What any user may do with any user: nobody's own thing, so that nothing is forbidden.
ANYBODYS = {"toggle_follow", "follow", "unfollow", "list_followers", "list_followings"} | {
    "toggle_like",
    "like_feed",
    "unlike_feed",
    "like_comment",
    "unlike_comment",
    "list_likes",
}
# What the tokens in its body open, by themselves.
BY_TOKEN = {
    "POST /api/auth/refresh",
    "POST /api/auth/password/reset",
    "POST /api/auth/email/verify",
}


def _is_address(text: str) -> bool:
    try:
        validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _register_formats() -> None:
    """Make valid what the document's formats stand for: addresses, pictures, cursors, tags."""
    domains = st.sampled_from(["example.com", "mail.example.org", "xn--bcher-kva.example.com"])
    names = st.text("aZ09!#$%&'*+-/=?^_`{|}~é한", min_size=1, max_size=20)
    addresses = st.builds("{}@{}".format, names, domains).filter(_is_address)
    schemathesis.openapi.format("email", addresses)
    files = [pictures.png(), pictures.jpeg(), pictures.avif(), pictures.camera_jpeg()]
    schemathesis.openapi.format("binary", st.sampled_from(files))
    times = st.datetimes(timezones=st.just(UTC))
    ids = st.integers(0, MAX_ID)
    paths = st.just(()) | st.lists(ids, max_size=8).map(tuple)
    cursors = st.builds(Cursor, st.sampled_from(SortBy), times, ids, paths)
    tags = st.from_regex(r'(W/)?"[!#-~]+"(, "[!#-~]*")?', fullmatch=True)
    schemathesis.openapi.format("etag", st.just("*") | tags)
    schemathesis.openapi.format("cursor", cursors.map(Cursor.encode))


def _keep_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Tell findings from what schemathesis cannot know; its name for this is `filter_failure`."""
    if isinstance(failure, RejectedPositiveData) and response.status_code == 422:
        pointers = [error["pointer"] for error in response.json()["errors"]]
        named = {"/" + pointer[1:].partition("/")[0] for pointer in pointers}
        named -= {"/If-Match"}  # What its format is, no schema can say.
        return not all((case.operation.label, pointer) in BEYOND_SCHEMAS for pointer in named)
    if isinstance(failure, RejectedPositiveData) and response.status_code == 412:
        return False  # Nor which version there is.
    if isinstance(failure, RejectedPositiveData) and response.status_code == 400:
        # A schema does not know who asks.
        return bool(response.json()["type"] != "/problems/following-oneself")
    if isinstance(failure, AcceptedNegativeData):
        # 413 refuses, too. And it breaks bodies by rules of thumb: a number becomes text in a form,
        # and fits after all.
        return response.status_code != 413 and not _only_seems_broken(case)
    return True


def _never_the_same_key(context: Any, case: Any, kwargs: Any) -> None:
    """What schemathesis draws is often the same; a good key is made one of this request's own."""
    headers = case.headers or {}
    if re.fullmatch(PATTERN, str(headers.get(HEADER, ""))):
        headers[HEADER] = secrets.token_hex(8)


def _only_seems_broken(case: Any) -> bool:
    """Whether the body alone was to be wrong, and fits its schema nevertheless as it is read."""
    wrong = {place for place, part in case.meta.components.items() if part.mode.is_negative}
    if wrong != {ParameterLocation.BODY} or not isinstance(case.body, dict):
        return False
    document = case.operation.schema.raw_schema
    operation = document["paths"][case.operation.path][case.operation.method]
    reference = operation["requestBody"]["content"][case.media_type]["schema"]["$ref"]
    shape = document["components"]["schemas"][reference.rpartition("/")[2]]
    body = case.body if case.media_type == "application/json" else _as_form(case.body, shape)
    known = shape | {"components": document["components"]}
    return Draft202012Validator(known).is_valid(body)


def _as_form(body: Json, shape: Json) -> Json:
    """A body as a form carries it: all is text or files, and what is empty counts as left out."""
    read = {}
    for name, value in body.items():
        values = value if isinstance(value, list) else [value]
        sent = [getattr(item, "data", item) for item in values]  # A file's bytes are its data.
        texts = ["null" if item is None else str(item) for item in sent if item not in ("", b"")]
        is_array = shape["properties"].get(name, {}).get("type") == "array"
        if texts:
            read[name] = texts if is_array else texts[-1]
    return read


@dataclass
class Findings:
    """What was tried, what was answered, what is wrong."""

    operations: set[str] = field(default_factory=set)
    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0


Hook = Callable[[Any, Any, Any], None]
# What would log out whoever tries it, and who tries it instead.
_INSTEAD = {
    "POST /api/auth/logout": "leaver@example.com",
    "DELETE /api/auth/sessions/{session_id}": "ender@example.com",
}


def _as_somebody_else(log_in: Callable[[str], Awaitable[dict[str, str]]]) -> Hook:
    """Have each log-out tried in a session of its own, of which `log_in` gives the headers."""
    loop = asyncio.get_running_loop()

    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        email = _INSTEAD.get(case.operation.label)
        if email and "Authorization" in (case.headers or {}):
            headers = asyncio.run_coroutine_threadsafe(log_in(email), loop).result(30)

            def instead(request: Any) -> Any:
                request.headers.update(headers)
                return request

            kwargs["auth"] = instead

    return before_call


def _fuzz(url: str, headers: dict[str, str]) -> Findings:
    """Run schemathesis' engine: examples, boundaries, random values and chains of calls."""
    generation: Json = {"max-examples": FUZZ or 3, "deterministic": not FUZZ}
    config = SchemathesisConfig.from_dict(
        {
            "headers": headers,
            "continue-on-failure": True,
            "generation": generation,
            "phases": {"coverage": {"generate-duplicate-query-parameters": True}},
        }
        | ({} if FUZZ else {"seed": 1})
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    schema.hooks.register_hook_with_name(_keep_failure, "filter_failure")
    schemathesis.hook("before_call")(_never_the_same_key)
    found = Findings({operation.ok().label for operation in schema.get_all_operations()})
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                found.cases[event.phase.value] += len(event.recorder.cases)
                _collect(found, event.recorder)
            case events.NonFatalError():
                found.faults.append(event.info.format())
            case events.FatalError():
                raise event.exception
            case events.EngineFinished():
                found.seconds = event.running_time
    return found


def _collect(found: Findings, recorder: Any) -> None:
    for case_id, checks in recorder.checks.items():
        call = recorder.interactions.get(case_id)
        if call and call.response:
            label = recorder.cases[case_id].value.operation.label
            found.statuses[label, call.response.status_code] += 1
        for check in checks:
            if check.failure_info:
                failure = check.failure_info.failure
                found.faults.append(
                    f"{failure.operation}: {failure.title}. {failure.message}\n"
                    f"{check.failure_info.code_sample}\n"
                    f"{call.response.status_code} {call.response.content[:500]!r}"
                )


# The first comment, on a feed whose id is hardly drawn, so that it is not deleted with it.


@pytest.fixture
async def live(
    make_database: Callable[[], Awaitable[str]], settings: Settings
) -> AsyncIterator[tuple[str, dict[str, str], Hook]]:
    """The URL of a service on a database of its own, a user's headers, and who logs out instead.

    There is an image of the documented name, and the second feed is one to restore.
    """
    live = settings.model_copy(
        update={"database_url": await make_database(), "access_log": False, "max_images": 4}
        | {"max_pending_images": 100_000, "max_user_bytes": 2**60, "restore_days": 7}
        | {"access_token_minutes": 24 * 60}
    )
    async with served(live) as url, httpx.AsyncClient(base_url=url) as client:
        leaving = await _plant_sessions(client, live)
        headers = await _log_in(client)
        words = {"title": "T", "content": "C"}
        for _ in range(2):
            await client.post("/api/feed/create", data=words, headers=headers)
        await client.delete("/api/feed/delete/2", headers=headers)
        image = files("images", pictures.jpeg())
        posted = await client.post("/api/feed/create", data=words, files=image, headers=headers)
        await _rename(live, posted.json()["images"][0]["id"], "images/DmqkLjB9nV0aXjMzV0yq3A.jpg")
        await _comment(client, headers)
        await _link(live)
        yield url, headers, leaving


async def _plant_sessions(client: httpx.AsyncClient, settings: Settings) -> Hook:
    """Let others have sessions: those with the smallest ids, one with the documented token.

    They are under the ids that are tried most: somebody to follow.
    """
    for email in _INSTEAD.values():
        account = {"email": email, "password": PASSWORD, "nickname": email}
        (await client.post("/api/auth/signup", json=account)).raise_for_status()

    async def log_in(email: str) -> dict[str, str]:
        account = {"email": email, "password": PASSWORD}
        return bearer((await client.post("/api/auth/login", json=account)).json())

    for _ in range(3):
        await log_in("ender@example.com")
    documented = RefreshGrant.model_fields["refresh_token"].examples or []
    planted = update(RefreshToken).where(RefreshToken.session_id == 3)
    async with open_engine(settings) as engine, engine.begin() as db:
        digest = sha256(documented[0].encode()).digest()
        await db.execute(planted.values(token_hash=digest))
    return _as_somebody_else(log_in)


async def _log_in(client: httpx.AsyncClient) -> dict[str, str]:
    account = {"email": "fuzz@example.com", "password": PASSWORD, "nickname": "Fuzz"}
    (await client.post("/api/auth/signup", json=account)).raise_for_status()
    account.pop("nickname")
    return bearer((await client.post("/api/auth/login", json=account)).json())


async def _rename(settings: Settings, image_id: int, key: str) -> None:
    async with open_engine(settings) as engine, open_s3(settings) as s3:
        async with engine.begin() as db:
            old = await db.scalar(select(Image.key).where(Image.id == image_id))
            await db.execute(update(Image).where(Image.id == image_id).values(key=key))
        source: Any = {"Bucket": settings.s3_bucket, "Key": old}
        await s3.copy_object(Bucket=settings.s3_bucket or "", Key=key, CopySource=source)


async def _link(settings: Settings) -> None:
    """Make the links of the documented token: of somebody who gets no mail, which would void
    them. One token is of one link, so the second kind has its own example's."""
    shapes = (PasswordReset, EmailVerification)
    async with open_engine(settings) as engine, session_factory(engine)() as db, db.begin():
        for kind, shape in zip(LinkKind, shapes, strict=True):
            (token,) = shape.model_fields["token"].examples or ()
            user = User(email=kind, email_key=kind, password_hash="", nickname=kind)
            user.nickname_key = kind
            db.add(user)
            await db.flush()
            link = Link(user_id=user.id, kind=kind, token_hash=links._hash(token))
            link.expires_dt = NOW + kind.life
            db.add(link)


async def _comment(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Make a comment to change and delete and one to restore: those with the smallest ids, which
    are tried, on a feed that has none of these, so that they do not go with it before."""
    words = {"title": "T", "content": "C"}
    for _ in range(3):
        feed = await client.post("/api/feed/create", data=words, headers=headers)
    for _ in range(2):
        comment = {"content": "C", "feed_id": feed.json()["id"]}
        said = await client.post("/api/comment/create", json=comment, headers=headers)
    path = f"/api/comment/delete/{said.json()['id']}"
    (await client.delete(path, headers=headers)).raise_for_status()


async def test_schemathesis_finds_nothing(live):
    _register_formats()
    url, headers, leaving = live

    # Schemathesis has no narrower place for a hook of this kind.
    schemathesis.hook(leaving)
    try:
        found = await asyncio.to_thread(_fuzz, url, headers)
    finally:
        schemathesis.hooks.unregister(leaving)

    print(f"{found.cases} in {found.seconds:.1f} s: {sorted(found.statuses.items())}")  # For -s.
    assert not found.faults, "\n\n".join(dict.fromkeys(found.faults))
    # It proves little of an operation that it never brought to succeed.
    # (The caller's password is not in the document: who runs this stays.)
    succeeded = {label for label, status in found.statuses if status == 200}
    assert succeeded == found.operations - {"DELETE /api/mypage"}


async def test_schemathesis_finds_nothing_without_a_token_either(live):
    """And what it brings to succeed is what the table of test_access.py leaves open to nobody."""
    _register_formats()
    url, _, _ = live

    found = await asyncio.to_thread(_fuzz, url, {})

    print(f"{found.cases} in {found.seconds:.1f} s: {sorted(found.statuses.items())}")  # For -s.
    assert not found.faults, "\n\n".join(dict.fromkeys(found.faults))
    succeeded = {label for label, status in found.statuses if status < 400}
    assert succeeded == {label for label, allowed in TABLE.items() if allowed[0] == 200} | BY_TOKEN


@pytest.fixture
def document(app: FastAPI) -> Json:
    return app.openapi()


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def routes(app: FastAPI) -> Iterator[RouteContext]:
    return (route for route in iter_route_contexts(app.routes) if hasattr(route, "dependant"))


def needs(dependant: Dependant) -> set[Any]:
    """All functions that a route depends on."""
    return {dependant.call}.union(*map(needs, dependant.dependencies))


def bodies(document: Json) -> Iterator[tuple[str, Json]]:
    """The shape of each body, by media type; fields of problems have no part in it."""
    for _, _, operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            name = content["schema"]["$ref"].rpartition("/")[2]
            yield kind, document["components"]["schemas"][name]


def test_the_document_is_valid_openapi(document):
    OpenAPIV31SpecValidator(document).validate()


async def test_whatever_changes_something_demands_a_user(app, client):
    open_to_all = {"signup", "login", "token", "refresh"}
    open_to_all |= {"forgot_password", "reset_password", "verify_email"}
    changing = [
        (method, re.sub("{[a-z_]+}", "1", route.path_format))
        for route in routes(app)
        for method in route.methods - {"GET", "HEAD"}
        if route.name not in open_to_all
    ]

    assert changing
    for method, path in changing:
        assert (await client.request(method, path)).status_code == 401, (method, path)


async def test_no_read_passes_over_a_bad_token(document, client):
    # Load balancers ask for the one, an <img> for the other: the answer is the same to everybody,
    # and may be cached. (Docs and problems are pages that the document does not list.)
    open_to_all = {"/healthz", "/readyz", "/images/{name}"}
    reads = [path for method, path, _ in operations(document) if method == "GET"]

    assert open_to_all < set(reads)
    for path in set(reads) - open_to_all:
        url = re.sub("{[a-z_]+}", "1", path)
        refused = await client.get(url, headers={"Authorization": "Bearer nonsense"})
        assert refused.status_code == 401, path
        assert "401" in document["paths"][path]["get"]["responses"], path


def test_every_route_lists_its_problems(app, document):
    for route in routes(app):
        expected = {413, 422}  # Of all bodies and all parameters.
        expected |= {400, 415} if route.body_field else set()
        expected |= {404} if route.dependant.path_params else set()
        expected |= {503} if get_db in needs(route.dependant) else set()
        expected |= {401} if _current_user in needs(route.dependant) else set()
        expected |= {403} if {401, 404} <= expected and route.name not in ANYBODYS else set()
        expected |= {401} if _current_user_id in needs(route.dependant) else set()
        for method in route.methods if route.include_in_schema else ():
            listed = document["paths"][route.path_format][method.lower()]["responses"]
            assert {str(status) for status in expected} <= set(listed), (method, route.path)


def test_no_route_forgets_what_all_of_its_kind_refuse(app, document):
    """Of two lists that have a status in common, the router's and the route's, the last counts."""
    for route in routes(app):
        needed = needs(route.dependant)
        expected: set[type[Refusal]] = {ContentTooLarge, InvalidInput, TooManyConnections}
        expected |= {DatabaseUnavailable} if get_db in needed and route.name != "readyz" else set()
        expected |= {NotAuthenticated} if {_current_user, _current_user_id} & needed else set()
        for method in route.methods if route.include_in_schema else ():
            expected |= {Overloaded} if class_of(method, route.path_format) else set()
            responses = document["paths"][route.path_format][method.lower()]["responses"]
            listed = {
                example["value"]["type"]
                for response in responses.values()
                for content in response.get("content", {}).values()
                for example in content.get("examples", {}).values()
            }
            assert {kind.type() for kind in expected} <= listed, (method, route.path_format)


def test_every_error_is_a_problem_with_an_example(document):
    schemas = document["components"]["schemas"]
    problem = Draft202012Validator(schemas["Problem"] | {"components": document["components"]})
    for method, path, operation in operations(document):
        errors = {k: v for k, v in operation["responses"].items() if k >= "400"}
        for status, response in errors.items():
            assert set(response["content"]) == {"application/problem+json"}, (method, path, status)
            content = response["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for example in content["examples"].values():
                problem.validate(example["value"])
                assert str(example["value"]["status"]) == status
                assert ("errors" in example["value"]) == (status == "422")
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)


def test_every_route_says_what_it_does(document):
    ids = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(ids)) == len(ids)
    for method, path, operation in operations(document):
        assert re.fullmatch("[a-z]+(_[a-z]+)*", operation["operationId"])
        assert operation["summary"], (method, path)
        assert operation["description"].endswith("."), (method, path)
        assert operation["tags"], (method, path)


def test_every_body_has_examples_that_fit(document):
    shapes = list(bodies(document))

    assert shapes
    for _, shape in shapes:
        for name, field_ in shape["properties"].items():
            for example in field_.get("examples", []):
                known = field_ | {"components": document["components"]}
                Draft202012Validator(known).validate(example)
            is_file = field_.get("items", {}).get("format") == "binary"
            assert field_.get("examples") or is_file or name not in shape.get("required", []), (
                shape["title"],
                name,
            )


def test_files_are_marked_so_that_tools_offer_to_pick_them(document):
    files = [
        (name, field_["items"]["format"], field_["maxItems"])
        for kind, shape in bodies(document)
        for name, field_ in shape["properties"].items()
        if kind == "multipart/form-data" and name in {"images", "new_images"}
    ]

    # Posting a feed, changing one, uploading images.
    assert sorted(files) == [("images", "binary", 10)] * 2 + [("new_images", "binary", 10)]
