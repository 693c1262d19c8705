"""What attackers try at each door: the doors are those of the OpenAPI document, all of them.

Each test sends what would succeed if it were not for the attack, and then looks at every row.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import Base
from tests import pictures
from tests.conftest import PASSWORD, Json, MakeApp, bearer, client_of, files, user_maker
from tests.test_access import SENT, TABLE, filled, people, things

__all__ = ["people"]  # A fixture.
DOORS = ("path", "query", "header", "body")


@pytest.fixture
async def app(make_app: MakeApp) -> FastAPI:
    return await make_app(restore_days=7, show_emails=False)


@dataclass
class Route:
    """A route as the document has it, with all that it takes, by where it takes it."""

    method: str
    path: str
    media_type: str | None = None
    takes: dict[str, dict[str, Json]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def writes(self) -> bool:
        return self.method not in {"GET", "HEAD"}


def routes(app: FastAPI) -> Iterator[Route]:
    document = app.openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            route = Route(method.upper(), path, takes={door: {} for door in DOORS})
            for taken in operation.get("parameters", ()):
                route.takes[taken["in"]][taken["name"]] = taken["schema"]
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                name = content["schema"]["$ref"].rpartition("/")[2]
                route.media_type = kind
                route.takes["body"] = document["components"]["schemas"][name]["properties"]
            yield route


async def send(
    client: httpx.AsyncClient,
    user: Json,
    route: Route,
    ids: Json,
    door: str = "",
    changes: Json | None = None,
) -> httpx.Response:
    """Ask as test_access.py does, which succeeds, but with `changes` at one of the doors."""
    sent = filled(SENT.get(route.label, {}), ids)
    given: dict[str, Json] = {"query": sent.pop("params", {}), "header": bearer(user)}
    given["path"] = {"session_id": 1} | ids
    kind = "json" if route.media_type == "application/json" else "data"
    given["body"] = sent.pop(kind, {})
    if door:
        given[door] = given[door] | (changes or {})
    url = route.path.format(**{name: _quoted(value) for name, value in given["path"].items()})
    url += f"?{_form(given['query'])}"
    headers = {name: _bytes(value) for name, value in given["header"].items()}
    if kind == "json":
        headers["Content-Type"] = b"application/json"
        sent["content"] = json.dumps(given["body"]).encode()
    elif "files" in sent:
        sent["data"] = {name: _bytes(value) for name, value in given["body"].items()}
    elif given["body"]:
        headers["Content-Type"] = b"application/x-www-form-urlencoded"
        sent["content"] = _form(given["body"])
    if route.media_type is None:
        sent = {}
    return await client.request(route.method, url.rstrip("?"), headers=headers, **sent)


def _bytes(value: object) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def _quoted(value: object) -> str:
    return quote_from_bytes(_bytes(value), safe="")


def _form(fields: Json) -> str:
    pairs = [
        (name, item)
        for name, value in fields.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    return "&".join(f"{name}={_quoted(item)}" for name, item in pairs)


async def rows(db: AsyncSession, of: int | None = None) -> dict[str, list[str]]:
    """Every row of every table, or what one user has; to log in as them is no attack."""
    found = {}
    async with db.begin():
        for table in Base.metadata.sorted_tables:
            if of is not None and table.name == "sessions":
                continue
            owners = [name for name in OWNERS if name in table.c]
            owners += ["id"] if table.name == "users" else []
            found[table.name] = sorted(
                repr(row)
                for row in (await db.execute(select(table))).mappings()
                if of is None or of in [row[name] for name in owners]
            )
    return found


OWNERS = {"author_id", "owner_id", "user_id", "avatar_of"}
COLUMNS = sorted({c.name for table in Base.metadata.sorted_tables for c in table.c})


async def test_nothing_is_set_that_a_route_does_not_offer(app, client, people, db):
    """Mass assignment: each body with every column of every table that is no field of it."""
    owner, tried = people["owner"], 0
    ids = await things(client, owner)
    before = await rows(db)

    for route in routes(app):
        extra = [name for name in COLUMNS if name not in route.takes["body"]]
        # So many that a form's limit on fields is not what refuses them.
        for start in range(0, len(extra) if route.media_type else 0, 10):
            more = dict.fromkeys(extra[start : start + 10], "1")
            refused = await send(client, owner, route, ids, "body", more)
            assert refused.status_code == 422, (route.label, refused.text)
            named = {error["pointer"] for error in refused.json()["errors"]}
            assert {f"/{name}" for name in more} <= named, route.label
            tried += 1
        for name in ("id", "is_admin", "author_id", "user_id") if route.writes else ():
            if name not in route.takes["query"]:
                refused = await send(client, owner, route, ids, "query", {name: "1"})
                assert refused.status_code == 422, (route.label, refused.text)

    assert tried > 50
    assert await rows(db) == before


async def test_nobody_does_anything_to_what_is_not_theirs(app, client, people, db):
    """Each id in a path, of somebody else; the statuses one by one are in test_access.py."""
    ids, tried = await things(client, people["owner"]), set()
    sessions = await client.get("/api/auth/sessions", headers=bearer(people["owner"]))
    ids["session_id"] = sessions.json()[0]["id"]
    before = await rows(db)

    for route in routes(app):
        if route.takes["path"] and TABLE[route.label][ASKED_BY_ANOTHER] != 200:
            refused = await send(client, people["other"], route, ids)
            assert refused.status_code in {403, 404}, (route.label, refused.text)
            tried |= set(route.takes["path"])

    assert tried == {"session_id", "feed_id", "comment_id", "image_id"}
    assert await rows(db) == before


ASKED_BY_ANOTHER = 3
# What is sent of somebody else's, or of what is gone, and where; `{…}` is one of the ids below.
NAMED: list[tuple[str, str, str, Any]] = [
    ("POST /api/feed/create", "body", "image_ids", "{pending}"),
    ("POST /api/feed/create", "body", "image_ids", "{attached}"),
    ("PATCH /api/feed/update/{feed_id}", "body", "image_ids", "{pending}"),
    ("PATCH /api/feed/update/{feed_id}", "body", "image_ids", "{attached}"),
    ("PATCH /api/feed/update/{feed_id}", "body", "target_image_urls", "{url}"),
    ("PATCH /api/mypage/profile", "body", "avatar_id", "{pending}"),
    ("PATCH /api/mypage/profile", "body", "avatar_id", "{attached}"),
    ("POST /api/comment/create", "body", "feed_id", "{deleted_feed}"),
    ("POST /api/comment/create", "body", "parent_id", "{comment}"),
    ("POST /api/comment/create", "body", "parent_id", "{deleted_comment}"),
    ("PATCH /api/like/", "query", "feed_id", "{deleted_feed}"),
    ("PATCH /api/like/", "query", "comment_id", "{deleted_comment}"),
]
# Whose feeds are listed may be asked by anybody; a client's id of OAuth 2.0 is taken and not used.
OPEN = {("GET /api/feed/list-by-user", "user_id"), ("POST /api/auth/token", "client_id")}


async def test_nothing_of_others_is_reached_by_an_id_in_a_body_or_a_query(app, client, people, db):
    other, owner = people["other"], people["owner"]
    ids = await things(client, other)
    theirs = await _things_of_all_kinds(client, owner)
    by_label = {route.label: route for route in routes(app)}
    before = await rows(db)

    for label, door, name, value in NAMED:
        wrong = filled(value, theirs)
        changes = {name: [wrong] if name.endswith("s") else wrong}
        if label == "PATCH /api/like/" and name == "comment_id":
            url = f"/api/like/?comment_id={wrong}"
            refused = await client.patch(url, headers=bearer(other))
        else:
            refused = await send(client, other, by_label[label], ids, door, changes)
        assert refused.status_code in {403, 404, 422}, (label, name, value, refused.text)
    assert await rows(db) == before


async def _things_of_all_kinds(client: httpx.AsyncClient, owner: Json) -> Json:
    kept, gone = await things(client, owner), await things(client, owner)
    replied = await client.post(
        "/api/comment/create",
        json={"content": "Reply", "feed_id": kept["feed_id"], "parent_id": kept["comment_id"]},
        headers=bearer(owner),
    )
    image = files("images", pictures.png())
    uploaded = await client.post("/api/image/upload", files=image, headers=bearer(owner))
    feed = await client.get(f"/api/feed/read/{kept['feed_id']}")
    for path in (f"feed/delete/{gone['feed_id']}", f"comment/delete/{replied.json()['id']}"):
        assert (await client.delete(f"/api/{path}", headers=bearer(owner))).status_code == 200
    return {
        "pending": uploaded.json()[0]["id"],
        "attached": kept["image_id"],
        "url": feed.json()["image_urls"][0],
        "comment": kept["comment_id"],
        "deleted_feed": gone["feed_id"],
        "deleted_comment": replied.json()["id"],
    }


def test_each_id_that_a_body_or_a_query_may_name_has_been_tried(app):
    taken = {
        (route.label, name)
        for route in routes(app)
        for door in ("body", "query")
        for name in route.takes[door]
        if re.search("(^|_)(id|ids|url|urls|key)$", name)
    }

    assert taken == {(label, name) for label, _, name, _ in NAMED} | OPEN


TEXTS = {
    "SQL": "'; DROP TABLE users; --",
    "SQL that is true": "' OR '1'='1",
    "SQL that waits": "1); SELECT pg_sleep(9) --",
    "wildcards": "%_%",
    "an escape": "\\' OR 1=1 --\\",
    "a bind": ":id $1 %s %(id)s {0}",
    "a template": "{{7*7}}${7*7}<%=7*7%>#{7*7}",
    "a script": '"><script>alert(1)</script>',
    "lines": "x\r\nSet-Cookie: owned=1\r\n\r\n<html>",
    "U+0000": "x\0y",
    "half a surrogate pair": "x\ud800y",
    "letters that turn the line": "\u202egnp.exe\u2066\ufeff",
    "a path": "../../../../etc/passwd",
    "a formula": '=HYPERLINK("http://evil.example","x")',
    "many marks": "Z" + "\u0351" * 500,
}


@pytest.mark.parametrize("door", DOORS)
async def test_hostile_text_is_text_or_refused_wherever_it_is_put(app, client, people, db, door):
    """By a member, on things of their own: whatever was asked, what is the owner's is as before."""
    ids = await things(client, people["member"]) | {"user_id": people["other"]["id"]}
    await things(client, people["owner"])
    victim = people["owner"]["id"]
    before, tried = await rows(db, of=victim), 0

    for route in routes(app):
        for name in route.takes[door]:
            for text in TEXTS.values():
                answer = await send(client, people["member"], route, ids, door, {name: text})
                assert answer.status_code < 500, (route.label, name, text, answer.text)
                assert "set-cookie" not in answer.headers
                assert not [it for it in answer.headers.values() if re.search("[\r\n\0]", it)]
                tried += 1

    assert tried >= 15 * len(TEXTS)
    assert await rows(db, of=victim) == before


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_what_is_stored_is_the_very_text_or_nothing(client, people, text):
    headers, ids = bearer(people["owner"]), await things(client, people["owner"])
    stored = "\0" not in text and "\ud800" not in text
    body = json.dumps({"content": text, "feed_id": ids["feed_id"]})
    form = _form({"title": text[:200], "content": text})
    as_json = headers | {"Content-Type": "application/json"}
    as_form = headers | {"Content-Type": "application/x-www-form-urlencoded"}

    said = await client.post("/api/comment/create", content=body, headers=as_json)
    bio = await client.patch(
        "/api/mypage/profile", content=json.dumps({"bio": text[:500]}), headers=as_json
    )
    posted = await client.post("/api/feed/create", content=form, headers=as_form)

    assert [said.status_code, bio.status_code] == [200 if stored else 422] * 2
    if stored:
        assert said.json()["content"] == posted.json()["content"] == text
        assert posted.json()["title"] == text[:200]
        assert bio.json()["bio"] == text[:500]


@pytest.mark.parametrize("pattern", ["%", "_" * 9, "The own%", "The%", "\\%", "%owner%", "*", ".*"])
async def test_a_wildcard_finds_nobody(client, people, pattern):
    for name, value in (("nickname", pattern), ("email", pattern), ("email", f"{pattern}@%")):
        found = await client.get("/api/feed/list-by-user", params={name: value})
        assert found.status_code == 404, found.text
    account = {"email": pattern, "password": PASSWORD}
    assert (await client.post("/api/auth/login", json=account)).status_code == 401


HOSTS = ["evil.example", "evil.example:1", "localhost:8000@evil.example", "evil.example/x?"]


@pytest.mark.parametrize("host", HOSTS)
async def test_the_host_that_a_client_makes_up_is_repeated_to_nobody(app, client, people, host):
    """Not in links to a next page, and not in a redirect: those may be cached for others."""
    paths = [route.path.format(**PATH) for route in routes(app) if not route.writes]
    paths += [f"{path}/" for path in paths] + ["/", "/docs", "/docs/assets", "/favicon.ico"]
    paths += ["/api/like", "/account/reset/", "/openapi.json", "/problems/invalid-input/"]
    redirected = 0

    for path in paths:
        headers = bearer(people["owner"]) | {"Host": host, "X-Forwarded-Host": host}
        answer = await client.get(path, headers=headers)
        assert "evil" not in answer.text + repr(answer.headers), path
        if "location" in answer.headers:
            assert re.match("/[a-z]", answer.headers["location"])
            redirected += 1

    assert redirected > 5


PATH = dict.fromkeys(("session_id", "feed_id", "comment_id", "image_id", "user_id"), 1)
PATH |= {"name": "x.jpg"}


async def test_a_redirect_leads_to_where_it_led_before(app):
    async with client_of(app) as client:
        listed = await client.get("/api/feed/list/?limit=2", follow_redirects=True)

    assert (listed.status_code, listed.json()) == (200, [])
    assert str(listed.url) == "http://localhost:8000/api/feed/list?limit=2"


def _broken(name: str, size: int) -> dict[str, bytes]:
    """JSON that is none, or is too much of it, in one field."""
    head = b'{"' + name.encode() + b'": '
    return {
        "arrays in arrays": head + b"[" * size + b"]" * size + b"}",
        "arrays without end": b"[" * size,
        "objects without end": b'{"a":' * (size // 5),
        "100 000 arrays in arrays": b"[" * 100_000 + b"]" * 100_000,
        "NaN": head + b"NaN}",
        "infinity": head + b"-Infinity}",
        "1e999": head + b"1e999}",
        "a million digits in short": head + b"1e1000000}",
        "an integer of 5 000 digits": head + b"9" * 5000 + b"}",
        "below all integers": head + b"-" + b"9" * 400 + b"}",
        "a fraction": head + b"1.5}",
        "a field twice": head + b'"x", "' + name.encode() + b'": "x"}',
        "a field twice, spelled in two ways": head
        + b'"x", "\\u%04x' % ord(name[0])
        + name[1:].encode()
        + b'": "x"}',
        "an odd field twice": b'{"\\ud800": 1, "\\ud800": 2}',
        "a field twice further down": head + b'{"a": 1, "a": 2}}',
        "a prototype": head + b'{"__proto__": {"is_admin": true}}}',
        "no UTF-8": head + b'"\xff"}',
        "two values": head + b'"x"} {}',
    }


async def test_broken_json_is_refused_by_each_route_that_reads_json(app, client, people, db):
    headers = bearer(people["owner"]) | {"Content-Type": "application/json"}
    ids = await things(client, people["owner"]) | {"session_id": 1}
    before, tried = await rows(db), 0

    for route in routes(app):
        for name in route.takes["body"] if route.media_type == "application/json" else ():
            for what, body in _broken(name, 30_000).items():
                url = route.path.format(**ids)
                refused = await client.request(route.method, url, content=body, headers=headers)
                assert refused.status_code in {400, 413, 422}, (route.label, name, what)
                assert refused.headers["content-type"] == "application/problem+json"
                tried += 1

    assert tried > 200
    assert await rows(db) == before


async def test_a_field_that_comes_twice_is_refused_wherever_it_may_come_once(
    app, client, people, db
):
    ids = await things(client, people["owner"])
    before, tried = await rows(db), set()

    for route in routes(app):
        body = filled(SENT.get(route.label, {}), ids).get("json") or {}
        for name, value in body.items():
            doubled = json.dumps(body)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}"
            headers = bearer(people["owner"]) | {"Content-Type": "application/json"}
            url = route.path.format(**ids)
            refused = await client.request(route.method, url, content=doubled, headers=headers)
            assert refused.status_code == 422, (route.label, name)
            assert [error["pointer"] for error in refused.json()["errors"]] == [f"/{name}"]
            tried.add(route.media_type)
        for name, shape in (
            route.takes["body"].items() if "form" in (route.media_type or "") else ()
        ):
            if shape.get("type") != "array":
                twice = {name: ["x", "x"]}
                refused = await send(client, people["owner"], route, ids, "body", twice)
                assert refused.status_code == 422, (route.label, name, refused.text)
                tried.add(route.media_type)

    assert len(tried) == 3
    assert await rows(db) == before


LONG = 50_000
ENDLESS = [
    '"a",' + " " * LONG + "x",
    '"' * LONG,
    "W/" * (LONG // 2),
    ", " * (LONG // 2) + "x",
    "a;" * (LONG // 2),
    'multipart/form-data; boundary="' + "\\\\" * (LONG // 2),
    "for" + " " * LONG,
    "@" * LONG,
    "a." * (LONG // 2) + "@",
    "1" * LONG,
    "-" * LONG,
]
READ = ["If-Match", "If-None-Match", "Idempotency-Key", "Range", "Accept", "Content-Type", "Cookie"]
READ += ["Host", "Origin", "User-Agent", "X-Request-ID", "Authorization", "X-Forwarded-For"]
READ += ["Access-Control-Request-Headers", "Forwarded"]


async def test_no_header_and_no_field_makes_us_think_for_long(make_app):
    """A pattern that tries all ways takes half a minute for these; nobody else is served then."""
    app = await make_app(trusted_proxies="127.0.0.1")
    async with client_of(app) as client:
        user = await user_maker(client)()
        ids = await things(client, user) | {"session_id": 1, "user_id": user["id"]}
        by_label = {route.label: route for route in routes(app)}
        for text in ENDLESS:
            for name in READ:
                for label in ("PATCH /api/feed/update/{feed_id}", "GET /images/{name}"):
                    await _soon(client, user, by_label[label], ids, "header", {name: text})
            for route in by_label.values():
                for door in ("body", "query"):
                    # Of a URL there may be less.
                    some = text if door == "body" else text[:2000]
                    every = dict.fromkeys(route.takes[door], some)
                    if every and route.label != "POST /api/auth/logout":
                        await _soon(client, user, route, ids, door, every)


async def _soon(
    client: httpx.AsyncClient, user: Json, route: Route, ids: Json, door: str, changes: Json
) -> None:
    began = time.perf_counter()
    answer = await send(client, user, route, ids, door, changes)
    assert time.perf_counter() - began < 5, (route.label, door, [*changes], answer.status_code)
    assert answer.status_code < 500, (route.label, door, [*changes], answer.text)


@pytest.mark.parametrize("number", ["true", "false", '"1"', "1.5", "[1]"])
@pytest.mark.parametrize("name", ["feed_id", "parent_id"])
async def test_a_number_in_json_is_a_number(client, people, name, number):
    """`true` is no 1: the document says integer."""
    ids = await things(client, people["owner"])
    words = {"content": '"Words"', "feed_id": str(ids["feed_id"])} | {name: number}
    body = ", ".join(f'"{key}": {value}' for key, value in words.items())
    headers = bearer(people["owner"]) | {"Content-Type": "application/json"}

    refused = await client.post("/api/comment/create", content=f"{{{body}}}", headers=headers)

    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == [f"/{name}"]


# What files are served from, and how one might climb out of there; `{}` is where to.
FOLDERS = ("/docs/assets", "/account/assets", "/images")
TRICKS = [
    "/../{}",
    "/../../{}",
    "/../../../{}",
    "/%2e%2e/{}",
    "/%2e%2e%2f%2e%2e%2f{}",
    "/..%2f..%2f..%2f{}",
    "/%252e%252e%252f{}",
    "/..%5c..%5c{}",
    "/..\\..\\{}",
    "/.%00./{}",
    "/..%00/..%00/{}",
    "/..;/..;/{}",
    "/....//....//{}",
    "/%c0%ae%c0%ae%c0%af{}",
    "/%ef%bc%8e%ef%bc%8e%ef%bc%8f{}",
    "/x/../../{}",
    "//{}",
    "/%2f{}",
    "/{}%00.css",
    "/file:%2f%2f%2f{}",
    "/~root/{}",
    "/.",
    "/..",
    "/",
    "",
]
FILES = [
    "etc/passwd",
    "reset.html",
    "app/main.py",
    "main.py",
    "../main.py",
    ".env",
    "pyproject.toml",
]
OURS = re.compile(rb"root:|\[project\]|from fastapi|<title>|SECRET_KEY")


@pytest.mark.parametrize("folder", FOLDERS)
async def test_no_path_leads_from_served_files_to_others(live_server, folder):
    """Over a socket, as clients mend paths before they send them; in one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live_server)
    for trick in TRICKS:
        for name in FILES:
            for absolute in ("", "http://evil.example"):
                line = f"GET {absolute}{folder}{trick.format(name)} HTTP/1.1\r\nHost: x\r\n\r\n"
                writer.write(line.encode())
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""

                assert int(head.split()[1]) in {307, 400, 404, 422}, (line, head)
                assert not OURS.search(body), (line, body)
                assert b"evil.example" not in head
    writer.close()
