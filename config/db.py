"""The database: engine, session factory, and `get_db`, which lends a session to a request."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from starlette.requests import HTTPConnection

from config.settings import Settings

Sessions = async_sessionmaker[AsyncSession]
# Of `open_readers`: how many, and seconds.
READERS = 4
READ_PATIENCE = 2.0
# What a call to the database raises when the database is at fault, or is not there; a connection
# that hangs when it is tried, before it is used, ends in a bare TimeoutError.
DatabaseError = (SQLAlchemyError, OSError)


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
        # A connection that died while it lay in the pool (a restarted database) is replaced unseen.
        pool_pre_ping=True,
        # Values (addresses, hashes) stay out of error messages, and so out of the log.
        hide_parameters=True,
        connect_args={
            "timeout": 5,
            "command_timeout": patience,
            "server_settings": {"application_name": "feedboard"} | _bounds(patience),
        },
    )
    event.listen(engine.sync_engine, "do_connect", _connect)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_connection(settings: Settings) -> AsyncGenerator[AsyncConnection]:
    """A connection beside the pool, to listen at; each statement commits itself, in 3 seconds."""
    async with open_engine(settings, patience=3) as engine, engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def open_readers(settings: Settings) -> AsyncGenerator[asyncpg.Pool]:
    """A few connections for statements that only read, prepared once and planned once.

    They are lent first come, first served, and one that died is replaced. What takes longer than
    READ_PATIENCE is given up on (TimeoutError).
    """
    url = make_url(settings.database_url or "")
    _, connecting = url.get_dialect()().create_connect_args(url)
    async with asyncpg.create_pool(
        **connecting,
        min_size=0,
        max_size=READERS,
        max_queries=2**63,
        timeout=READ_PATIENCE,
        command_timeout=READ_PATIENCE,
        # Nothing is left on a connection that the next one would have to be protected from.
        reset=_nothing,
        server_settings={
            "application_name": "feedboard",
            "default_transaction_read_only": "on",
            "statement_timeout": str(int(READ_PATIENCE * 1000)),
            # These find some rows by an index, whatever they are asked for: no need to plan anew,
            # which takes as long as the reading itself, nor to compile.
            "plan_cache_mode": "force_generic_plan",
            "random_page_cost": "1.1",
            "jit": "off",
        },
    ) as pool:
        yield pool


async def _nothing(connection: asyncpg.Connection) -> None:
    pass


def _bounds(patience: float | None) -> dict[str, str]:
    """How long the database itself bears with us, in milliseconds; it ends what we forgot to."""
    if patience is None:
        return {}
    return {
        # Before we give up on the statement ourselves, which costs the connection.
        "statement_timeout": str(int(patience * 1000 * 0.9)),
        "lock_timeout": str(int(patience * 1000 / 3)),
        # Nothing but statements is awaited inside a transaction.
        "idle_in_transaction_session_timeout": str(int(patience * 1000)),
    }


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


def session_factory(engine: AsyncEngine) -> Sessions:
    """Sessions that begin nothing by themselves.

    A query outside a visible `async with db.begin()` fails at once, and a forgotten commit cannot
    exist.
    """
    return async_sessionmaker(engine, autobegin=False, expire_on_commit=False)


async def get_db(connection: HTTPConnection) -> AsyncGenerator[AsyncSession]:
    """Lend one session to one request, and close it on every path."""
    sessions: Sessions = connection.app.state.sessions
    async with sessions() as db:
        yield db
