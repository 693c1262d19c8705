"""The reference L: what Python can do at most for these routes, with nothing else around them.

A raw ASGI application on uvicorn, and asyncpg's prepared statements. It has no middleware, no
validation, no ETag, no limits, no sessions. MODE says who writes the JSON: `row` (orjson, of rows)
or `json` (PostgreSQL). Started by `bench.contenders`.
"""

import base64
import gc
import hmac
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

from bench.peers.pool import Pool
from bench.peers.statements import statements

IN_JSON = os.environ["MODE"] == "json"
KEY = os.environ["SECRET_KEY"].encode()
READ, LIST, CREATE = "/api/feed/read/", "/api/feed/list", "/api/feed/create"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
pool = Pool()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    path = scope["path"]
    status = 200
    if path.startswith(READ):
        body = await _one("read", None, int(path[len(READ) :]))
    elif path == LIST:
        body = await _page(scope["query_string"].decode())
    elif path == CREATE:
        body = await _create(scope, receive)
    else:
        body = None
    if body is None:
        status, body = 404, b'{"detail":"Not found."}'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    sql = statements(os.environ["PUBLIC_URL"], in_json=IN_JSON)
    async with pool.opened(os.environ["DSN"], int(os.environ["POOL"]), sql):
        gc.collect()
        gc.freeze()
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _page(query: str) -> bytes:
    asked = dict(pair.split("=", 1) for pair in query.split("&"))
    limit = int(asked["limit"])
    if "cursor" not in asked:
        return await _many("newest", limit)
    _, microseconds, feed_id = base64.urlsafe_b64decode(asked["cursor"] + "==").split(b" ")
    written = _EPOCH + timedelta(microseconds=int(microseconds))
    return await _many("after", limit, written, int(feed_id))


async def _create(scope: Scope, receive: Receive) -> bytes | None:
    token = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    if (user_id := _verified(token[7:])) is None:
        return None
    form = dict(parse_qsl(body.decode()))
    return await _one("create", False, form["title"], form["content"], user_id)


def _verified(token: bytes) -> int | None:
    """Whom a token names, if it is signed with our key (HS256) and still good."""
    signed, _, signature = token.rpartition(b".")
    expected = base64.urlsafe_b64encode(hmac.digest(KEY, signed, "sha256")).rstrip(b"=")
    if not hmac.compare_digest(expected, signature):
        return None
    head, _, payload = signed.partition(b".")
    claims = orjson.loads(base64.urlsafe_b64decode(payload + b"=="))
    algorithm = orjson.loads(base64.urlsafe_b64decode(head + b"=="))["alg"]
    if algorithm != "HS256" or claims["exp"] < time.time():
        return None
    return int(claims["sub"])


async def _one(name: str, liked: bool | None, *values: Any) -> bytes | None:
    prepared = await pool.take()
    try:
        found = await prepared[name].fetchrow(*values)
    finally:
        pool.give(prepared)
    if found is None:
        return None
    body: bytes = found[0] if IN_JSON else _dump(_shown(found, liked))
    return body


async def _many(name: str, *values: Any) -> bytes:
    prepared = await pool.take()
    try:
        found = await prepared[name].fetch(*values)
    finally:
        pool.give(prepared)
    body: bytes = found[0][0] if IN_JSON else _dump([_shown(row, None) for row in found])
    return body


def _shown(row: Any, liked: bool | None) -> dict[str, Any]:
    return {
        "id": row[0],
        "title": row[1],
        "content": row[2],
        "author_id": row[3],
        "author_email": row[4],
        "author_nickname": row[5],
        "image_urls": orjson.Fragment(f"[{row[6] or ''}]"),
        "images": orjson.Fragment(f"[{row[7] or ''}]"),
        "like_count": row[8],
        "comment_count": row[9],
        "liked": liked,
        "create_dt": row[10],
        "update_dt": row[11],
    }


def _dump(shown: Any) -> bytes:
    return orjson.dumps(shown, option=orjson.OPT_UTC_Z)


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
