"""The whole service behind PgBouncer in transaction mode: real, and with few connections.

The next statement of a client may meet another server, on which nothing of the last one's is left.
"""

import asyncio
import time
from contextlib import AsyncExitStack

import asyncpg
import httpx
import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import checks, pooler
from app.capabilities import prepare
from app.checks import Level
from app.main import create_app
from config.db import open_engine, reading, session_factory
from config.settings import SettingsError
from services import revocations
from tests.conftest import SECRET, bearer, client_of, make_settings, own_folder, user_maker
from tests.crash_clients import DATABASE_DOWN
from tests.crash_parts import Service, lasting_port
from tests.crashes import Scene
from tests.pgbouncer import pgbouncer
from tests.test_cli import Board
from tests.test_idempotency import key
from tests.test_session_races import eventually
from tests.test_sessions import is_signed_in

CONNECTIONS = 3
SLEEPING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND state = 'active' AND query = 'SELECT pg_sleep(30)'"
)


@pytest.fixture(scope="module")
async def board(make_database, seaweedfs):
    """The settings of a board on a PostgreSQL of which nothing is pooled yet."""
    own = {"database_url": await make_database(), "s3_bucket": "pooled", **seaweedfs}
    return make_settings(**own)


def pooled(board, url, **more):
    return board.replace(database_url=url, database_pooler=True, **more)


def service_of(stack, settings):
    """`feedboard serve` in a process of its own."""
    names = settings.model_fields_set - {"data_dir", "rate_limits", "restore_days"}
    given = {name: getattr(settings, name) for name in names}
    given |= {"secret_key": SECRET, "s3_secret_key": settings.s3_secret_key.get_secret_value()}
    environment = {name.upper(): str(it) for name, it in given.items() if it is not None}
    service = Service(stack.enter_context(own_folder()), **environment)
    stack.callback(service.close)
    return service


def to(port, service):
    """How many connections a service's workers have to this port."""
    found = [it for worker in service.worker_processes() for it in worker.net_connections("tcp")]
    return sum(bool(it.raddr) and it.raddr.port == port for it in found)


async def servers(url):
    """The connections to a database that come from a pooler, by their process ids."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        clients = f"{others} AND backend_type = 'client backend'"
        rows = await connection.fetch(f"SELECT pid FROM pg_stat_activity WHERE {clients}")
        return {row["pid"] for row in rows}
    finally:
        await connection.close()


async def test_whatever_clients_do_is_right_and_the_end_of_the_pooler_loses_nothing(board):
    """Everything through it, migrations as well; two workers share fewer connections than one
    would have, and then it is killed under traffic."""
    port = lasting_port()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(AsyncExitStack())
        url = await first.enter_async_context(pgbouncer(board.database_url, port=port))
        service = service_of(stack, pooled(board, url))
        service.serve_with(2)
        scene = Scene(service, lambda: board, time.time_ns() % 1_000_000)
        stack.push_async_callback(scene.http.aclose)
        await scene.begin()
        async with scene.traffic():
            await asyncio.sleep(3)
            shared, wanted = await servers(board.database_url), to(port, service)
            await asyncio.sleep(1)
        assert len(shared) <= CONNECTIONS < wanted
        await scene.check()
        assert service.complaints() == []

        async with scene.traffic():
            await asyncio.sleep(1)
            scene.expects(DATABASE_DOWN)
            await first.aclose()
            await asyncio.sleep(0.5)
            await stack.enter_async_context(pgbouncer(board.database_url, port=port))
            await scene.recovered()
        await scene.check()
        await scene.end()
        scene.report("Behind PgBouncer")


async def test_hosts_that_start_at_once_migrate_once_and_write_once(make_database, board):
    """Two processes through the pooler, and an answer of one replayed by the other."""
    own = board.replace(database_url=await make_database(), s3_bucket="pooled-hosts")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(pgbouncer(own.database_url))
        services = [service_of(stack, pooled(own, url)) for _ in range(2)]
        await asyncio.gather(*(service.start() for service in services))
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=service.url, timeout=30))
            for service in services
        ]
        ada = await user_maker(clients[0])()
        words = {"title": "T", "content": "C"}
        for _ in range(5):
            headers = bearer(ada) | key()
            twins = [
                clients[n % 2].post("/api/feed/create", data=words, headers=headers)
                for n in range(10)
            ]
            answers = await asyncio.gather(*twins)
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.content for answer in answers}) == 1
        for client in clients:
            listed = await client.get("/api/feed/list?total=true")
            assert listed.headers["x-total-count"] == "5"
        assert [service.complaints() for service in services] == [[], []]


@pytest.mark.parametrize("past_it", [False, True])
async def test_who_logs_out_at_one_process_is_out_at_the_others(
    make_database, board, monkeypatch, past_it
):
    """Past the pooler it is heard; else each process asks, every second."""
    if past_it:
        monkeypatch.setattr(revocations, "ASK_EVERY", 3600)
        monkeypatch.setattr(revocations, "ANSWER_COUNTS", 3600)
    direct = board.replace(database_url=await make_database(), secret_key=SECRET)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(pgbouncer(direct.database_url))
        own = pooled(direct, url, database_direct_url=direct.database_url if past_it else None)
        await prepare(own)
        apps = [create_app(own) for _ in range(2)]
        for app in apps:
            await stack.enter_async_context(app.router.lifespan_context(app))
        one, two = [await stack.enter_async_context(client_of(app)) for app in apps]

        async def follow():
            return all(app.state.revocations.current for app in apps)

        await eventually(follow)
        with structlog.testing.capture_logs() as logged:
            user = await user_maker(one)()
            assert await is_signed_in(two, user)
            assert (await one.post("/api/auth/logout", headers=bearer(user))).status_code == 200

            async def refused():
                answer = await two.get("/api/feed/list", headers=bearer(user))
                return answer.status_code == 401

            await eventually(refused, 3)
        assert [it for it in logged if it["log_level"] != "info"] == []


async def test_a_transaction_is_bounded_and_leaves_nothing_behind(board):
    async with (
        pgbouncer(board.database_url, connections=1) as url,
        open_engine(pooled(board, url), patience=2) as engine,
    ):
        sessions = session_factory(engine)
        began = time.monotonic()
        with pytest.raises(DBAPIError, match="statement timeout"):
            async with sessions() as db, db.begin():
                await db.execute(text("SELECT pg_sleep(30)"))
        assert time.monotonic() - began < 5
        async with sessions() as db, db.begin():
            for name in ("lock_timeout", "idle_in_transaction_session_timeout"):
                assert await db.scalar(text(f"SHOW {name}")) != "0"
        async with reading(engine)() as db, db.begin():
            assert await db.scalar(text("SHOW statement_timeout")) == "0"


async def test_a_statement_that_commits_itself_is_given_up_on_and_ends_in_the_database(board):
    async with (
        pgbouncer(board.database_url) as url,
        open_engine(board) as direct,
        open_engine(pooled(board, url), patience=2) as engine,
    ):

        async def runs():
            async with direct.connect() as connection:
                return await connection.scalar(SLEEPING) == 1

        async def sleep():
            async with reading(engine)() as db, db.begin():
                await db.execute(text("SELECT pg_sleep(30)"))

        asleep = asyncio.create_task(sleep())
        await eventually(runs)
        with pytest.raises(TimeoutError):
            await asleep

        async def over():
            return not await runs()

        await eventually(over, 5)


# What a pooler does with what a connection is told: it refuses it, or is made to drop it.
DROPPED = "statement_timeout, lock_timeout, idle_in_transaction_session_timeout"


@pytest.mark.parametrize("ignored", ["", DROPPED])
async def test_nobody_takes_a_pooler_for_postgresql(board, tmp_path, ignored):
    """Statements of others might be run: each process believes its own to be prepared."""
    async with pgbouncer(board.database_url, ignore_startup_parameters=ignored) as url:
        own = {"DATABASE_URL": url, "SECRET_KEY": SECRET, "S3_BUCKET": "b"}
        failed = await asyncio.to_thread(Board(tmp_path, **own).run, "migrate")
        with pytest.raises(SettingsError, match="DATABASE_POOLER=true"):
            await prepare(board.replace(database_url=url))
        told = (await found(board.replace(database_url=url)))["database"]

    assert failed.returncode == 1
    assert "set DATABASE_POOLER=true" in failed.stderr
    assert told.level is Level.FAILED
    assert "DATABASE_POOLER=true" in told.do


async def found(settings):
    examinations = (examine(settings) for examine in (checks.database, pooler.examine))
    return {it.part: it for each in examinations async for it in each}


async def test_the_doctor_sees_where_the_way_past_the_pooler_leads(make_database, board):
    async with pgbouncer(board.database_url) as url:
        for direct, level in (
            (board.database_url, Level.OK),
            (await make_database(), Level.FAILED),
            ("postgresql://nobody@127.0.0.1:1/none", Level.FAILED),
        ):
            own = pooled(board, url, database_direct_url=direct)
            told = await found(own)
            assert told["direct"].level is level
            assert told["database"].level is Level.OK
            assert "max_client_conn" in told["connections"].found
