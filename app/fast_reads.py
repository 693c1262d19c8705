"""The fast lane: the three reads that carry a board's load, a feed, a page of them, and an image.

The plain way (middleware, router, service, SQLAlchemy, pydantic) is what the API is; for a feed it
costs ten times what PostgreSQL and the socket do. So a request for one of them that has nothing
unusual about it is answered here, before all that, with the same bytes.

One truth. The statements are the services' own; who reads, limits, tags, ids, hosts and headers are
decided by the functions that the plain way uses, and an image's answer is its router's. Whatever
else a request asks goes the plain way: another header that counts, another spelling of a number, a
feed that is not there, a token that is in doubt. `tests/test_fast_reads.py` compares the two.

Fast by four things. Statements are compiled once, and prepared once on each connection
(`config.readers`); they commit nothing. Rows become JSON as they are, and images come as JSON from
PostgreSQL. Reads in flight share statements (`services.batches`): who comes while one for feeds is
under way is in the next, and equal pages are one. And one flat function is there for ten layers.

No staleness. Who comes joins only a statement that starts after they came. Nothing is kept: neither
rows nor answers.

Robust. A reader who leaves takes nobody along. A statement has two seconds. When one fails, those
who wait for it go the plain way, which refuses in words, and for a second all others do.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import orjson
import structlog
from pydantic import ValidationError
from starlette.datastructures import Headers, State
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import headers, rate_limits, telemetry
from app.hosts import KnownHosts
from app.problems import answer as problem
from app.request_log import Ended, Sent, identify
from config.readers import Readers
from config.settings import Settings
from models.base import version
from models.feed import FeedRead, ListQuery
from routers.conditions import etag, has
from routers.images import respond
from services import showing
from services.batches import Batches
from services.errors import ImageNotFound, InvalidInput, NotAuthenticated, Refusal
from services.images import SHOWN_BY_KEY
from services.showing import Part, Shown, Shows
from services.store import SHOWN, ImageStore, key_of
from services.tokens import Access

log = structlog.get_logger()
ReaderId = int | None
Given = Mapping[bytes, str]
Told = list[tuple[bytes, bytes]]

_READ, _LIST, _IMAGE = "/api/feed/read/", "/api/feed/list", "/images/"
# The headers that may change an answer; what the others say is not understood here.
_OTHERS = {b"content-type", b"content-length", b"transfer-encoding"}
_TELLING = _OTHERS | {*b"authorization host if-none-match origin range x-request-id".split()}
_json = partial(orjson.dumps, option=orjson.OPT_UTC_Z)
# Seconds for which the plain way has it all, after PostgreSQL failed.
PAUSE = 1.0


class Answer(NamedTuple):
    """A body, its tag, and of a page the cursor of the next one, if there is one."""

    body: bytes
    tag: str
    next: str | None = None


class Reads:
    """The statements, and who shares them."""

    def __init__(self, readers: Readers, *, base_url: str, show_emails: bool) -> None:
        self._readers = readers
        self._base_url = base_url
        self._show_emails = show_emails
        self._shown = partial(showing.as_json, show_emails=show_emails)
        self._closed_until = 0.0
        self._feeds = Batches(self._by_id)
        self._pages = Batches(self._page)
        self._images = Batches(self._by_key)

    async def find(self, asked: int | Part | str, reader_id: ReaderId) -> Answer | None:
        """A feed, a page, or that an image of a key is there, as a reader sees it; or None."""
        if time.monotonic() < self._closed_until:
            return None
        try:
            if isinstance(asked, int):
                return await self._feeds.ask(None, (asked, reader_id))
            if isinstance(asked, str):
                return await self._images.ask(None, asked)
            return await self._pages.ask(asked, reader_id)
        except Exception as error:  # Whatever it is, the plain way may do it, and says if not.
            if time.monotonic() >= self._closed_until:
                self._closed_until = time.monotonic() + PAUSE
                log.warning("reads go the plain way for a second", error=repr(error))
            return None

    async def _by_key(self, _: None, keys: Sequence[str]) -> list[Answer | None]:
        found = {row[0] for row in await self._readers.fetch(SHOWN_BY_KEY, {"keys": keys})}
        return [Answer(b"", key) if key in found else None for key in keys]

    async def _by_id(self, _: None, asked: Sequence[tuple[int, ReaderId]]) -> list[Answer | None]:
        ids, readers = {feed_id for feed_id, _ in asked}, {reader_id for _, reader_id in asked}
        rows = await self._rows(
            showing.some(showing.statement(readers)), readers, feed_ids=list(ids)
        )
        found = {row[0]: self._shown(row) for row in rows}
        return [self._one(found.get(feed_id), reader_id) for feed_id, reader_id in asked]

    async def _page(self, page: Part, asked: Sequence[ReaderId]) -> list[Answer | None]:
        readers = set(asked)
        statement = page.statement(showing.statement(readers))
        rows = await self._rows(statement, readers, **page.values())
        shown, cursor = [self._shown(row) for row in rows[: page.limit]], page.next(rows)
        more = cursor.encode() if cursor else None
        answers = {reader_id: self._list(shown, reader_id, more) for reader_id in readers}
        return [answers[reader_id] for reader_id in asked]

    async def _rows(self, statement: Shows, readers: set[ReaderId], **values: Any) -> list[Any]:
        ids = [reader_id for reader_id in readers if reader_id is not None]
        values |= {"base_url": self._base_url, "reader_ids": ids}
        return await self._readers.fetch(statement, values)

    def _one(self, shown: Shown | None, reader_id: ReaderId) -> Answer | None:
        if shown is None or not self._show([shown], reader_id):
            return None
        feed, _ = shown
        body = _json(feed)
        return Answer(body, etag(body, version(_json([feed[name] for name in FeedRead.EDITED]))))

    def _list(self, shown: Sequence[Shown], reader_id: ReaderId, more: str | None) -> Answer | None:
        if not self._show(shown, reader_id):
            return None
        body = _json([feed for feed, _ in shown])
        return Answer(body, etag(body, None), more)

    def _show(self, shown: Sequence[Shown], reader_id: ReaderId) -> bool:
        """Fill in what differs from reader to reader; False where it is left to the plain way."""
        for feed, liked_by in shown:
            feed["liked"] = None if reader_id is None else reader_id in liked_by
        # Their own address is hidden from nobody.
        return self._show_emails or all(feed["author_id"] != reader_id for feed, _ in shown)


class FastReads:
    """Pure ASGI: answers what it understands; all else goes on. `state` is the application's."""

    def __init__(
        self,
        app: ASGIApp,
        state: State,
        settings: Settings,
        limits: rate_limits.Limits | None,
        ended: Ended | None,
    ) -> None:
        self.app, self._state, self._limits, self._ended = app, state, limits, ended
        self._list = f"{settings.base_url}{_LIST}?"
        self._hosts = KnownHosts(app, names=settings.hosts) if settings.hosts else None
        self._cors = CORSMiddleware(app, **headers.of_cors(settings))
        guarding = headers.raw(headers.of_data(settings))
        self._to_anybody = [*guarding, (b"cache-control", b"no-cache")]
        self._to_one = [*guarding, (b"cache-control", b"private, no-cache")]
        self._of_images = headers.raw(headers.of_images(settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope) if scope["type"] == "http" else None
        if asked is None or not await self._answer(asked, scope, receive, send):
            await self.app(scope, receive, send)

    async def _answer(self, asked: "_Asked", scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request, unless there is something about it that is not understood here."""
        started = time.perf_counter()
        telling = [header for header in scope["headers"] if header[0] in _TELLING]
        given = {name: value.decode("latin-1") for name, value in telling}
        if len(given) < len(telling) or not _OTHERS.isdisjoint(given):
            return False
        if self._hosts is not None and not self._hosts.knows(given.get(b"host", "")):
            return False
        try:
            reader_id = self._reader(given.get(b"authorization"))
        except NotAuthenticated:
            return False
        request_id = identify(scope, given.get(b"x-request-id", ""))
        told = [(b"x-request-id", request_id.encode())]
        if self._limits is not None:
            counted = await self._limits.count_read(scope, self._state.counters, reader_id)
            if counted.refusal is not None:
                return False
            told += counted.headers
        answer: Answer | None = await self._state.reads.find(asked.wanted, reader_id)
        if answer is None:
            return False
        telemetry.name_route(scope, asked.route)
        sent = Sent(send)
        out: Send = sent if self._ended else send
        if b"origin" in given:
            out = partial(self._cors.send, send=out, request_headers=Headers(scope=scope))
        try:
            if isinstance(asked.wanted, str):
                response = await self._image(scope, asked.wanted, given, told)
                await response(scope, receive, out)
            else:
                await self._feeds(answer, asked, given, told, out)
        finally:
            if self._ended:
                self._ended(scope, sent, asked.route, started, request_id)
        return True

    async def _feeds(
        self, answer: Answer, asked: "_Asked", given: Given, told: Told, send: Send
    ) -> None:
        told += self._to_one if b"authorization" in given else self._to_anybody
        if answer.next is not None:
            link = f'<{self._list}{asked.kept}{answer.next}>; rel="next"'
            told.append((b"link", link.encode()))
        told.append((b"vary", b"Authorization" + b", Origin" * (b"origin" not in given)))
        told.append((b"etag", b'"%b"' % answer.tag.encode()))
        known = has(given.get(b"if-none-match", ""), answer.tag)
        status, body = (304, b"") if known else (200, answer.body)
        if not known:
            told += (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": body})

    async def _image(self, scope: Scope, key: str, given: Given, told: Told) -> Response:
        name, known = key.removeprefix(SHOWN), given.get(b"if-none-match")
        images: ImageStore = self._state.images
        try:
            response = await respond(images, name, range_=given.get(b"range"), known=known)
        except Refusal as refusal:
            response = problem(scope, refusal)
            told.append((b"cache-control", b"no-store"))
        if b"origin" not in given:
            told.append((b"vary", b"Origin"))
        # Where it says something itself, that holds.
        said = {name for name, _ in response.raw_headers}
        response.raw_headers += [*told, *(it for it in self._of_images if it[0] not in said)]
        return response

    def _reader(self, authorization: str | None) -> int | None:
        """Who reads; raises NotAuthenticated if there is anything to say against their token."""
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        access: Access = self._state.tokens.read(token)
        if scheme != "Bearer" or not self._state.revocations.is_live(access.session_id):
            raise NotAuthenticated
        return access.user_id


class _Asked(NamedTuple):
    """What a request wants, by which route, and how the query of its next page's URL begins."""

    wanted: int | Part | str
    route: str
    kept: str = ""


def _asked(scope: Scope) -> _Asked | None:
    path: str = scope["path"]
    if scope["method"] != "GET" or scope.get("root_path"):
        return None
    if path == _LIST and len(scope["query_string"]) < 200:
        return _page(scope["query_string"])
    if scope["query_string"]:
        return None
    if path.startswith(_IMAGE):
        with suppress(ImageNotFound):
            return _Asked(key_of(path[len(_IMAGE) :]), _IMAGE + "{name}")
    if path.startswith(_READ):
        given = path[len(_READ) :]
        # As we write it, and no other spelling; longer ones may be out of bounds.
        if given.isascii() and given.isdecimal() and given[0] != "0" and len(given) < 19:
            return _Asked(int(given), _READ + "{feed_id}")
    return None


@lru_cache(1000)
def _page(query_string: bytes) -> _Asked | None:
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    given = dict(pairs)
    try:
        page = showing.part_of(ListQuery.model_validate(given))
    except (ValidationError, InvalidInput):
        return None
    if len(given) < len(pairs) or "skip" in given or "total" in given:
        return None
    given.pop("cursor", None)
    return _Asked(page, _LIST, urlencode(given | {"cursor": ""}))
