"""Which sessions have ended of late: known in every process, so that reads need not ask for it.

An access token is good until it expires, unless its session has ended before. Each process keeps
the ids of the sessions that ended within the life of an access token. It learns of them in three
ways: it ended them itself; PostgreSQL notified it (NOTIFY, in the transaction that ended them); and
it asks every second, on a connection of its own. What it knows counts for a few seconds after it
asked. After that, as when the connection is gone, each read asks the database instead.

Why it asks although it is notified: a connection that hangs looks like one on which nothing
happens, and a pooler of transactions (PgBouncer) passes no notification on.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from math import inf
from time import monotonic
from uuid import uuid4

import asyncpg
import structlog
from sqlalchemy import ColumnElement, Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from config.db import DatabaseError, Sessions
from models.base import NOW
from models.session import Session
from services.errors import NotAuthenticated

log = structlog.get_logger()

CHANNEL = "feedboard_sessions"
ENDED = "The session of this access token has ended; log in again."
# Seconds: between questions, and for how long an answer counts.
ASK_EVERY = 1.0
ANSWER_COUNTS = 3.0
# Seconds that one who ends a session may take to commit, statement timeouts included.
COMMITTED = 60.0
# Seconds in which a notification arrives where notifications arrive at all.
DELIVERED = 1.0
# Seconds before a new connection is tried; doubled while that fails, up to the second.
RETRY = 0.25
RETRY_AT_LEAST_EVERY = 4.0

_Failure = (*DatabaseError, asyncpg.PostgresError, asyncpg.InterfaceError)
Connecting = Callable[[], AbstractAsyncContextManager[AsyncConnection]]


def notify(session_id: ColumnElement[int]) -> ColumnElement[None]:
    """Tell all processes, once this transaction has committed, that the session has ended."""
    return func.pg_notify(CHANNEL, cast(session_id, Text))


class Revocations:
    """What one process knows; `lifetime` is an access token's, in seconds."""

    def __init__(self, sessions: Sessions, lifetime: float) -> None:
        self._sessions = sessions
        self._lifetime = lifetime + COMMITTED
        # When each may be forgotten, soonest first.
        self._ended: dict[int, float] = {}
        self._asked = -inf
        self._trial, self._delivered = "", asyncio.Event()

    @property
    def current(self) -> bool:
        """Whether what is known here is all there is to know."""
        return monotonic() < self._asked + ANSWER_COUNTS

    def note(self, session_ids: Iterable[int]) -> None:
        """Remember that sessions have ended; to be called after the commit."""
        for session_id in session_ids:
            self._ended.setdefault(session_id, monotonic() + self._lifetime)

    def is_live(self, session_id: int) -> bool | None:
        """Whether the session goes on, as far as is known here; None while that is in doubt."""
        return session_id not in self._ended if self.current else None

    async def require_live(self, session_id: int) -> None:
        """Raise NotAuthenticated if the session has ended; a query only while that is in doubt."""
        live = self.is_live(session_id)
        if live is None:
            found = select(Session.id).where(Session.id == session_id, Session.ended_dt.is_(None))
            async with self._sessions() as db, db.begin():
                live = await db.scalar(found) is not None
        if not live:
            raise NotAuthenticated(ENDED)

    async def follow(self, connecting: Connecting, *, hears: bool = True) -> None:
        """Keep this current, for the process's life; `connecting` opens a connection for it.

        Where nothing can be heard on it, as behind a pooler, it only asks.
        """
        pause = RETRY
        while True:
            try:
                async with connecting() as connection:
                    await self._begin(connection, hears=hears)
                    pause = RETRY
                    while True:
                        await asyncio.sleep(ASK_EVERY)
                        await self._ask(connection)
            except _Failure as error:
                if pause == RETRY:
                    log.warning(
                        "sessions that end elsewhere are not heard of; each request asks the "
                        "database for its session, until the connection is back",
                        error=str(error) or repr(error),
                    )
            except Exception:
                # A fault of ours must not end this for the rest of the process's life.
                log.exception("ends of sessions could not be followed")
            self._doubt()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_AT_LEAST_EVERY)

    async def _begin(self, connection: AsyncConnection, *, hears: bool) -> None:
        driver = (await connection.get_raw_connection()).driver_connection
        if not isinstance(driver, asyncpg.Connection):
            raise TypeError("notifications are asyncpg's")
        driver.add_termination_listener(self._doubt)
        if hears:
            await driver.add_listener(CHANNEL, self._hear)
        # After it listens: what has ended before is found, what ends from now on is heard.
        await self._ask(connection)
        if hears:
            await self._try()

    async def _ask(self, connection: AsyncConnection) -> None:
        now = monotonic()
        since = min(now - self._asked + COMMITTED, self._lifetime)
        ended = select(Session.id).where(Session.ended_dt > NOW - timedelta(seconds=since))
        self.note((await connection.scalars(ended)).all())
        self._asked = now
        while self._ended and next(iter(self._ended.values())) < now:
            del self._ended[next(iter(self._ended))]

    async def _try(self) -> None:
        """Notify oneself, by a connection of the pool: by the same one it would prove nothing."""
        self._trial = str(uuid4())
        self._delivered.clear()
        async with self._sessions() as db, db.begin():
            await db.execute(select(func.pg_notify(CHANNEL, self._trial)))
        try:
            async with asyncio.timeout(DELIVERED):
                await self._delivered.wait()
        except TimeoutError:
            log.warning(
                "notifications do not arrive, so sessions that are ended by another process end "
                "here a second later; let DATABASE_URL, or DATABASE_DIRECT_URL, lead to PostgreSQL "
                "itself and to the same database"
            )

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        told = str(payload)
        if told == self._trial:
            self._delivered.set()
        elif told.isdecimal():
            self.note([int(told)])

    def _doubt(self, connection: object = None) -> None:
        # What was missed is asked for from the beginning: a clock may have stood still meanwhile.
        self._asked = -inf
