"""The fast lane: the two reads that carry a board's load, one feed and a page of all feeds.

The plain way (router, service, SQLAlchemy, pydantic, a stack of middleware) is what the API is. For
these two reads it costs ten times what PostgreSQL and the socket do. So a request for one of them
that has nothing unusual about it is answered here, before all that, with the same bytes.

One truth. The statements are the service's own (`feeds.SHOWN`, `feeds.page_of`), compiled once; who
reads, limits, tags, ids, hosts and headers are decided by the functions that the plain way uses. A
request that asks for anything else is not understood here and goes the plain way: another header
that counts, another spelling of a number, a feed that is not there, a token that is in doubt. So
does whatever fails here. `tests/test_fast_reads.py` compares the two.

Fast by four things. A statement is prepared once on each connection (`config.db.open_readers`) and
commits nothing. Its rows become JSON as they are; the images come from PostgreSQL as JSON. Reads in
flight are gathered (`services.batches`): while one statement for feeds is under way, the ids of all
who come are the next one's, and equal pages are one statement for all who want them. And there is
one flat function instead of ten layers.

No staleness. Who comes joins only a statement that starts after they came, so all that was written
and acknowledged before is in it. Nothing is kept: neither rows nor answers.

Robust. A reader who leaves takes nobody along. A statement has two seconds; when PostgreSQL fails,
those who wait go the plain way, which refuses in words, and for a second all others do.

`FAST_READS=0` turns it off, and changes nothing but the speed.
"""

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import asyncpg
import orjson
import structlog
from sqlalchemy import ARRAY, BigInteger, Select, any_, bindparam, make_url
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from app import headers, rate_limits
from app.etags import has
from app.hosts import KnownHosts
from app.request_log import identify, write_down
from config.settings import Settings
from models.base import version
from models.feed import Feed, FeedRead, SortBy
from routers.conditions import etag
from services import feeds
from services.batches import Batches
from services.cursors import Cursor
from services.errors import InvalidInput, NotAuthenticated
from services.images import shown_with_feed
from services.tokens import Access

log = structlog.get_logger()

_READ, _LIST = "/api/feed/read/", "/api/feed/list"
# The headers that may change an answer: those that are understood here, and the others.
_UNDERSTOOD = {
    b"authorization": "authorization",
    b"host": "host",
    b"if-none-match": "if_none_match",
    b"x-request-id": "request_id",
}
_OTHERS = {b"origin", b"content-type", b"content-length", b"transfer-encoding"}
# Seconds for which the plain way has it all, after PostgreSQL failed.
PAUSE = 1.0
_BY_ID = feeds.SHOWN.where(Feed.id == any_(bindparam("feed_ids", type_=ARRAY(BigInteger))))
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Page(NamedTuple):
    """Which page of all feeds; it may start after a feed."""

    sort_by: SortBy
    limit: int
    after: Cursor | None


class Answer(NamedTuple):
    """A body, its tag, and of a page the cursor of the next one, if there is one."""

    body: bytes
    tag: str
    next: str | None = None


class Shown(NamedTuple):
    """A feed as JSON has it, for nobody, and those of the readers who like it."""

    feed: dict[str, Any]
    liked_by: Sequence[int]

    def to(self, reader_id: int | None) -> dict[str, Any]:
        if reader_id is None:
            return self.feed
        return self.feed | {"liked": reader_id in self.liked_by}


class FeedReads:
    """The statements, and who shares them."""

    def __init__(self, pool: asyncpg.Pool, *, base_url: str, show_emails: bool) -> None:
        self._pool = pool
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
        except _FAILURES as error:
            if time.monotonic() >= self._closed_until:
                self._closed_until = time.monotonic() + PAUSE
                log.warning("reads go the plain way for a second", error=repr(error))
            return None

    async def _by_id(self, _: None, asked: Sequence[tuple[int, int | None]]) -> list[Answer | None]:
        ids = {feed_id for feed_id, _ in asked}
        rows = await self._rows(_BY_ID, (reader for _, reader in asked), feed_ids=list(ids))
        found = {row[0]: self._shown(row) for row in rows}
        return [self._feed(found.get(feed_id), reader_id) for feed_id, reader_id in asked]

    async def _page(self, page: Page, readers: Sequence[int | None]) -> list[Answer | None]:
        sort_by, limit, after = page
        values = after.values() if after else {}
        statement = feeds.page_of(sort_by, after=after is not None)
        rows = await self._rows(statement, readers, page_size=limit + 1, **values)
        next_ = None
        if len(rows) > limit:
            time_ = "update_dt" if sort_by.startswith("update") else "create_dt"
            next_ = Cursor(sort_by, rows[limit - 1][time_], rows[limit - 1]["id"]).encode()
        shown = [self._shown(row) for row in rows[:limit]]
        answers = {reader_id: self._list(shown, reader_id, next_) for reader_id in set(readers)}
        return [answers[reader_id] for reader_id in readers]

    async def _rows(
        self, statement: Select[Any], readers: Iterable[int | None], **values: Any
    ) -> list[asyncpg.Record]:
        sql, names = _compiled(statement)
        values["base_url"] = self._base_url
        values["reader_ids"] = list({reader for reader in readers if reader is not None})
        rows: list[asyncpg.Record] = await self._pool.fetch(sql, *map(values.__getitem__, names))
        return rows

    def _feed(self, shown: Shown | None, reader_id: int | None) -> Answer | None:
        if shown is None or self._hides(shown, reader_id):
            return None
        feed = shown.to(reader_id)
        body = _json(feed)
        edited = _json([feed[name] for name in FeedRead.EDITED])
        return Answer(body, etag(body, version(edited)))

    def _list(
        self, shown: Sequence[Shown], reader_id: int | None, next_: str | None
    ) -> Answer | None:
        if any(self._hides(each, reader_id) for each in shown):
            return None
        body = _json([each.to(reader_id) for each in shown])
        return Answer(body, etag(body, None), next_)

    def _hides(self, shown: Shown, reader_id: int | None) -> bool:
        """Whether an address is left out that this reader may see."""
        return not self._show_emails and shown.feed["author_id"] == reader_id

    def _shown(self, row: asyncpg.Record) -> Shown:
        (id_, title, content, author_id, email, nickname, images) = row[:7]
        (like_count, comment_count, liked_by, create_dt, update_dt) = row[7:]
        urls, images = shown_with_feed(images)
        feed = {
            "id": id_,
            "title": title,
            "content": content,
            "author_id": author_id,
            "author_email": email if self._show_emails else None,
            "author_nickname": nickname,
            "image_urls": orjson.Fragment(urls),
            "images": orjson.Fragment(images),
            "like_count": like_count,
            "comment_count": comment_count,
            "liked": None,
            "create_dt": create_dt,
            "update_dt": update_dt,
        }
        return Shown(feed, liked_by)


class FastReads:
    """Pure ASGI: answers what it understands; all else goes on."""

    def __init__(
        self, app: ASGIApp, *, settings: Settings, limits: rate_limits.Limits | None
    ) -> None:
        self.app = app
        self._limits = limits
        self._next_page = f'<{settings.base_url}{_LIST}?%scursor=%s>; rel="next"'
        self._access_log = settings.access_log
        hosts = KnownHosts(app, names=settings.hosts)
        self._knows = lru_cache(1000)(hosts.knows) if settings.hosts else None
        always = [(b"vary", b"Authorization"), *headers.of_data(settings)]
        self._to_anybody = [*always, (b"cache-control", b"no-cache")]
        self._to_one = [*always, (b"cache-control", b"private, no-cache")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not await self._answer(scope, send):
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, send: Send) -> bool:
        """Answer a request, if it is one of ours."""
        asked, state, started = _asked(scope), scope["app"].state, time.perf_counter()
        given = _given(scope) if asked is not None else None
        if asked is None or given is None or not (self._knows is None or self._knows(given.host)):
            return False
        try:
            reader_id = _reader(state, given.authorization)
        except NotAuthenticated:
            return False
        told = list(self._to_anybody if given.authorization is None else self._to_one)
        if self._limits is not None:
            who = rate_limits.address(scope) if reader_id is None else rate_limits.user(reader_id)
            counted = await self._limits.count(state.counters, "read", who)
            # Nobody is counted twice, should this go the plain way.
            scope.setdefault("state", {})["counted"] = counted
            if counted.refusal is not None:
                return False
            told += counted.headers
        answer: Answer | None = await state.reads.find(asked.wanted, reader_id)
        if answer is None:
            return False
        if answer.next is not None:
            told.append((b"link", (self._next_page % (asked.kept, answer.next)).encode()))
        request_id = identify(given.request_id)
        told += (b"etag", b'"%b"' % answer.tag.encode()), (b"x-request-id", request_id.encode())
        status, body = 200, answer.body
        if given.if_none_match and has(given.if_none_match, answer.tag):
            status, body = 304, b""
        else:
            told += (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": told})
        await send({"type": "http.response.body", "body": body})
        if self._access_log:
            write_down("GET", asked.route, status, started, len(body), request_id=request_id)
        return True


class _Given(NamedTuple):
    """What a request's headers say, as far as it may change the answer."""

    authorization: str | None = None
    host: str = ""
    if_none_match: str = ""
    request_id: str = ""


def _given(scope: Scope) -> _Given | None:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _UNDERSTOOD:
            if _UNDERSTOOD[name] in found:
                return None
            found[_UNDERSTOOD[name]] = value.decode("latin-1")
        elif name in _OTHERS:
            return None
    return _Given(**found)


class _Asked(NamedTuple):
    """What a request wants, by which route, and what its next page's URL keeps of it."""

    wanted: int | Page
    route: str
    kept: str = ""


def _asked(scope: Scope) -> _Asked | None:
    path: str = scope["path"]
    if scope["method"] != "GET" or scope.get("root_path"):
        return None
    if path == _LIST:
        return _page(scope["query_string"])
    if path.startswith(_READ) and not scope["query_string"]:
        given = path[len(_READ) :]
        # As we write it, and no other spelling; longer ones may be out of bounds.
        if given.isascii() and given.isdecimal() and given[0] != "0" and len(given) < 19:
            return _Asked(int(given), _READ + "{feed_id}")
    return None


@lru_cache(1000)
def _page(query_string: bytes) -> _Asked | None:
    try:
        pairs = parse_qsl(query_string.decode("ascii"), strict_parsing=bool(query_string))
        given = dict(pairs)
        known = len(given) == len(pairs) and given.keys() <= {"limit", "sort_by", "cursor"}
        # Else it was escaped somehow.
        plain = "&".join("=".join(pair) for pair in pairs) == query_string.decode("ascii")
        if not known or not plain:
            return None
        after = Cursor.decode(given["cursor"]) if "cursor" in given else None
        sort_by = SortBy(given.get("sort_by", after.sort_by if after else SortBy.CREATE_DT_DESC))
        limit = int(given.get("limit", "20"))
    except (ValueError, InvalidInput):
        return None
    if str(limit) != given.get("limit", "20") or not 1 <= limit <= 100:
        return None
    if after is not None and sort_by is not after.sort_by:
        return None
    kept = "".join(f"{name}={value}&" for name, value in pairs if name != "cursor")
    return _Asked(Page(sort_by, limit, after), _LIST, kept)


def _reader(state: State, authorization: str | None) -> int | None:
    """Who reads; raises NotAuthenticated if there is anything to say against their token."""
    if authorization is None:
        return None
    if not authorization.startswith("Bearer "):
        raise NotAuthenticated
    access: Access = state.tokens.read(authorization.removeprefix("Bearer "))
    if not state.revocations.is_live(access.session_id):
        raise NotAuthenticated
    return access.user_id


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)


@lru_cache(100)
def _compiled(statement: Select[Any]) -> tuple[str, Sequence[str]]:
    """A statement as asyncpg takes it, and the names of its values in their order."""
    compiled = statement.compile(dialect=make_url("postgresql+asyncpg://").get_dialect()())
    return str(compiled), compiled.positiontup or ()
