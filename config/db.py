"""The database: engine, session factory, and `get_db`, which lends a session to a request."""

import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import Connection, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import (
    DisconnectionError,
    InvalidatePoolError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util.concurrency import await_only
from sqlalchemy.util.queue import AsyncAdaptedQueue, Empty, Full
from starlette.requests import HTTPConnection

from config.settings import Settings, SettingsError
from config.turns import Turns, Use

Sessions = async_sessionmaker[AsyncSession]
# What a call to the database raises when the database is at fault, or is not there; a connection
# that hangs when it is tried, before it is used, ends in a bare TimeoutError.
DatabaseError = (SQLAlchemyError, OSError)


# Seconds for which a connection may lie in the pool and is lent again unasked, and in which one
# that is asked has to answer.
UNASKED = 1.0
ANSWERS = 3.0
# The one bound that is never "no end", so that it can be seen to arrive; in milliseconds.
_IDLE = "idle_in_transaction_session_timeout"
_A_DAY = 86_400_000
_FOUND = text("SELECT setting FROM pg_settings WHERE name = :name").bindparams(name=_IDLE)


class _FairQueue(AsyncAdaptedQueue[ConnectionPoolEntry]):
    """Hands a connection to who has waited longest; asyncio's own leaves it to who comes first."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self._free: deque[ConnectionPoolEntry] = deque()
        self._turns: Turns[ConnectionPoolEntry] = Turns()

    def empty(self) -> bool:
        return not self._free

    def full(self) -> bool:
        return len(self._free) >= self.maxsize > 0

    def qsize(self) -> int:
        return len(self._free)

    def waiting(self) -> int:
        return len(self._turns)

    def put_nowait(self, item: ConnectionPoolEntry) -> None:
        if self._turns.hand(item):
            return
        if self.full():
            raise Full
        self._free.append(item)

    def get_nowait(self) -> ConnectionPoolEntry:
        if not self._free:
            raise Empty
        return self._free.pop()

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        if self._free or not block:
            return self.get_nowait()
        found: ConnectionPoolEntry = await_only(self._wait(timeout))
        return found

    async def _wait(self, seconds: float | None) -> ConnectionPoolEntry:
        try:
            return await self._turns.wait(seconds, put_back=self.put_nowait)
        except TimeoutError:
            raise Empty from None


class FairPool(AsyncAdaptedQueuePool):
    _queue_class = _FairQueue

    def use(self) -> Use:
        queue: Any = self._pool
        return Use(self.checkedout(), self.checkedin(), queue.waiting(), self.size())


@asynccontextmanager
async def open_engine(
    settings: Settings, *, patience: float | None = 30
) -> AsyncGenerator[AsyncEngine]:
    """The process's one engine; its pool is emptied on the way out.

    A statement that takes longer than `patience` (seconds; None: no end) is given up on.
    """
    if settings.database_url is None:
        raise ValueError("an embedded database is started before its engine is opened")
    engine = create_async_engine(
        settings.database_url,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=10,
        poolclass=FairPool,
        # Values (addresses, hashes) stay out of error messages, and so out of the log.
        hide_parameters=True,
        connect_args={
            "timeout": 5,
            "command_timeout": patience,
            **_session(settings, patience),
        },
    )
    if settings.database_pooler:
        event.listen(engine.sync_engine, "begin", partial(_bound, _bounds(patience)))
    event.listen(engine.sync_engine, "do_connect", _connect)
    event.listen(engine.sync_engine, "checkin", _note)
    event.listen(engine.sync_engine, "checkout", _require_alive)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_connection(settings: Settings) -> AsyncGenerator[AsyncConnection]:
    """A connection beside the pool, to listen at; each statement commits itself, in 3 seconds."""
    async with open_engine(settings, patience=3) as engine, engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


def _session(settings: Settings, patience: float | None) -> dict[str, Any]:
    """What PostgreSQL is told of us when we connect, and what it keeps for us."""
    own = {"application_name": "feedboard"}
    if not settings.database_pooler:
        return {"server_settings": own | _bounds(patience)}
    # The next statement may meet another server: nothing that was prepared is there, and what is
    # told when connecting is not passed on.
    return {
        "server_settings": own,
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    }


def _bound(bounds: dict[str, str], connection: Connection) -> None:
    """Bound a transaction behind a pooler; elsewhere it is the connection that is bounded.

    A statement that commits itself is bounded by us alone: we cancel it.
    """
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        each = (f"set_config('{name}', '{value}', true)" for name, value in bounds.items())
        connection.exec_driver_sql(f"SELECT {', '.join(each)}")


def _bounds(patience: float | None) -> dict[str, str]:
    """How long the database itself bears with us, in milliseconds; it ends what we forgot to."""
    # 0 is no end, also where the role has one of its own.
    milliseconds = 0 if patience is None else patience * 1000
    return {
        # Before we give up on the statement ourselves, which costs the connection.
        "statement_timeout": str(int(milliseconds * 0.9)),
        "lock_timeout": str(int(milliseconds / 3)),
        # Nothing but statements is awaited inside a transaction.
        _IDLE: str(int(milliseconds or _A_DAY)),
    }


async def require_bounds(engine: AsyncEngine, *, patience: float | None) -> None:
    """Raise SettingsError where an engine of this patience does not get through what bounds it.

    Poolers refuse it when we connect, or drop it; and the same ones lose what we prepare.
    """
    found = None
    try:
        async with engine.connect() as connection:
            found = await connection.scalar(_FOUND)
    except OperationalError as error:
        if "unsupported startup parameter" not in str(error.orig):
            raise
    if found != _bounds(patience)[_IDLE]:
        raise SettingsError(
            "DATABASE_URL leads to a pooler such as PgBouncer: set DATABASE_POOLER=true."
        )


def _connect(
    dialect: Dialect, record: object, arguments: tuple[Any, ...], options: dict[str, Any]
) -> DBAPIConnection:
    """Connect as SQLAlchemy would, but raise OperationalError for whatever stands in the way.

    A refused connection is an OSError here, a wrong password or name a plain database error.
    """
    try:
        return dialect.connect(*arguments, **options)
    except (OSError, dialect.loaded_dbapi.Error) as error:
        raise OperationalError("connect", None, error) from error


def _note(_: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info["returned"] = time.monotonic()


def _require_alive(
    connection: DBAPIConnection, record: ConnectionPoolEntry, _: PoolProxiedConnection
) -> None:
    """See that a connection did not die while it lay in the pool; else it is replaced unseen.

    One that was closed is known to be. Of others only those are asked that lay there for a while:
    asking takes a message to and fro. Where one does not answer, its server may have gone without
    a word, and nobody asks the others.
    """
    driver: Any = connection.driver_connection
    if driver.is_closed():
        raise DisconnectionError
    if time.monotonic() - record.info.get("returned", time.monotonic()) > UNASKED:
        try:
            await_only(driver.execute("SELECT 1", timeout=ANSWERS))
        except TimeoutError as error:
            driver.terminate()
            raise InvalidatePoolError from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DisconnectionError from error


def session_factory(engine: AsyncEngine) -> Sessions:
    """Sessions that begin nothing by themselves.

    A query outside a visible `async with db.begin()` fails at once, and a forgotten commit cannot
    exist.
    """
    return async_sessionmaker(engine, autobegin=False, expire_on_commit=False)


def reading(engine: AsyncEngine) -> Sessions:
    """Sessions in which each statement commits itself: for what only reads, a third of the way.

    What a transaction shows is what each of its statements shows (READ COMMITTED), with or without.
    """
    return session_factory(engine.execution_options(isolation_level="AUTOCOMMIT"))


async def get_db(connection: HTTPConnection) -> AsyncGenerator[AsyncSession]:
    """Lend one session to one request, and close it on every path."""
    state = connection.app.state
    reads = connection.scope.get("method") in {"GET", "HEAD"}
    sessions: Sessions = state.reading if reads else state.sessions
    async with sessions() as db:
        yield db
