"""The ancestor: the board that Feedboard descends from, read out of its own database.

It is read as it is at one moment, a few rows at a time, by a client that is open inside `async
with` and nowhere else. What its columns mean is said here alone; it knows no model of ours.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from typing import Any, Self

import asyncpg
from sqlalchemy.engine import make_url

from services.importing.arrivals import Row, Survey

_BATCH = 500
# Seconds that connecting, closing, or a batch may take.
PATIENCE = 60.0


class NotOpen(RuntimeError):
    """The client is used where it has no connection: not inside `async with`."""

    def __init__(self) -> None:
        super().__init__("An Ancestor is used inside `async with Ancestor(…)` only.")


class Unreadable(Exception):
    """The ancestor's database cannot be read; the text says why."""


@contextmanager
def _reading() -> Generator[None]:
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise Unreadable(str(error) or type(error).__name__) from error


class Ancestor:
    """The ancestor's database; `zone` is that of times which were written without one."""

    def __init__(self, dsn: str, *, zone: tzinfo = UTC) -> None:
        self._url = make_url(dsn).set(drivername="postgresql+asyncpg")
        self._zone = zone
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        if self._connection is not None:
            raise RuntimeError("This Ancestor is open already.")
        _, connecting = self._url.get_dialect()().create_connect_args(self._url)
        # Nothing is prepared for later: a pooler may stand in front.
        options = {"statement_cache_size": 0, "timeout": PATIENCE, "command_timeout": PATIENCE}
        with _reading():
            connection = await asyncpg.connect(**connecting, **options)
            try:
                # All that is read is of one moment, and nothing can be written by mistake.
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                # Images are taken between two batches, which may be long.
                await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            except BaseException:
                connection.terminate()
                raise
        self._connection = connection
        return self

    async def __aexit__(self, *_: object) -> None:
        connection, self._connection = self._opened(), None
        # The transaction ends with it; where that takes too long, or is cancelled, the line is cut.
        await connection.close(timeout=PATIENCE)

    def ok(self) -> Awaitable[bool]:
        """Ask whether it answers; raises NotOpen."""
        return self._ask(self._opened())

    async def survey(self) -> Survey:
        """How much there is of each kind; raises NotOpen, and Unreadable."""
        return await self._survey(self._opened())

    def rows(self, kind: str) -> AsyncGenerator[Row]:
        """The rows of one kind; raises NotOpen, and Unreadable.

        To be closed by who does not read them to their end.
        """
        return self._rows(self._opened(), kind)

    def _opened(self) -> asyncpg.Connection:
        if self._connection is None:
            raise NotOpen
        return self._connection

    async def _ask(self, connection: asyncpg.Connection) -> bool:
        try:
            return bool(await connection.fetchval("SELECT 1") == 1)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return False

    async def _survey(self, connection: asyncpg.Connection) -> Survey:
        counts, last_feed = {}, 0
        with _reading():
            for kind in _QUERIES:
                counted = f"SELECT count(*) FROM {kind}"  # noqa: S608
                counts[kind] = await connection.fetchval(counted)
            last = await connection.fetchval("SELECT max(id)::text FROM feeds")
        if last is not None and last.isdigit():
            last_feed = int(last)
        return Survey(counts, last_feed)

    async def _rows(self, connection: asyncpg.Connection, kind: str) -> AsyncGenerator[Row]:
        if kind not in _QUERIES:
            return
        with _reading():
            # A cursor that the database knows by name, so that it can be closed before its end.
            await connection.execute(f"DECLARE rows NO SCROLL CURSOR FOR {_QUERIES[kind]}")
        try:
            while batch := await self._fetch(connection):
                for record in batch:
                    yield self._row(kind, dict(record))
        finally:
            # A transaction that failed has closed it, and so has a connection that is gone.
            with suppress(asyncpg.InFailedSQLTransactionError, asyncpg.InterfaceError):
                await connection.execute("CLOSE rows")

    async def _fetch(self, connection: asyncpg.Connection) -> list[asyncpg.Record]:
        with _reading():
            found: list[asyncpg.Record] = await connection.fetch(f"FETCH {_BATCH} FROM rows")
        return found

    def _row(self, kind: str, found: dict[str, Any]) -> Row:
        row = Row(str(found.pop("label")), found, times=found.pop("times", 1))
        for name, value in found.items():
            if isinstance(value, datetime) and value.tzinfo is None:
                found[name] = value.replace(tzinfo=self._zone)
        if "email_of_author" in found:
            email, author = (
                found.pop("email_of_author"),
                found.get("author_id", found.get("user_id")),
            )
            if author is None:
                whom = f"its author {email} is not among the users"
                row.fault = whom if email else "it has no author"
        if kind == "feeds":
            found["images"], row.losses = _images(found.pop("image_urls"))
        return row


def _images(text: str | None) -> tuple[list[dict[str, str]], list[str]]:
    """A feed's images, and what is wrong with how they are written."""
    urls = _parsed(text)
    if not isinstance(urls, list):
        return [], ["its image_urls are no list in JSON"]
    losses = [f"{url!r:.60} among its image_urls is no URL" for url in urls if not _is_url(url)]
    return [{"file": url} for url in urls if _is_url(url)], losses


def _parsed(text: str | None) -> object:
    if text is None or not text.strip():
        return []
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    # A column of JSON may hold a text that is JSON in turn, as some drivers have written it.
    return _parsed(parsed) if isinstance(parsed, str) else [] if parsed is None else parsed


def _is_url(url: object) -> bool:
    return isinstance(url, str) and url.strip() != "" and "\0" not in url


# Those about one feed come together: it is then locked and counted once, not again and again.
# Of each address the user with the least id: an address is one account here, whatever its case.
_BY_EMAIL = "(SELECT DISTINCT ON (lower(email)) id, lower(email) AS email FROM users ORDER BY 2, 1)"
_QUERIES = {
    "users": """
        SELECT id::text AS label, id::text, email, password AS password_hash, nickname, create_dt
        FROM users ORDER BY users.id""",
    "feeds": f"""
        SELECT feeds.id::text AS label, feeds.id::text, author.id::text AS author_id,
            author_email AS email_of_author, title, content,
            image_urls::text AS image_urls, create_dt, update_dt
        FROM feeds LEFT JOIN {_BY_EMAIL} AS author ON author.email = lower(author_email)
        ORDER BY feeds.id""",  # noqa: S608 - nothing in these comes from outside
    "comments": f"""
        SELECT comments.id::text AS label, comments.id::text, author.id::text AS author_id,
            author_email AS email_of_author, content, feed_id::text, create_dt,
            update_dt
        FROM comments LEFT JOIN {_BY_EMAIL} AS author ON author.email = lower(author_email)
        ORDER BY feed_id, comments.id""",  # noqa: S608
    # What is there twice comes once, with how often.
    "likes": f"""
        SELECT min(likes.id)::text AS label, count(*) AS times, author.id::text AS user_id,
            min(user_email) AS email_of_author, feed_id::text, comment_id::text
        FROM likes LEFT JOIN {_BY_EMAIL} AS author ON author.email = lower(user_email)
        GROUP BY author.id, lower(user_email), feed_id, comment_id
        ORDER BY feed_id, comment_id, min(likes.id)""",  # noqa: S608
    "follows": """
        SELECT coalesce(follower_id::text, 'null') || ' → ' || coalesce(following_id::text, 'null')
            AS label, count(*) AS times, follower_id::text, following_id::text AS followed_id
        FROM follows GROUP BY follower_id, following_id ORDER BY follower_id, following_id""",
}
