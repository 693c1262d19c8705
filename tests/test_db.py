"""Sessions and transactions: lent, given back, and never open while somebody else is awaited."""

import asyncio

import httpx
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import InvalidRequestError

import config.db
from config.db import open_engine
from models.feed import Feed
from services import showing
from tests.conftest import bearer, files, user_maker
from tests.pictures import annotated_png
from tests.wire import wire_to

PNG = annotated_png()
# The fast lane does not understand it.
PLAIN = {"Content-Type": "text/plain"}
POST = {"title": "T", "content": "C"}


@pytest.fixture
def lent(live_app):
    """How many connections are out of the pool for requests, not for what goes on beside them."""
    pool, out = live_app.state.sessions.kw["bind"].sync_engine.pool, set()

    def note(connection, record, proxy):
        if asyncio.current_task().get_name() != "background":
            out.add(record)

    def forget(connection, record):
        out.discard(record)

    event.listen(pool, "checkout", note)
    event.listen(pool, "checkin", forget)
    yield lambda: len(out)
    event.remove(pool, "checkout", note)
    event.remove(pool, "checkin", forget)


async def settled(lent):
    """Give a request that was cut off the time to end; then no connection may be out."""
    async with asyncio.timeout(5):
        while lent():
            await asyncio.sleep(0.01)


async def test_a_query_outside_a_visible_transaction_fails_at_once(db):
    with pytest.raises(InvalidRequestError, match=r"[Aa]utobegin is disabled"):
        await db.execute(text("SELECT 1"))


async def ask(engine, seconds=0.0):
    async with engine.connect() as connection:
        return await connection.scalar(
            text("SELECT 1 FROM pg_sleep(:seconds)"), {"seconds": seconds}
        )


async def test_where_the_servers_host_has_gone_without_a_word_another_is_found_in_seconds(
    live_app, monkeypatch
):
    """A statement that is under way waits for 30; what lay in the pool is asked, and replaced."""
    monkeypatch.setattr(config.db, "UNASKED", 0.0)
    monkeypatch.setattr(config.db, "ANSWERS", 0.5)
    settings = live_app.state.settings
    async with (
        wire_to(settings.database_url) as (wire, url),
        open_engine(settings.replace(database_url=url)) as engine,
    ):
        await asyncio.gather(*(ask(engine, 0.2) for _ in range(4)))
        wire.black_hole = True
        asking = [asyncio.create_task(ask(engine)) for _ in range(2)]
        async with asyncio.timeout(10):
            while wire.lost < 2:
                await asyncio.sleep(0.01)
        wire.black_hole = False

        async with asyncio.timeout(10):
            answers = await asyncio.gather(*asking, *(ask(engine) for _ in range(4)))

    assert set(answers) == {1}


async def test_no_connection_is_out_while_the_store_is_talked_to(live_app, live_client, lent):
    author = await user_maker(live_client)()
    images, seen = live_app.state.images, []
    of = {"put_object": images._s3, "load": images._loader, "delete_object": images._s3}

    def watched(operation):
        real = getattr(of[operation], operation)

        async def call(*arguments, **named):
            seen.append((operation, lent()))
            await asyncio.sleep(0.01)
            seen.append((operation, lent()))
            return await real(*arguments, **named)

        return real, call

    reals = {}
    for operation, it in of.items():
        reals[operation], call = watched(operation)
        setattr(it, operation, call)
    try:
        feed = (
            await live_client.post(
                "/api/feed/create", data=POST, files=files("images", PNG), headers=bearer(author)
            )
        ).json()
        await live_client.get(feed["image_urls"][0], headers=PLAIN)
        await live_client.patch(
            f"/api/feed/update/{feed['id']}",
            data={"target_image_urls": feed["image_urls"]},
            files=files("new_images", PNG),
            headers=bearer(author),
        )
        await live_client.delete(f"/api/feed/delete/{feed['id']}", headers=bearer(author))
    finally:
        for operation, real in reals.items():
            setattr(of[operation], operation, real)

    assert {operation for operation, _ in seen} == set(reals)
    assert {out for _, out in seen} == {0}


async def test_a_session_goes_back_after_success_and_after_refusal(live_client, lent):
    assert (await live_client.get("/api/feed/list")).status_code == 200
    assert lent() == 0
    assert (await live_client.get("/api/feed/read/999999")).status_code == 404
    assert lent() == 0
    assert (await live_client.get("/api/feed/list?limit=0")).status_code == 422
    assert lent() == 0


async def test_a_session_goes_back_after_a_crash_inside_its_transaction(
    live_client, lent, monkeypatch
):
    async def crash(db, *rest):
        await db.execute(text("SELECT 1"))
        assert lent() == 1
        raise RuntimeError("crash")

    monkeypatch.setattr(showing, "one", crash)

    assert (await live_client.get("/api/feed/read/1", headers=PLAIN)).status_code == 500
    assert lent() == 0


async def test_a_session_goes_back_when_the_request_is_cancelled(live_client, lent, monkeypatch):
    inside = asyncio.Event()

    async def hang(db, *rest):
        inside.set()
        await db.execute(text("SELECT pg_sleep(30)"))

    monkeypatch.setattr(showing, "one", hang)
    request = asyncio.create_task(live_client.get("/api/feed/read/1", headers=PLAIN))
    await inside.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    await settled(lent)


async def test_a_session_goes_back_when_the_client_goes_away(
    live_app, live_client, live_server, lent
):
    """Over a socket: the connection is cut while the request waits for a locked row."""
    author = await user_maker(live_client)()
    feed = (await live_client.post("/api/feed/create", data=POST, headers=bearer(author))).json()
    async with live_app.state.sessions() as db, db.begin():
        await db.get(Feed, feed["id"], with_for_update=True)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live_server}") as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.delete(
                    f"/api/feed/delete/{feed['id']}", headers=bearer(author), timeout=0.3
                )
        assert lent() == 2

    await settled(lent)


async def test_a_cut_upload_leaves_nothing_behind(live_app, live_client, live_server, lent):
    author = await user_maker(live_client)()
    before = (await live_client.get("/api/feed/list?total=true")).headers["x-total-count"]
    _, writer = await asyncio.open_connection("127.0.0.1", live_server)
    writer.write(
        b"POST /api/feed/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n"
        b"Authorization: Bearer " + author["access_token"].encode() + b"\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nT\r\n'
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    await settled(lent)
    after = (await live_client.get("/api/feed/list?total=true")).headers["x-total-count"]
    assert after == before


async def test_a_pool_that_is_used_up_is_a_503_and_recovers(settings, lent, live_app, live_client):
    pool = live_app.state.sessions.kw["bind"].pool
    held = [live_app.state.sessions() for _ in range(pool.size())]
    original, pool._timeout = pool._timeout, 0.05
    try:
        for db in held:
            await db.begin()
            await db.execute(text("SELECT 1"))
        refused = await live_client.get("/api/feed/list?total=true")
    finally:
        pool._timeout = original
        for db in held:
            await db.close()

    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert (await live_client.get("/api/feed/list")).status_code == 200
    assert lent() == 0
