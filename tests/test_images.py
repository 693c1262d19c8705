"""Objects in the bucket: how they are kept, streamed, and collected when something fails.

The storage tests run on moto's server (or the given store) and once more on SeaweedFS.
"""

import asyncio
import itertools
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest
import pyvips
from botocore.exceptions import ClientError, EndpointConnectionError
from sqlalchemy import func, select, update

from config.s3 import READ_BUFFER, open_s3, require_bucket
from config.settings import SettingsError
from models.base import NOW
from models.image import Image, ImageState
from services import reaper, showing
from services import store as store_module
from services.bucket import Bucket
from services.fsck import Kind, Tally, survey
from services.ledger import SETTLED
from tests.conftest import bearer, client_of, files, make_settings, to_anybody, user_maker
from tests.pictures import annotated_png, camera_jpeg

DAY = timedelta(days=1)
PNG = annotated_png()
JPEG = camera_jpeg()


@pytest.fixture(params=["store", "seaweedfs"])
def each_store(request):
    return {"s3_bucket": "feedboard-storage"} | request.getfixturevalue(request.param)


@pytest.fixture
async def stored(each_store, make_app, make_user):
    """An application on each store, a client of it, its bucket, and a feed with two images."""
    app = await make_app(**each_store)
    settings = app.state.settings
    async with open_s3(settings) as s3, client_of(app) as client:
        await require_bucket(s3, settings)
        posted = await client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=files("images", JPEG, PNG),
            headers=bearer(await make_user()),
        )
        yield client, s3, settings, posted.json()["image_urls"]


async def test_an_object_carries_its_true_type_and_may_be_cached_for_ever(stored):
    _, s3, settings, urls = stored

    for url, content_type in zip(urls, ["image/jpeg", "image/png"], strict=True):
        key = "images/" + url.rpartition("/")[2]
        found = await s3.head_object(Bucket=settings.s3_bucket, Key=key)
        assert found["ContentType"] == content_type
        assert found["CacheControl"] == "public, max-age=31536000, immutable"


async def test_an_image_is_streamed_with_what_a_browser_needs_to_keep_it(stored):
    client, _, _, (url, _) = stored

    loaded = await client.get(url)
    asked = await client.head(url)

    assert loaded.status_code == 200
    assert loaded.content.startswith(b"\xff\xd8\xff")
    assert b"GPS" not in loaded.content
    assert loaded.headers["content-type"] == "image/jpeg"
    assert int(loaded.headers["content-length"]) == len(loaded.content)
    assert loaded.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert loaded.headers["x-content-type-options"] == "nosniff"
    assert asked.content == b""
    differing = {"date", "x-request-id"}
    assert {k: v for k, v in asked.headers.items() if k not in differing} == {
        k: v for k, v in loaded.headers.items() if k not in differing
    }


async def test_a_client_that_has_the_image_is_not_sent_it_again(stored):
    client, _, _, (url, _) = stored
    etag = (await client.get(url)).headers["etag"]

    kept = await client.get(url, headers={"If-None-Match": etag})
    other = await client.get(url, headers={"If-None-Match": '"another"'})

    assert (kept.status_code, kept.content) == (304, b"")
    assert kept.headers["etag"] == etag
    assert other.status_code == 200


async def test_a_range_is_a_part_of_the_image(stored):
    client, _, _, (url, _) = stored
    whole = (await client.get(url)).content

    part = await client.get(url, headers={"Range": "bytes=10-19"})
    tail = await client.get(url, headers={"Range": "bytes=-5"})
    beyond = await client.get(url, headers={"Range": f"bytes={len(whole)}-"})
    odd = await client.get(url, headers={"Range": "bytes=0-1,4-5"})

    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert (tail.status_code, tail.content) == (206, whole[-5:])
    assert beyond.status_code == 416
    assert (odd.status_code, odd.content) == (200, whole)


@pytest.mark.parametrize(
    "name", ["nothing.png", "..%2F..%2Fetc", "%00", "ü.png", "a b", "abcdefghijklmnopqrstuv.png"]
)
async def test_a_name_that_is_not_there_is_not_found(stored, name):
    client, *_ = stored

    missing = await client.get(f"/images/{name}")

    assert missing.status_code == 404
    assert missing.headers["content-type"] == "application/problem+json"


async def test_a_missing_bucket_is_made_on_an_endpoint_of_ones_own(stored):
    _, s3, settings, _ = stored
    other = settings.replace(s3_bucket="feedboard-made-anew")

    await require_bucket(s3, other)
    await require_bucket(s3, other)

    await s3.delete_bucket(Bucket="feedboard-made-anew")


async def test_a_missing_bucket_on_aws_is_an_error_that_names_it(store):
    """No AWS here: the client is moto's, the settings say that the endpoint is AWS's."""
    here = make_settings(**store)
    aws = make_settings(s3_bucket="feedboard-nowhere")

    async with open_s3(here) as s3:
        with pytest.raises(SettingsError, match="no bucket 'feedboard-nowhere' on AWS"):
            await require_bucket(s3, aws)


async def test_wrong_keys_are_an_error_that_says_so(seaweedfs):
    settings = make_settings(**seaweedfs | {"s3_secret_key": "wrong"}, s3_bucket="any")

    async with open_s3(settings) as s3:
        with pytest.raises(SettingsError, match=r"refuses these keys \(403\)"):
            await require_bucket(s3, settings)


@contextmanager
def failing(app, operation, *, after=0):
    """From the call `after` on, the store refuses this operation."""
    s3, calls = app.state.images._s3, []
    real = getattr(s3, operation)

    async def refuse(**arguments):
        calls.append(arguments["Key"])
        if len(calls) > after:
            raise EndpointConnectionError(endpoint_url="http://store")
        return await real(**arguments)

    setattr(s3, operation, refuse)
    try:
        yield calls
    finally:
        setattr(s3, operation, real)


async def states(db, **of):
    counted = select(Image.state, func.count()).filter_by(**of).group_by(Image.state)
    async with db.begin():
        rows = await db.execute(counted)
    return dict(rows.all())


@pytest.mark.parametrize("after", [0, 2])
async def test_a_store_that_fails_while_posting_leaves_no_feed_and_no_object(
    app, client, db, make_user, stored_keys, after
):
    author = await make_user()

    with failing(app, "put_object", after=after):
        refused = await client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=files("images", PNG, PNG, PNG),
            headers=bearer(author),
        )

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["type"] == "/problems/storage-unavailable"
    assert (await client.get("/api/feed/list")).json() == []
    assert await stored_keys() == set()
    assert await states(db) == {ImageState.CONDEMNED: 3}


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_failure_after_the_images_were_stored_takes_them_back(
    app, client, db, make_user, make_feed, stored_keys, monkeypatch, method
):
    author = await make_user()
    feed = await make_feed(author)

    async def fail(*rest):
        raise RuntimeError("at the very end of the transaction")

    monkeypatch.setattr(showing, "one", fail)
    failed = await client.request(
        method,
        "/api/feed/create" if method == "POST" else f"/api/feed/update/{feed['id']}",
        data={"title": "T", "content": "C"},
        files=files("images" if method == "POST" else "new_images", PNG, PNG),
        headers=bearer(author),
    )
    monkeypatch.undo()

    assert failed.status_code == 500
    assert await stored_keys() == set()
    assert await states(db) == {ImageState.CONDEMNED: 2}
    assert (await client.get("/api/feed/list")).json() == [to_anybody(feed)]


async def test_what_arrives_after_it_was_given_up_on_is_collected_as_well(
    app, client, db, settings, make_user, stored_keys
):
    with failing(app, "put_object") as keys:
        await client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=files("images", PNG),
            headers=bearer(await make_user()),
        )
    async with open_s3(settings) as s3:
        await s3.put_object(Bucket=settings.s3_bucket, Key=keys[0], Body=PNG)
    await grow_older(db)

    assert await reaper.reap(db, app.state.images) == (1, 0)
    assert await stored_keys() == set()
    assert await states(db) == {}


async def test_a_store_that_fails_while_deleting_does_not_fail_the_delete(
    app, client, db, make_user, make_feed, stored_keys
):
    author = await make_user()
    feed = await make_feed(author, images=[PNG, JPEG])

    with failing(app, "delete_object"):
        deleted = await client.delete(f"/api/feed/delete/{feed['id']}", headers=bearer(author))
        assert await reaper.reap(db, app.state.images) == (0, 2)

    assert deleted.json() == {"message": "Feed Deleted"}
    assert (await client.get(f"/api/feed/read/{feed['id']}")).status_code == 404
    assert len(await stored_keys()) == 2
    await grow_older(db)
    assert await reaper.reap(db, app.state.images) == (2, 0)
    assert await stored_keys() == set()
    assert await states(db) == {}


async def test_the_reaper_touches_nothing_that_a_feed_shows_or_that_is_being_uploaded(
    app, client, db, make_user, make_feed, stored_keys
):
    author = await make_user()
    await make_feed(author, images=[PNG])
    async with db.begin():
        db.add(pending(author["id"], reap_dt=NOW + app.state.images.grace))

    assert await reaper.reap(db, app.state.images) == (0, 0)
    assert len(await stored_keys()) == 1
    assert await states(db) == {ImageState.ATTACHED: 1, ImageState.PENDING: 1}


async def test_an_upload_that_no_feed_took_is_collected_when_its_time_has_come(app, db, make_user):
    author = await make_user()
    async with db.begin():
        db.add(pending(author["id"], reap_dt=NOW))

    # First it is condemned: its PUT may be under way still.
    assert await reaper.reap(db, app.state.images) == (0, 0)
    assert await states(db) == {ImageState.CONDEMNED: 1}
    await grow_older(db)
    assert await reaper.reap(db, app.state.images) == (1, 0)
    assert await states(db) == {}


async def test_the_service_collects_by_itself(live_app, live_client, monkeypatch):
    images = live_app.state.images
    monkeypatch.setattr(reaper, "REAP_EVERY", 0.05)
    account = {"email": "reaped@example.com", "password": "correct horse", "nickname": "A"}
    author = (await live_client.post("/api/auth/signup", json=account)).json()
    async with live_app.state.sessions() as db:
        async with db.begin():
            db.add(pending(author["id"], reap_dt=NOW, state=ImageState.CONDEMNED))
        reaping = asyncio.create_task(
            reaper.reap_forever(live_app.state.sessions, images, restorable=DAY)
        )
        async with asyncio.timeout(10):
            while await states(db, owner_id=author["id"]):
                await asyncio.sleep(0.02)
    reaping.cancel()


async def test_an_unreachable_store_is_said_when_an_image_is_loaded(make_app, make_user, make_feed):
    (url,) = (await make_feed(await make_user(), images=[PNG]))["image_urls"]
    app = await make_app(s3_endpoint_url="http://127.0.0.1:1")
    async with client_of(app) as client:
        unread = await client.get(url)

    assert unread.status_code == 503
    assert unread.json()["type"] == "/problems/storage-unavailable"


@pytest.fixture
async def mute():
    """The URL of a store that takes every connection, reads what comes, and never answers."""

    async def read_on(reader, writer):
        with suppress(ConnectionError), closing(writer):
            while await reader.read(65536):
                pass

    async with await asyncio.start_server(read_on, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_store_that_never_answers_costs_a_bounded_time_and_blocks_nobody(
    make_app, make_user, make_feed, mute, monkeypatch
):
    author = await make_user()
    (url,) = (await make_feed(author, images=[PNG]))["image_urls"]
    for patience in ("PUT_PATIENCE", "READ_PATIENCE", "DELETE_PATIENCE"):
        monkeypatch.setattr(store_module, patience, 0.3)
    app = await make_app(s3_endpoint_url=mute)
    async with client_of(app) as client, asyncio.timeout(10):
        for _ in range(2):
            refused = await client.post(
                "/api/feed/create",
                data={"title": "T", "content": "C"},
                files=files("images", *[PNG] * 9),
                headers=bearer(author),
            )
            assert refused.status_code == 503
        unread = await client.get(url)
        posted = await client.post(
            "/api/feed/create", data={"title": "T", "content": "C"}, headers=bearer(author)
        )

    assert unread.status_code == 503
    assert posted.status_code == 200
    images = app.state.images
    assert not any(turns.locked() for turns in (images._puts, images._deletes, images._reads))


@pytest.mark.parametrize("by", ["the fast lane", "the plain way"])
async def test_a_reader_who_goes_away_leaves_its_turn_to_others(
    live_app, live_client, live_server, by
):
    author = await user_maker(live_client)()
    big = pyvips.Image.gaussnoise(1800, 1200, mean=128, sigma=60).cast("uchar")
    posted = await live_client.post(
        "/api/feed/create",
        data={"title": "T", "content": "C"},
        files=files("images", big.pngsave_buffer()),
        headers=bearer(author),
    )
    path = posted.json()["image_urls"][0].removeprefix("http://localhost:8000")
    turns = live_app.state.images._reads
    free = turns._value
    writers = []
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", live_server)
        more = "Content-Type: text/plain\r\n" if by == "the plain way" else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        assert (await reader.read(15)).startswith(b"HTTP/1.1 200")
        writers.append(writer)
    for writer in writers:
        writer.transport.abort()

    async with asyncio.timeout(10):
        while turns._value < free:
            await asyncio.sleep(0.01)


def pending(owner_id, *, reap_dt, state=ImageState.PENDING):
    return Image(
        key=f"images/{id(reap_dt)}.png",
        state=state,
        owner_id=owner_id,
        content_type="image/png",
        bytes=1,
        width=1,
        height=1,
        reap_dt=reap_dt,
    )


async def grow_older(db):
    async with db.begin():
        await db.execute(update(Image).values(reap_dt=Image.reap_dt - SETTLED))


def test_the_errors_of_the_store_are_all_caught():
    from config.s3 import S3Error

    assert issubclass(ClientError, S3Error)
    assert issubclass(ConnectionResetError, S3Error)


async def test_boards_share_a_bucket_under_prefixes(make_app, make_user, stored_keys, db):
    names = {}
    for prefix in ("boards/one", "boards/two"):
        app = await make_app(s3_key_prefix=prefix)
        async with client_of(app) as client, open_s3(app.state.settings) as s3:
            posted = await client.post(
                "/api/feed/create",
                data={"title": "T", "content": "C"},
                files=files("images", PNG),
                headers=bearer(await make_user()),
            )
            feed = posted.json()
            (url,) = feed["image_urls"]
            names[prefix] = url.rpartition("/")[2]
            assert (await client.get(url)).status_code == 200
            # The other's objects are none of its own, and its own have their rows.
            tally = Tally()
            found = [f async for f in survey(db, Bucket(s3, app.state.settings), tally)]
            assert [(f.kind, f.key) for f in found if f.kind != Kind.LOST] == []
            assert tally.objects == 1

    assert await stored_keys() == {f"{prefix}/images/{name}" for prefix, name in names.items()}


async def test_a_public_url_is_that_of_the_bucket_and_is_followed_by_the_whole_key(
    make_app, make_user, stored_keys
):
    app = await make_app(s3_key_prefix="one", s3_public_url="https://cdn.example.com/b")
    async with client_of(app) as client:
        posted = await client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=files("images", PNG),
            headers=bearer(await make_user()),
        )

    (key,) = await stored_keys()
    assert posted.json()["image_urls"] == [f"https://cdn.example.com/b/{key}"]


async def test_the_reaper_asks_a_store_that_fails_less_and_less_often(live_app, monkeypatch):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 8:
            raise asyncio.CancelledError

    failing = itertools.chain([True, True] + [False] * 5, itertools.repeat(True))

    async def round_(sessions, images):
        return next(failing)

    monkeypatch.setattr(reaper, "_round", round_)
    # Of the reaper alone: others in this process wait, too.
    monkeypatch.setattr(reaper, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        await reaper.reap_forever(live_app.state.sessions, live_app.state.images, restorable=DAY)

    assert pauses == [15, 15, 30, 60, 120, 240, 240, 15]


async def test_little_of_an_image_waits_for_a_slow_reader(app, make_user, make_feed):
    feed = await make_feed(await make_user(), images=[PNG])
    name = feed["image_urls"][0].rpartition("/")[2]

    image = await app.state.images.read(name)
    buffered = image.body.content.get_read_buffer_limits()
    image.close()

    assert buffered == (READ_BUFFER, 2 * READ_BUFFER)


async def test_who_has_an_image_or_asks_about_it_costs_the_store_nothing(
    client, make_app, make_user, make_feed
):
    feed = await make_feed(await make_user(), images=[PNG])
    (url,) = feed["image_urls"]
    loaded = await client.get(url)
    tag = loaded.headers["etag"]
    async with client_of(await make_app(s3_endpoint_url="http://127.0.0.1:1")) as without_store:
        asked = await without_store.head(url)
        again = await without_store.get(url, headers={"If-None-Match": f'"x", W/{tag}'})
        anew = await without_store.get(url, headers={"If-None-Match": '"x"'})

    assert asked.status_code == 200
    told = ("content-type", "content-length", "etag", "cache-control", "accept-ranges")
    assert [asked.headers[it] for it in told] == [loaded.headers[it] for it in told]
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert anew.status_code == 503
