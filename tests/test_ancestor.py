"""The client of the ancestor's database: open inside `async with`, and nowhere else."""

import asyncio
from contextlib import aclosing

import asyncpg
import pytest

from models.imported import Kind
from services.importing.ancestor import Ancestor, NotOpen, Unreadable
from tests import ancestor


@pytest.fixture
async def url(make_database):
    url = await make_database()
    await ancestor.fill(url)
    await ancestor.run(
        url,
        """INSERT INTO feeds SELECT n, 'Many', 'Words', 'ada@example.com', NULL, now(), now()
        FROM generate_series(1000, 3000) AS n""",
    )
    return url


@pytest.fixture
def connections(url):
    """How many connections there are to the ancestor's database, but for the one that asks."""

    async def ask():
        async with ancestor.connected(url) as own:
            return await own.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )

    async def settled():
        # A server notices a line that was cut, and not closed, a moment later.
        async with asyncio.timeout(10):
            while (number := await ask()) > 0:
                await asyncio.sleep(0.02)
        return number

    return settled


@pytest.mark.parametrize("call", ["ok", "rows", "survey"])
async def test_used_outside_of_async_with_it_fails_at_once(url, call):
    client = Ancestor(url)
    arguments = (Kind.FEEDS,) if call == "rows" else ()

    with pytest.raises(NotOpen, match="inside `async with Ancestor"):
        await _asked(client, call, *arguments)
    async with client:
        pass
    with pytest.raises(NotOpen):
        await _asked(client, call, *arguments)


async def _asked(client, call, *arguments):
    found = getattr(client, call)(*arguments)
    return await found


def test_even_a_call_that_nobody_awaits_fails(url):
    client = Ancestor(url)

    for call in (client.ok, lambda: client.rows(Kind.USERS)):
        with pytest.raises(NotOpen):
            call()


async def test_it_says_whether_the_database_answers(url):
    async with Ancestor(url) as client:
        assert await client.ok()

        async with ancestor.connected(url) as other:
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert not await client.ok()


async def test_after_all_is_read_nothing_is_left_open(url, connections):
    async with Ancestor(url) as client:
        rows = [row async for row in client.rows(Kind.FEEDS)]
        assert await _cursors(client) == 0

    assert len(rows) == 2012
    assert await connections() == 0


async def test_a_reader_who_stops_early_leaves_no_cursor_and_can_read_on(url, connections):
    async with Ancestor(url) as client:
        for _ in range(2):
            async with aclosing(client.rows(Kind.FEEDS)) as rows:
                async for _row in rows:
                    assert await _cursors(client) == 1
                    break
            assert await _cursors(client) == 0

    assert await connections() == 0


async def test_an_error_amid_the_rows_closes_all(url, connections):
    async def read():
        async with Ancestor(url) as client, aclosing(client.rows(Kind.FEEDS)) as rows:
            async for _ in rows:
                raise KeyError

    with pytest.raises(KeyError):
        await read()
    assert await connections() == 0


async def test_a_connection_that_is_cut_amid_the_rows_is_a_sentence(url, connections):
    async def read():
        async with Ancestor(url) as client, aclosing(client.rows(Kind.FEEDS)) as rows:
            async for _ in rows:
                await ancestor.run(
                    url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )

    with pytest.raises(Unreadable):
        await read()
    assert await connections() == 0


async def test_one_client_is_open_once(url, connections):
    async with Ancestor(url) as client:
        with pytest.raises(RuntimeError, match="open already"):
            await client.__aenter__()

    assert await connections() == 0


async def test_a_reader_that_is_cancelled_closes_all(url, connections):
    reading = asyncio.Event()

    async def read():
        async with Ancestor(url) as client, aclosing(client.rows(Kind.FEEDS)) as rows:
            async for _ in rows:
                reading.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await connections() == 0


async def test_a_reader_that_is_cancelled_while_the_database_works_closes_all(url, connections):
    async with ancestor.connected(url) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE feeds")  # Whoever reads waits.

        async def read():
            async with Ancestor(url) as client:
                async for _ in client.rows(Kind.FEEDS):
                    raise AssertionError

        task = asyncio.create_task(read())
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        waiting += " AND datname = current_database()"
        async with asyncio.timeout(10):
            # Of a transaction of its own each time: within one, nothing new is seen.
            while not await _asked_anew(url, waiting):
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await transaction.rollback()
    assert await connections() == 0


async def _asked_anew(url, question):
    async with ancestor.connected(url) as own:
        return await own.fetchval(question)


async def test_a_database_without_the_tables_is_a_sentence_and_closes_all(
    url, connections, make_database
):
    empty = await make_database()

    with pytest.raises(Unreadable, match='relation "users" does not exist'):
        async with Ancestor(empty) as client:
            await client.survey()
    await ancestor.run(url, "DROP TABLE likes")
    with pytest.raises(Unreadable, match='relation "likes" does not exist'):
        async with Ancestor(url) as client:
            _ = [row async for row in client.rows(Kind.LIKES)]
    assert await connections() == 0


async def test_a_server_that_is_not_there_is_a_sentence():
    with pytest.raises(Unreadable):
        async with Ancestor("postgresql://u@127.0.0.1:1/none"):
            raise AssertionError


async def test_it_reads_one_moment_and_can_write_nothing(url):
    async with Ancestor(url) as client:
        survey = await client.survey()
        await ancestor.run(url, "DELETE FROM follows")

        follows = [row async for row in client.rows(Kind.FOLLOWS)]

        assert sum(row.times for row in follows) == survey.counts[Kind.FOLLOWS] == 8
        assert survey.last_feed == 3000
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await client._connection.execute("DELETE FROM users")


async def _cursors(client):
    # Not counting the one by which this is asked.
    found = await client._connection.fetch("SELECT name FROM pg_cursors WHERE name = 'rows'")
    return len(found)
