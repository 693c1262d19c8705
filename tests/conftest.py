"""A real PostgreSQL and a real S3 API for every test, and a board that forgets after each.

`DATABASE_URL` and `S3_*` in the environment name a server and a store to use; without them both are
started here. Either way the tests make a database and a bucket of their own, and remove them.
"""

import asyncio
import io
import itertools
import logging
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from moto.server import ThreadedMotoServer
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from app import embedded, logs
from app.capabilities import Capabilities, lend, open_capabilities, prepare
from app.main import create_app
from app.protocol import OPTIONS
from config.s3 import open_s3
from config.settings import Settings
from services.likes import open_likes
from services.revocations import Revocations
from tests.browser import browser  # noqa: F401 - a fixture

SECRET = "a secret for the tests and for nothing else"
PASSWORD = "correct horse battery"
Json = dict[str, Any]

# What the tests may use is taken out of the environment, with everything else that would change
# the service under test without a test saying so.
_GIVEN = {name: os.environ.pop(name.upper(), None) for name in Settings.model_fields}


def make_settings(**changes: Any) -> Settings:
    """Settings that do not depend on the machine's environment or on a `.env`.

    What is deleted is gone at once, and nobody asks too often, unless a test says otherwise.
    """
    usual = {"secret_key": SECRET, "restore_days": 0, "rate_limits": "off"}
    return Settings(_env_file=None, **(usual | changes))


@contextmanager
def own_folder() -> Generator[Path]:
    """A folder that PostgreSQL's account can pass to; each run of pytest closes its own `tmp_path`
    to everybody else."""
    with tempfile.TemporaryDirectory(prefix="feedboard-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _logs() -> None:
    logs.configure(make_settings(log_format="console"))
    for chatty in ("httpx", "werkzeug"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@pytest.fixture(scope="session")
async def database_server() -> AsyncIterator[str]:
    """The URL of a PostgreSQL server in which databases may be made."""
    if _GIVEN["database_url"]:
        yield make_settings(database_url=_GIVEN["database_url"]).database_url or ""
        return
    with own_folder() as folder:
        async with embedded.postgres(folder) as url:
            yield url


@pytest.fixture(scope="session")
async def make_database(database_server: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Make an empty database of one's own; it is dropped at the end of the run."""
    made: list[str] = []
    admin = create_async_engine(database_server, isolation_level="AUTOCOMMIT")

    async def make() -> str:
        name = f"feedboard_test_{secrets.token_hex(6)}"
        async with admin.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        made.append(name)
        url = make_url(database_server).set(database=name)
        return url.render_as_string(hide_password=False)

    yield make
    async with admin.connect() as connection:
        for name in made:
            await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    await admin.dispose()


@asynccontextmanager
async def _moto() -> AsyncGenerator[Json]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    await asyncio.to_thread(server.start)
    _, port = server.get_host_and_port()
    try:
        yield {
            "s3_endpoint_url": f"http://127.0.0.1:{port}",
            "s3_access_key": "key",
            "s3_secret_key": "secret",
        }
    finally:
        await asyncio.to_thread(server.stop)


@pytest.fixture(scope="session")
async def seaweedfs() -> AsyncIterator[Json]:
    """The settings of the embedded object store."""
    with own_folder() as folder:
        async with embedded.object_store(folder) as store:
            yield {
                "s3_endpoint_url": store.endpoint_url,
                "s3_access_key": store.access_key,
                "s3_secret_key": store.secret_key,
            }


@pytest.fixture(scope="session")
async def store() -> AsyncIterator[Json]:
    """The settings of an S3 API, with a bucket of the tests' own in it."""
    async with AsyncExitStack() as stack:
        if _GIVEN["s3_bucket"]:
            found = {k: v for k, v in _GIVEN.items() if v and k.startswith("s3_")}
            found.pop("s3_public_url", None)
        else:
            found = await stack.enter_async_context(_moto())
        found["s3_bucket"] = f"feedboard-test-{secrets.token_hex(6)}"
        yield found
        await empty_bucket(found, remove=True)


@pytest.fixture(params=["store", "seaweedfs"])
def each_store(request: pytest.FixtureRequest) -> Json:
    """The settings of each of the two stores, for a test that is to hold on both."""
    found: Json = request.getfixturevalue(request.param)
    return found


async def empty_bucket(store: Json, *, remove: bool = False) -> None:
    settings = make_settings(**store)
    async with open_s3(settings) as s3:
        for key in await keys_in(s3, settings):
            await s3.delete_object(Bucket=settings.s3_bucket, Key=key)
        if remove:
            await s3.delete_bucket(Bucket=settings.s3_bucket)


async def keys_in(s3: Any, settings: Settings) -> set[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=settings.s3_bucket)
    return {entry["Key"] async for page in pages for entry in page.get("Contents", [])}


@pytest.fixture(scope="session")
async def settings(
    make_database: Callable[[], Awaitable[str]],
    store: Json,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Of the service under test: migrated database, bucket made."""
    own = {"database_url": await make_database(), "data_dir": tmp_path_factory.mktemp("data")}
    settings = make_settings(**own, **store)
    await prepare(settings)
    return settings


@pytest.fixture(scope="session")
async def capabilities(settings: Settings) -> AsyncIterator[Capabilities]:
    async with open_capabilities(settings) as able:
        yield able


@pytest.fixture(scope="session")
async def engine(capabilities: Capabilities) -> AsyncEngine:
    engine: AsyncEngine = capabilities.sessions.kw["bind"]
    return engine


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One connection whose transaction is rolled back after the test."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield connection
        await transaction.rollback()


@pytest.fixture
def sessions(connection: AsyncConnection) -> async_sessionmaker[AsyncSession]:
    """A fresh session each time, whose transactions are savepoints of the test's own."""
    return async_sessionmaker(
        connection,
        autobegin=False,
        expire_on_commit=False,
        join_transaction_mode="create_savepoint",
    )


@pytest.fixture
async def db(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    async with sessions() as db:
        yield db


class _WellInformed(Revocations):
    """In a transaction of the test's own, no session ends elsewhere."""

    current = True  # type: ignore[assignment]


MakeApp = Callable[..., Awaitable[FastAPI]]


@pytest.fixture
async def make_app(
    settings: Settings, capabilities: Capabilities, sessions: async_sessionmaker[AsyncSession]
) -> AsyncIterator[MakeApp]:
    """The application on the test's own transaction; arguments are settings to change."""
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> FastAPI:
            # Other connections do not see what is in it.
            changed, able = settings.replace(fast_reads=False, **changes), capabilities
            if changes:
                able = await stack.enter_async_context(open_capabilities(changed))
            app = create_app(changed)
            own = replace(
                able,
                sessions=sessions,
                reading=sessions,
                revocations=_WellInformed(sessions, able.tokens.seconds),
                likes=open_likes(sessions),
            )
            lend(app, own)
            return app

        yield make


@pytest.fixture
async def app(make_app: MakeApp) -> FastAPI:
    return await make_app()


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
        yield client


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


_numbers = itertools.count(1)


def user_maker(client: httpx.AsyncClient) -> Callable[..., Awaitable[Json]]:
    """Sign up and log in through this client; gives the user with its `access_token`."""

    async def make(email: str | None = None, nickname: str | None = None) -> Json:
        number = next(_numbers)
        email, nickname = email or f"user{number}@example.com", nickname or f"Ada {number}"
        account = {"email": email, "password": PASSWORD, "nickname": nickname}
        user = await client.post("/api/auth/signup", json=account)
        assert user.status_code == 200, user.text
        account.pop("nickname")
        token = await client.post("/api/auth/login", json=account)
        return user.json() | token.json()

    return make


@pytest.fixture
def make_user(client: httpx.AsyncClient) -> Callable[..., Awaitable[Json]]:
    return user_maker(client)


def bearer(user: Json) -> dict[str, str]:
    return {"Authorization": f"Bearer {user['access_token']}"}


def files(field: str, *images: bytes) -> list[tuple[str, tuple[str, io.BytesIO]]]:
    """Images as httpx sends them in a form."""
    return [(field, (f"{n}.bin", io.BytesIO(data))) for n, data in enumerate(images)]


def to_anybody(feed: Json) -> Json:
    """A feed, as its author was shown it, as it is shown to whoever is not signed in."""
    return feed | {"liked": None}


@pytest.fixture
def make_feed(client: httpx.AsyncClient) -> Callable[..., Awaitable[Json]]:
    """Post a feed with `images` (a list of bytes)."""

    async def make(
        author: Json, title: str = "Title", content: str = "Content", images: Any = ()
    ) -> Json:
        posted = await client.post(
            "/api/feed/create",
            data={"title": title, "content": content},
            files=files("images", *images) or None,
            headers=bearer(author),
        )
        assert posted.status_code == 200, posted.text
        return posted.json()

    return make


@pytest.fixture
async def stored_keys(settings: Settings) -> AsyncIterator[Callable[[], Awaitable[set[str]]]]:
    """Ask which objects are in the bucket; it is empty when the test begins."""
    async with open_s3(settings) as s3:
        for key in await keys_in(s3, settings):
            await s3.delete_object(Bucket=settings.s3_bucket, Key=key)

        async def ask() -> set[str]:
            return await keys_in(s3, settings)

        yield ask


@pytest.fixture(scope="session")
async def live_app(
    make_database: Callable[[], Awaitable[str]], settings: Settings
) -> AsyncIterator[FastAPI]:
    """The whole service, lifespan and real commits included: for races, crashes and the pool."""
    live = settings.replace(database_url=await make_database())
    await prepare(live)
    app = create_app(live)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def live_client(live_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(live_app) as client:
        yield client


@pytest.fixture
async def live_server(live_app: FastAPI) -> AsyncIterator[int]:
    """The port at which uvicorn serves the live application: for clients that go away."""
    config = uvicorn.Config(live_app, port=0, **OPTIONS | {"lifespan": "off"})
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving
