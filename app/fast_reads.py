"""The fast lane: the two reads that carry a board's load, one feed and a page of all feeds.

The plain way (middleware, router, service, SQLAlchemy, pydantic) is what the API is; for these two
reads it costs ten times what PostgreSQL and the socket do. So a request for one of them that has
nothing unusual about it is answered here, before all that, with the same bytes.

One truth. The statements are the service's own (`feeds.SHOWN`, `feeds.page_of`); who reads, limits,
tags, ids, hosts and headers are decided by the functions that the plain way uses. Whatever else a
request asks goes the plain way: another header that counts, another spelling of a number, a feed
that is not there, a token that is in doubt. `tests/test_fast_reads.py` compares the two.

Fast by four things. Statements are compiled once, and prepared once on each connection
(`config.readers`); they commit nothing. Rows become JSON as they are, and images come as JSON from
PostgreSQL. Reads in flight are gathered (`services.batches`): while one statement for feeds is
under way, the ids of all who come are the next one's, and equal pages are one statement for all who
want them. And there is one flat function instead of ten layers.

No staleness. Who comes joins only a statement that starts after they came, so all that was written
and acknowledged before is in it. Nothing is kept: neither rows nor answers.

Robust. A reader who leaves takes nobody along. A statement has two seconds. When one fails, those
who wait for it go the plain way, which refuses in words, and for a second all others do.
"""

import time
from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import orjson
import structlog
from pydantic import ValidationError
from sqlalchemy import ARRAY, BigInteger, Select, any_, bindparam, make_url
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from app import headers, rate_limits
from app.hosts import KnownHosts
from app.request_log import identify, write_down
from config.readers import Readers
from config.settings import Settings
from models.base import version
from models.feed import Feed, FeedRead, ListQuery, SortBy
from routers.conditions import etag, has
from services import feeds
from services.batches import Batches
from services.cursors import Cursor
from services.errors import InvalidInput, NotAuthenticated
from services.images import shown_with_feed
from services.tokens import Access

log = structlog.get_logger()

_READ, _LIST = "/api/feed/read/", "/api/feed/list"
# The headers that may change an answer; what the others say is not understood here.
_OTHERS = {b"origin", b"content-type", b"content-length", b"transfer-encoding"}
_TELLING = {b"authorization", b"host", b"if-none-match", b"x-request-id"} | _OTHERS
_json = partial(orjson.dumps, option=orjson.OPT_UTC_Z)
# Seconds for which the plain way has it all, after PostgreSQL failed.
PAUSE = 1.0
_AMONG = Feed.id == any_(bindparam("feed_ids", type_=ARRAY(BigInteger)))
_BY_ID = {shown: shown.where(_AMONG) for shown in (feeds.SHOWN, feeds.SHOWN_TO_READERS)}


class Page(NamedTuple):
    """A page of all feeds, which may start after one of them."""

    sort_by: SortBy
    limit: int
    after: Cursor | None


class Answer(NamedTuple):
    """A body, its tag, and of a page the cursor of the next one, if there is one."""

    body: bytes
    tag: str
    next: str | None = None


Shown = tuple[dict[str, Any], Sequence[int]]  # A feed, and those of the readers who like it.


class FeedReads:
    """The statements, and who shares them."""

    def __init__(self, readers: Readers, *, base_url: str, show_emails: bool) -> None:
        self._readers = readers
        self._base_url = base_url
        self._show_emails = show_emails
        self._closed_until = 0.0
        self._feeds = Batches(self._by_id)
        self._pages = Batches(self._page)

    async def find(self, asked: int | Page, reader_id: int | None) -> Answer | None:
        """A feed by its id, or a page of them, as a reader sees it; None is for the plain way."""
        if time.monotonic() < self._closed_until:
            return None
        try:
            if isinstance(asked, int):
                return await self._feeds.ask(None, (asked, reader_id))
            return await self._pages.ask(asked, reader_id)
        except Exception as error:  # Whatever it is, the plain way may do it, and says if not.
            if time.monotonic() >= self._closed_until:
                self._closed_until = time.monotonic() + PAUSE
                log.warning("reads go the plain way for a second", error=repr(error))
            return None

    async def _by_id(self, _: None, asked: Sequence[tuple[int, int | None]]) -> list[Answer | None]:
        ids, readers = {feed_id for feed_id, _ in asked}, {reader_id for _, reader_id in asked}
        statement = _BY_ID[feeds.SHOWN if readers == {None} else feeds.SHOWN_TO_READERS]
        rows = await self._rows(statement, readers, feed_ids=list(ids))
        found = {row[0]: self._shown(row) for row in rows}
        return [self._one(found.get(feed_id), reader_id) for feed_id, reader_id in asked]

    async def _page(self, page: Page, asked: Sequence[int | None]) -> list[Answer | None]:
        sort_by, limit, after = page
        readers, values = set(asked), after.values() if after else {}
        shown_to = feeds.SHOWN if readers == {None} else feeds.SHOWN_TO_READERS
        statement = feeds.page_of(shown_to, sort_by, after=after is not None)
        rows = await self._rows(statement, readers, page_size=limit + 1, **values)
        next_ = None
        if len(rows) > limit:
            time_ = "update_dt" if sort_by.startswith("update") else "create_dt"
            next_ = Cursor(sort_by, rows[limit - 1][time_], rows[limit - 1]["id"]).encode()
        shown = [self._shown(row) for row in rows[:limit]]
        answers = {reader_id: self._list(shown, reader_id, next_) for reader_id in readers}
        return [answers[reader_id] for reader_id in asked]

    async def _rows(
        self, statement: Select[Any], readers: Collection[int | None], **values: Any
    ) -> list[Any]:
        sql, names = _compiled(statement)
        values["base_url"] = self._base_url
        values["reader_ids"] = [reader_id for reader_id in readers if reader_id is not None]
        return await self._readers.fetch(sql, *map(values.__getitem__, names))

    def _one(self, shown: Shown | None, reader_id: int | None) -> Answer | None:
        if shown is None or not self._show([shown], reader_id):
            return None
        feed, _ = shown
        body = _json(feed)
        return Answer(body, etag(body, version(_json([feed[name] for name in FeedRead.EDITED]))))

    def _list(
        self, shown: Sequence[Shown], reader_id: int | None, next_: str | None
    ) -> Answer | None:
        if not self._show(shown, reader_id):
            return None
        body = _json([feed for feed, _ in shown])
        return Answer(body, etag(body, None), next_)

    def _show(self, shown: Sequence[Shown], reader_id: int | None) -> bool:
        """Fill in what differs from reader to reader; False where it is left to the plain way."""
        for feed, liked_by in shown:
            feed["liked"] = None if reader_id is None else reader_id in liked_by
        # Their own address is hidden from nobody.
        return self._show_emails or all(feed["author_id"] != reader_id for feed, _ in shown)

    def _shown(self, row: Any) -> Shown:
        urls, images = shown_with_feed(row[6])
        feed = {
            "id": row[0],
            "title": row[1],
            "content": row[2],
            "author_id": row[3],
            "author_email": row[4] if self._show_emails else None,
            "author_nickname": row[5],
            "image_urls": orjson.Fragment(urls),
            "images": orjson.Fragment(images),
            "like_count": row[7],
            "comment_count": row[8],
            "liked": None,
            "create_dt": row[9],
            "update_dt": row[10],
        }
        return feed, row[11] if len(row) > 11 else ()


class FastReads:
    """Pure ASGI: answers what it understands; all else goes on.

    `state` is the application's: what `app.main.lend` puts there.
    """

    def __init__(
        self, app: ASGIApp, state: State, settings: Settings, limits: rate_limits.Limits | None
    ) -> None:
        self.app = app
        self._state = state
        self._limits = limits
        self._list = f"{settings.base_url}{_LIST}?"
        self._access_log = settings.access_log
        self._hosts = KnownHosts(app, names=settings.hosts) if settings.hosts else None
        always = [(b"vary", b"Authorization, Origin"), *headers.of_data(settings)]
        self._to_anybody = [*always, (b"cache-control", b"no-cache")]
        self._to_one = [*always, (b"cache-control", b"private, no-cache")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope) if scope["type"] == "http" else None
        if asked is None or not await self._answer(asked, scope, send):
            await self.app(scope, receive, send)

    async def _answer(self, asked: "_Asked", scope: Scope, send: Send) -> bool:
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
        told = list(self._to_one if b"authorization" in given else self._to_anybody)
        if self._limits is not None:
            who = rate_limits.address(scope) if reader_id is None else rate_limits.user(reader_id)
            counted = await self._limits.count(self._state.counters, "read", who)
            # Nobody is counted twice, should this go the plain way.
            scope.setdefault("state", {})["counted"] = counted
            if counted.refusal is not None:
                return False
            told += counted.headers
        answer: Answer | None = await self._state.reads.find(asked.wanted, reader_id)
        if answer is None:
            return False
        if answer.next is not None:
            link = f'<{self._list}{asked.kept}{answer.next}>; rel="next"'
            told.append((b"link", link.encode()))
        request_id = identify(given.get(b"x-request-id", ""))
        told += (b"etag", b'"%b"' % answer.tag.encode()), (b"x-request-id", request_id.encode())
        status, body = 200, answer.body
        if has(given.get(b"if-none-match", ""), answer.tag):
            status, body = 304, b""
        else:
            told += (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": body})
        if self._access_log:
            write_down("GET", asked.route, status, started, len(body), request_id=request_id)
        return True

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

    wanted: int | Page
    route: str
    kept: str = ""


def _asked(scope: Scope) -> _Asked | None:
    path: str = scope["path"]
    if scope["method"] != "GET" or scope.get("root_path"):
        return None
    if path == _LIST and len(scope["query_string"]) < 200:
        return _page(scope["query_string"])
    if path.startswith(_READ) and not scope["query_string"]:
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
        query = ListQuery.model_validate(given)
        after, sort_by = feeds.start(query)
    except (ValidationError, InvalidInput):
        return None
    if len(given) < len(pairs) or query.skip or query.total:
        return None
    given.pop("cursor", None)
    kept = urlencode(given | {"cursor": ""})
    return _Asked(Page(sort_by, query.limit, after), _LIST, kept)


@lru_cache(100)
def _compiled(statement: Select[Any]) -> tuple[str, Sequence[str]]:
    """A statement as asyncpg takes it, and the names of its values in their order."""
    compiled = statement.compile(dialect=make_url("postgresql+asyncpg://").get_dialect()())
    return str(compiled), compiled.positiontup or ()
