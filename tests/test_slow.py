"""Slow clients, and slow parts of ours: everything that waits has an end, and waits for itself."""

import asyncio
import os
import resource
import socket
import time
from contextlib import AsyncExitStack, suppress

import httpx
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import deadline, protocol
from config.db import open_engine, session_factory
from models.feed import Feed
from services import showing
from tests.browser import serving
from tests.conftest import SECRET, bearer, client_of, user_maker

# Connections that do harm slowly; `FEEDBOARD_SLOW=500` is the long form.
SLOW = int(os.environ.get("FEEDBOARD_SLOW", "100"))
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
BUNDLE = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOG_IN = (
    b"POST /api/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


async def answer(port: int, *pieces: bytes, pause: float = 0) -> bytes:
    """Send pieces with pauses between them; gives what comes until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GE", HEAD, HEAD + b"X: "])
async def test_a_head_that_does_not_come_is_cut(live_server, monkeypatch, sent):
    monkeypatch.setattr(protocol, "HEAD_PATIENCE", 0.3)

    cut = await answer(live_server, sent)

    assert cut.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in cut


async def test_a_head_that_drips_is_cut_all_the_same(live_server, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_PATIENCE", 0.3)
    drops = [b"X-A: b\r\n"] * 20

    started = time.perf_counter()
    with suppress(ConnectionError):  # where more was sent than was read
        assert (await answer(live_server, HEAD, *drops, pause=0.05)).startswith(b"HTTP/1.1 408 ")
    assert time.perf_counter() - started < 4


async def test_the_next_request_of_a_connection_may_not_take_its_time_either(
    live_server, monkeypatch
):
    monkeypatch.setattr(protocol, "HEAD_PATIENCE", 0.3)

    both = await answer(live_server, HEAD + b"\r\n" + HEAD)

    assert both.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in both


async def test_a_body_that_does_not_come_is_a_408(live_server, monkeypatch):
    monkeypatch.setattr(deadline, "BODY_PATIENCE", 0.3)

    cut = await answer(live_server, LOG_IN % 100 + b"{")

    assert cut.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in cut


async def test_a_body_that_comes_at_a_fair_pace_is_read_to_its_end(live_server, monkeypatch):
    monkeypatch.setattr(deadline, "BODY_PATIENCE", 0.3)
    monkeypatch.setattr(deadline, "MIN_PACE", 100)
    pieces = [b" " * 50] * 10

    read = await answer(live_server, LOG_IN % 500, *pieces, b"", pause=0.1)

    assert read.startswith(b"HTTP/1.1 422 ")


async def test_the_time_of_a_slow_client_is_not_taken_from_ours(make_app, monkeypatch):
    """It may send for longer than a request may keep us busy."""
    monkeypatch.setattr(deadline, "BODY_PATIENCE", 5)
    app = await make_app(request_timeout=1)

    async def slowly():
        for piece in (b'{"email": "a@example.com",', b'"password":', b'"x"}'):
            await asyncio.sleep(0.5)
            yield piece

    async with client_of(app) as client:
        headers = {"Content-Type": "application/json"}
        refused = await client.post("/api/auth/login", content=slowly(), headers=headers)

    assert refused.status_code == 401


async def test_what_keeps_us_busy_for_too_long_is_a_503_and_is_given_up(make_app, monkeypatch):
    ended = asyncio.Event()

    async def hang(*rest):
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    monkeypatch.setattr(showing, "read", hang)
    async with client_of(await make_app(request_timeout=1)) as client:
        refused = await client.get("/api/feed/read/1")
        after = await client.get("/api/feed/list")

    assert refused.status_code == 503
    assert refused.json()["type"] == "/problems/took-too-long"
    assert refused.headers["retry-after"]
    assert ended.is_set()
    assert after.status_code == 200


@pytest.mark.parametrize(
    ("statement", "code"), [("SELECT pg_sleep(20)", "57014"), ("LOCK TABLE feeds", "55P03")]
)
async def test_the_database_ends_what_takes_too_long(settings, engine, statement, code):
    async with (
        open_engine(settings, patience=0.9) as hurried,
        engine.begin() as holding,
        hurried.connect() as waiting,
    ):
        await holding.execute(text("LOCK TABLE feeds"))
        with pytest.raises(DBAPIError) as failed:
            await waiting.execute(text(statement))

    assert failed.value.orig.sqlstate == code


async def test_a_transaction_that_is_left_alone_is_ended(settings):
    async with open_engine(settings, patience=0.3) as hurried, hurried.connect() as idle:
        await idle.execute(text("SELECT 1"))
        await asyncio.sleep(0.8)
        with pytest.raises(DBAPIError):
            await idle.execute(text("SELECT 1"))


async def test_who_waits_for_a_lock_too_long_is_told_so(settings, live_app, live_client):
    author = await user_maker(live_client)()
    words = {"title": "T", "content": "C"}
    feed = (await live_client.post("/api/feed/create", data=words, headers=bearer(author))).json()
    patient = live_app.state.sessions
    url = live_app.state.sessions.kw["bind"].url.render_as_string(hide_password=False)
    async with open_engine(settings.replace(database_url=url), patience=0.9) as hurried:
        live_app.state.sessions = session_factory(hurried)
        try:
            async with patient() as db, db.begin():
                await db.get(Feed, feed["id"], with_for_update=True)
                refused = await live_client.delete(
                    f"/api/feed/delete/{feed['id']}", headers=bearer(author)
                )
        finally:
            live_app.state.sessions = patient

    assert refused.status_code == 503
    assert refused.json()["type"] == "/problems/database-unavailable"


async def greedy(port: int, requests: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a lot, and read nothing."""
    quiet = socket.socket()
    quiet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    quiet.setblocking(False)
    await asyncio.get_running_loop().sock_connect(quiet, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=quiet, limit=2048)
    writer.write(BUNDLE * requests)
    return reader, writer


async def test_a_reader_who_does_not_read_is_cut(live_server, monkeypatch):
    monkeypatch.setattr(protocol, "READ_PATIENCE", 0.3)
    before = open_to(live_server)
    _, writer = await greedy(live_server, 10)
    async with asyncio.timeout(5):
        while open_to(live_server) <= before:
            await asyncio.sleep(0.01)
        while open_to(live_server) > before:
            await asyncio.sleep(0.05)
    writer.close()


async def test_a_reader_who_reads_slowly_gets_all_of_it(live_server, monkeypatch):
    monkeypatch.setattr(protocol, "READ_PATIENCE", 0.4)
    reader, writer = await greedy(live_server, 8)  # more than fits into the kernel's buffers
    received, slowly = 0, time.monotonic() + 2
    length = 0
    async with asyncio.timeout(30):
        while not length or received < 8 * length:
            piece = await reader.read(2048)
            assert piece, "cut"
            if not length:
                length = int(piece.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            received += len(piece)
            if time.monotonic() < slowly:
                await asyncio.sleep(0.01)
    writer.close()


def open_to(port: int) -> int:
    """How many connections the server, which is this process, has."""
    found = psutil.Process().net_connections("tcp")
    return sum(it.laddr.port == port and it.status == psutil.CONN_ESTABLISHED for it in found)


async def test_a_new_connection_takes_the_place_of_the_one_that_only_waits(
    live_server, monkeypatch
):
    monkeypatch.setattr(protocol.BoundedHead, "max_connections", 10)
    async with AsyncExitStack() as stack:
        held = []
        for _ in range(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", live_server)
            stack.callback(writer.close)
            writer.write(b"GET ")
            held.append(reader)
        url = f"http://127.0.0.1:{live_server}"
        async with httpx.AsyncClient(base_url=url) as client:
            answers = [await client.get("/healthz") for _ in range(3)]

        assert [it.status_code for it in answers] == [200] * 3
        async with asyncio.timeout(5):
            while open_to(live_server) > 11:
                await asyncio.sleep(0.01)
        # The oldest went, the newest stay.
        assert held[0].at_eof() or held[0].exception()
        assert not held[-1].at_eof()


async def test_where_all_are_at_work_one_more_is_a_503(live_app, live_server, monkeypatch):
    monkeypatch.setattr(protocol.BoundedHead, "max_connections", 3)
    going, inside = asyncio.Event(), asyncio.Semaphore(0)

    async def busy(*rest):
        inside.release()
        await going.wait()
        raise RuntimeError("over")

    monkeypatch.setattr(showing, "read", busy)
    url = f"http://127.0.0.1:{live_server}"
    async with httpx.AsyncClient(base_url=url) as client, asyncio.TaskGroup() as group:
        for _ in range(3):
            plainly = {"Content-Type": "text/plain"}  # Not by the fast lane.
            group.create_task(client.get("/api/feed/read/1", headers=plainly))
        for _ in range(3):
            await inside.acquire()
        refused = await answer(live_server)
        going.set()

    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2" in refused.lower()
    assert b"/problems/too-many-connections" in refused


async def test_slow_clients_stop_nobody_else(make_database, store, tmp_path_factory):
    """Half heads, half bodies and readers who do not read, more than there is room for."""
    needed = 2 * SLOW + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(needed, hard)), hard))
    given = store | {"database_url": await make_database(), "secret_key": SECRET}
    given |= {"max_connections": SLOW * 4 // 5, "access_log": False}
    folder = tmp_path_factory.mktemp("slow")
    async with serving(folder, given) as url, AsyncExitStack() as stack:
        port = int(url.rpartition(":")[2])
        held = []
        for n in range(SLOW):
            if n % 5 == 4:
                _, writer = await greedy(port, 5)
            else:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(
                    LOG_IN % 1000 + b"{" if n % 5 == 3 else b"GET / HTTP/1.1\r\nX-0: 0\r\n"
                )
            stack.callback(writer.close)
            held.append(writer)
        dripping = asyncio.create_task(drip(held))
        try:
            times = []
            for n in range(20):
                async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                    started = time.perf_counter()
                    read = await client.get("/api/feed/list" if n % 2 else "/readyz")
                    times.append(time.perf_counter() - started)
                    assert read.status_code == 200
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

        print(f"{SLOW} slow ones; 20 others: {sum(times):.2f} s, {max(times):.3f} s at most")
        assert max(times) < 5
    log = (folder / "log").read_text()
    assert "Traceback" not in log, log
    assert '"level": "error"' not in log, log


async def drip(writers: list[asyncio.StreamWriter]) -> None:
    """A byte of a header or of a body now and then, for as long as they are let."""
    while True:
        for writer in writers:
            if not writer.is_closing():
                writer.write(b"x")
        await asyncio.sleep(0.2)
