"""Whatever is sent, no answer is a fault of ours: the promise that no input reaches a 500."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog

from config.settings import Settings
from tests import pictures
from tests.conftest import bearer
from tests.live import served

ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery", "nickname": "Ada"}
JSON = {"Content-Type": "application/json"}
LOG_IN = b'{"email": "ada@example.com", "password": '
NESTED = 10_000

JSON_BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 422),
    "half of it": (b'{"email": "ada@exa', 422),
    "an array": (b"[]", 422),
    "null": (b"null", 422),
    "a number": (b"1", 422),
    "a string": (b'"x"', 422),
    "an array in a field": (LOG_IN + b"[1]}", 422),
    "null in a field": (LOG_IN + b"null}", 422),
    "NaN": (LOG_IN + b"NaN}", 422),
    "infinity": (LOG_IN + b"-Infinity}", 422),
    "1e999": (LOG_IN + b"1e999}", 422),
    "an integer of 5 000 digits": (LOG_IN + b"9" * 5000 + b"}", 400),
    "a field twice": (LOG_IN + b'"one", "password": "two"}', 422),
    "an unknown field": (LOG_IN + b'"x", "admin": true}', 422),
    "an unknown field of half a surrogate pair": (LOG_IN + b'"x", "\\ud800": 1}', 422),
    "half a surrogate pair": (LOG_IN + b'"\\ud800"}', 422),
    "half a surrogate pair in an address": (b'{"email": "\\udfff@x.com", "password": "x"}', 422),
    "U+0000": (b'{"email": "\\u0000", "password": "x"}', 422),
    "U+0000 in a password": (LOG_IN + b'"\\u0000"}', 401),
    "arrays in arrays": (b"[" * NESTED + b"]" * NESTED, 400),
    "objects in objects": (b'{"":' * NESTED + b"1" + b"}" * NESTED, 400),
    "arrays in arrays in a field": (LOG_IN + b"[" * NESTED + b"]" * NESTED + b"}", 400),
    "bytes that are no UTF-8": (LOG_IN + b'"\xff\xfe"}', 400),
    "UTF-16": (json.dumps({"email": "a@b.cc", "password": "x"}).encode("utf-16"), 401),
    "a byte order mark": (b"\xef\xbb\xbf" + LOG_IN + b'"x"}', 401),
    "more than the route takes": (LOG_IN + b'"' + b"x" * 70_000 + b'"}', 413),
}


def _problem(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


@pytest.mark.parametrize(("body", "status"), JSON_BODIES.values(), ids=JSON_BODIES)
async def test_a_json_body_is_read_or_refused(client, body, status):
    _problem(await client.post("/api/auth/login", content=body, headers=JSON), status)


@pytest.mark.parametrize(
    "email", ["\ud800@example.com", "a@\udfff.com", "a\0@example.com", "a@" + "b." * 5000, "@" * 99]
)
async def test_an_address_that_is_none_is_refused(client, email):
    body = json.dumps(ACCOUNT | {"email": email}).encode()
    refused = _problem(await client.post("/api/auth/signup", content=body, headers=JSON), 422)
    assert [error["pointer"] for error in refused["errors"]] == ["/email"]


def _multipart(*parts: bytes, boundary: bytes = b"b") -> bytes:
    joined = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return joined + b"--" + boundary + b"--\r\n"


def _part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value


TEXTS = _part(b"title", b"T"), _part(b"content", b"C")
FILE = b'; filename="a.png"'
MANY = [_part(b"x%d" % number, b"") for number in range(2000)]
MULTIPART = "multipart/form-data; boundary=b"
FORMS: dict[str, tuple[str, bytes, int]] = {
    "nothing": (MULTIPART, b"", 422),
    "no boundary": ("multipart/form-data", _multipart(*TEXTS), 400),
    "an empty boundary": ("multipart/form-data; boundary=", _multipart(*TEXTS), 400),
    "a boundary in another alphabet": (
        "multipart/form-data; boundary=\xe9",
        _multipart(*TEXTS),
        400,
    ),
    "another boundary": (MULTIPART, _multipart(*TEXTS, boundary=b"other"), 400),
    "no end": (MULTIPART, _multipart(*TEXTS)[:-6], 422),
    "a part without a name": (
        MULTIPART,
        _multipart(b"Content-Disposition: form-data\r\n\r\nx"),
        400,
    ),
    "a part without headers": (MULTIPART, _multipart(b"\r\nx"), 400),
    "a header without a colon": (MULTIPART, _multipart(b"nonsense\r\n\r\nx"), 400),
    "a name of odd bytes": (MULTIPART, _multipart(*TEXTS, _part(b"\xff\x00", b"x")), 422),
    "a multipart part": (
        MULTIPART,
        _multipart(
            *TEXTS, _part(b"images", b"--c", b"\r\nContent-Type: multipart/mixed;boundary=c")
        ),
        422,
    ),
    "thousands of fields": (MULTIPART, _multipart(*TEXTS, *MANY), 400),
    "too many files": (MULTIPART, _multipart(*TEXTS, *[_part(b"images", b"x", FILE)] * 31), 400),
    "more files than a feed has": (
        MULTIPART,
        _multipart(*TEXTS, *[_part(b"images", pictures.png(), FILE)] * 11),
        422,
    ),
    "a file where text is wanted": (
        MULTIPART,
        _multipart(_part(b"title", b"T", FILE), TEXTS[1]),
        422,
    ),
    "text where a file is wanted": (MULTIPART, _multipart(*TEXTS, _part(b"images", b"x")), 422),
    "an unknown file": (MULTIPART, _multipart(*TEXTS, _part(b"x", b"x", FILE)), 422),
    "U+0000": (MULTIPART, _multipart(_part(b"title", b"\0"), TEXTS[1]), 422),
    "text without end": (MULTIPART, _multipart(TEXTS[0], _part(b"content", b"x" * 600_000)), 400),
    "text too long": (MULTIPART, _multipart(TEXTS[0], _part(b"content", b"x" * 100_001)), 422),
    "an unknown charset": (MULTIPART + "; charset=none", _multipart(TEXTS[0]), 415),
    "no field that it should have": ("application/x-www-form-urlencoded", b"=&&;%%%=%", 422),
    "a form of odd bytes": ("application/x-www-form-urlencoded", b"title=%ff&content=\xff%00", 422),
    "JSON": ("application/json", b'{"title": "T", "content": "C"}', 415),
    "text": ("text/plain", b"title", 415),
    "no kind": ("", b"title", 415),
    "an odd kind": ("\xff/;;=\xfe", b"title", 415),
}


@pytest.mark.parametrize(("kind", "body", "status"), FORMS.values(), ids=FORMS)
async def test_a_form_is_read_or_refused_and_leaves_nothing(
    client, make_user, stored_keys, kind, body, status
):
    headers = bearer(await make_user()) | {"Content-Type": kind.encode("latin-1")}

    _problem(await client.post("/api/feed/create", content=body, headers=headers), status)

    assert (await client.get("/api/feed/list")).json() == []
    assert await stored_keys() == set()


async def test_a_form_of_bytes_that_are_no_utf_8_is_text_all_the_same(client, make_user):
    body = _multipart(_part(b"title", b"\xff\xfe"), _part(b"content", b"\xed\xa0\x80"))
    headers = bearer(await make_user()) | {"Content-Type": MULTIPART}

    posted = await client.post("/api/feed/create", content=body, headers=headers)

    assert posted.status_code == 200
    assert posted.json()["title"] == "ÿþ"


async def test_json_does_not_pass_for_a_change_of_nothing(client, make_user, make_feed):
    author = await make_user()
    feed = await make_feed(author=author)

    refused = await client.patch(
        f"/api/feed/update/{feed['id']}", json={"title": "New"}, headers=bearer(author)
    )

    assert "multipart/form-data" in _problem(refused, 415)["detail"]


PLACES: dict[str, tuple[str, str, int]] = {
    "an id of 0": ("GET", "/api/feed/read/0", 422),
    "an id below 0": ("GET", "/api/feed/read/-1", 422),
    "the largest id": ("GET", f"/api/feed/read/{2**63 - 1}", 404),
    "an id beyond bigint": ("GET", f"/api/feed/read/{2**63}", 422),
    "an id of 5 000 digits": ("GET", "/api/feed/read/" + "9" * 5000, 422),
    "an id with a point": ("GET", "/api/feed/read/1.5", 422),
    "an id of U+0000": ("GET", "/api/feed/read/%00", 422),
    "an id of odd bytes": ("GET", "/api/feed/read/%ff%fe", 422),
    "an id in other digits": ("GET", "/api/feed/read/%D9%A1", 422),
    "an id of a slash": ("GET", "/api/feed/read/%2e%2e%2f1", 404),
    "no id": ("GET", "/api/feed/read/", 404),
    "an image of U+0000": ("GET", "/images/%00.jpg", 404),
    "an image of odd bytes": ("GET", "/images/%ff%fe", 404),
    "an image above its folder": ("GET", "/images/..%2f..%2fetc", 404),
    "an image of a dot": ("GET", "/images/.", 404),
    "an image of two dots": ("HEAD", "/images/%2e%2e", 404),
    "an image without a name": ("GET", "/images/", 404),
    "an image with a query": ("GET", "/images/a.jpg?versionId=1", 422),
    "an image of a long name": ("GET", "/images/" + "a" * 101, 422),
    "an image of another script": ("GET", "/images/%F0%9F%90%9F.jpg", 404),
    "a limit beyond all": ("GET", "/api/feed/list?limit=" + "9" * 5000, 422),
    "a limit of U+0000": ("GET", "/api/feed/list?limit=%00", 422),
    "a limit with a point": ("GET", "/api/feed/list?limit=1e1", 422),
    "a limit that is not a number": ("GET", "/api/feed/list?limit=NaN", 422),
    "a limit twice": ("GET", "/api/feed/list?limit=1&limit=2", 422),
    "a skip below 0": ("GET", "/api/feed/list?skip=-1", 422),
    "a total of odd bytes": ("GET", "/api/feed/list?total=%ff", 422),
    "an unknown order": ("GET", "/api/feed/list?sort_by=title", 422),
    "an empty order": ("GET", "/api/feed/list?sort_by=", 422),
    "an unknown parameter": ("GET", "/api/feed/list?page=2", 422),
    "a parameter of odd bytes": ("GET", "/api/feed/list?%ff%00=1", 422),
    "a cursor of odd bytes": ("GET", "/api/feed/list?cursor=%ff", 422),
    "a cursor of other letters": ("GET", "/api/feed/list?cursor=%C3%A9%C3%A9", 422),
    "a cursor of no time": ("GET", "/api/feed/list?cursor=Y3JlYXRlX2R0X2FzYyB4IDk", 422),
    "a long cursor": ("GET", "/api/feed/list?cursor=" + "A" * 60_000, 422),
    "a thousand parameters": (
        "GET",
        "/api/feed/list?" + "&".join(f"a{n}=" for n in range(1000)),
        422,
    ),
    "comments of a feed beyond bigint": ("GET", f"/api/comment/feed/{2**63}", 422),
    "comments by pages": ("GET", "/api/comment/feed/1?page=2", 422),
    "comments sorted by their change": ("GET", "/api/comment/feed/1?sort_by=update_dt_asc", 422),
    "two slashes": ("GET", "//api/feed/list", 404),
    "nowhere": ("GET", "/nowhere", 404),
    "nowhere in odd bytes": ("GET", "/%ff%00%0d%0a", 404),
    "a file above the assets": ("GET", "/docs/assets/..%2f..%2f__init__.py", 404),
    "an asset that is none": ("GET", "/docs/assets/%00", 404),
}


@pytest.mark.parametrize(("method", "url", "status"), PLACES.values(), ids=PLACES)
async def test_a_url_that_makes_no_sense_is_refused(client, method, url, status):
    answer = await client.request(method, url)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]
PATHS = {
    "/api/auth/signup": {"POST"},
    "/api/feed/create": {"POST"},
    "/api/feed/read/1": {"GET"},
    "/api/feed/list": {"GET"},
    "/api/feed/update/1": {"PATCH"},
    "/api/feed/delete/1": {"DELETE"},
    "/api/comment/create": {"POST"},
    "/api/comment/feed/1": {"GET"},
    "/api/mypage/comments": {"GET"},
    "/images/a.jpg": {"GET", "HEAD"},
    "/healthz": {"GET"},
    "/readyz": {"GET"},
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_method_that_a_path_does_not_take_is_refused_with_those_that_it_takes(client, path):
    for method in set(METHODS) - PATHS[path]:
        refused = await client.request(method, path)

        assert refused.status_code == 405
        assert set(refused.headers["allow"].split(", ")) == PATHS[path]
        assert refused.headers["content-type"] == "application/problem+json"


HEADERS = {
    "Range": ["bytes=", "bytes=-", "bytes=1-0", "bytes=0-0,2-3", "bytes=-" + "9" * 30, "lines=1-2"],
    "If-None-Match": ["", "*", '"', "W/", '"' + "a" * 5000 + '"', "\xff\xfe", '"a", "b"'],
    "Accept": ["", "\xff", "text/html;q=none"],
    "Authorization": ["Bearer", "Bearer \xff", "Bearer " + "a" * 60_000, "\xff", "Bearer a.b.c"],
    "X-Request-ID": ["\xff", "a b", "a" * 129, "{}"],
    "Content-Length": ["-1", "abc", "9" * 30, "\xb2"],
    "Content-Type": ["\xff", ";", "multipart/form-data"],
    "Cookie": ["\xff", "a" * 5000],
    "Origin": ["null", "\xff"],
    "Host": ["", "\xff", "a" * 5000],
}


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in HEADERS.items() for v in values]
)
async def test_a_header_that_makes_no_sense_is_passed_over_or_refused(
    client, make_user, make_feed, name, value
):
    author = await make_user()
    feed = await make_feed(author=author, images=[pictures.png()])
    image = feed["image_urls"][0].removeprefix("http://localhost:8000")

    for method, url in (
        ("GET", image),
        ("GET", "/api/feed/list"),
        ("DELETE", "/api/feed/delete/1"),
    ):
        headers = bearer(author) | {name: value.encode("latin-1")}
        answer = await client.request(method, url, headers=headers)

        assert answer.status_code in {200, 206, 304, 401, 404, 413, 416, 422}, answer.text


HEAD = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
# What is no HTTP the server itself refuses, in plain text, before there is a request to speak of.
WIRE: dict[str, tuple[bytes, bytes]] = {
    "a chunked body": (CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", b"422"),
    "a chunked body beyond the limit": (CHUNKED + CHUNK * 3 + b"0\r\n\r\n", b"413"),
    "a chunked body without end, beyond the limit": (CHUNKED + CHUNK * 3, b"413"),
    "a length beyond the limit": (HEAD + b"Content-Length: 70000\r\n\r\n", b"413"),
    "a length beyond all": (HEAD + b"Content-Length: 18446744073709551615\r\n\r\n", b"413"),
    "a length that overflows": (HEAD + b"Content-Length: 18446744073709551616\r\n\r\n", b"400"),
    "a length of more than comes": (HEAD + b"Content-Length: 100\r\n\r\n{}", b""),
    "a length of less than comes": (HEAD + b'Content-Length: 2\r\n\r\n{}"more"\r\n\r\n', b"4"),
    "a length below 0": (HEAD + b"Content-Length: -1\r\n\r\n{}", b"400"),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
    "a length and chunks": (
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"400",
    ),
    "a chunk of no size": (CHUNKED + b"x\r\n", b"400"),
    "U+0000 in a header": (HEAD + b"X: \0\r\n\r\n", b"400"),
    "odd bytes in a header": (HEAD + b"X: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}", b"422"),
    "odd bytes in a path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"4"),
    "a path that is none": (b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", b"4"),
    "a long path": (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
    "a thousand headers": (HEAD + b"X: x\r\n" * 1000 + b"Content-Length: 2\r\n\r\n{}", b"422"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01", b"400"),
}


@pytest.fixture(scope="module")
async def wire(make_database: Any, settings: Settings) -> AsyncIterator[str]:
    """A service behind a socket."""
    changes = {"database_url": await make_database(), "access_log": False}
    async with served(settings.model_copy(update=changes)) as url:
        yield url


@pytest.mark.parametrize(("sent", "status"), WIRE.values(), ids=WIRE)
async def test_what_comes_over_the_wire_is_read_or_refused(wire, sent, status):
    with structlog.testing.capture_logs() as logged:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(wire.rpartition(":")[2]))
        writer.write(sent)
        if not status:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.readline(), 5)
        rest = await asyncio.wait_for(reader.read(500), 5) if status in {b"413", b"422"} else b""
        writer.close()
        async with httpx.AsyncClient(base_url=wire) as client:
            alive = await client.get("/readyz")

    assert answer.startswith(b"HTTP/1.1 " + status if status else b"")
    assert b"application/problem+json" in rest or not rest
    assert alive.status_code == 200
    assert [entry for entry in logged if entry["log_level"] == "error"] == []


async def test_a_body_too_large_refuses_also_what_reads_no_body(client, make_user, make_feed):
    author = await make_user()
    feed = await make_feed(author=author)
    headers = bearer(author) | {"Content-Length": str(10**12)}

    _problem(await client.delete(f"/api/feed/delete/{feed['id']}", headers=headers), 413)

    assert (await client.get(f"/api/feed/read/{feed['id']}")).status_code == 200


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "idna", "nonsense"])
async def test_a_form_in_a_codec_of_the_clients_choice_is_refused(client, make_user, charset):
    body = '--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nT\r\n--x--\r\n'

    refused = await client.post(
        "/api/feed/create",
        content=body,
        headers=bearer(await make_user())
        | {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"},
    )

    assert refused.status_code == 415


async def test_an_urlencoded_form_is_bounded(client, make_user):
    refused = await client.post(
        "/api/feed/create",
        content=b"&" * (2 * 1024 * 1024),
        headers=bearer(await make_user()) | {"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert refused.status_code == 413
    assert refused.headers["content-type"] == "application/problem+json"
