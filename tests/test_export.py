"""Everything of mine, as a ZIP."""

import asyncio
import io
import json
import socket
import subprocess
import tracemalloc
from zipfile import BadZipFile, ZipFile

import httpx
import pytest
from sqlalchemy import func, insert, text

from models.comment import Comment
from models.feed import Feed, FeedRevision
from models.image import Image, ImageState
from models.like import FeedLike
from models.user import User
from routers import images as image_routes
from services import export as exporting
from services.archive import Archive
from services.export import export
from services.store import ImageStore
from tests import pictures
from tests.comments import delete, say
from tests.conftest import bearer, files, user_maker
from tests.pictures import annotated_png, camera_jpeg

PNG, JPEG = annotated_png(), camera_jpeg()


class Opened:
    """An export as its owner opens it: valid by two programs' judgement."""

    def __init__(self, data, folder):
        path = folder / "export.zip"
        path.write_bytes(data)
        subprocess.run(["unzip", "-tqq", path], check=True)
        self.zip = ZipFile(io.BytesIO(data))
        assert self.zip.testzip() is None
        self.names = self.zip.namelist()

    def json(self, name):
        return json.loads(self.zip.read(name))


@pytest.fixture
def take(client, tmp_path):
    async def take(user):
        answer = await client.get("/api/mypage/export", headers=bearer(user))
        assert answer.status_code == 200, answer.text
        return Opened(answer.content, tmp_path)

    return take


@pytest.fixture
async def app(make_app):
    return await make_app(restore_days=7)


async def test_everything_of_mine_is_in_it_and_nothing_of_others(client, make_user, take):
    ada, bob = await make_user(nickname="Ada"), await make_user(nickname="Bob")

    async def call(method, path, user=ada, **sent):
        answer = await client.request(method, path, headers=bearer(user), **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(user, title, *images):
        sent = files("images", *images) or None
        data = {"title": title, "content": "Ünïcode\n…"}
        return await call("POST", "/api/feed/create", user, data=data, files=sent)

    mine, theirs = await post(ada, "One", PNG, JPEG), await post(bob, "Theirs", PNG)
    await call("PATCH", f"/api/feed/update/{mine['id']}", data={"title": "Two"})
    dropped = await post(ada, "Dropped", PNG)
    await call("DELETE", f"/api/feed/delete/{dropped['id']}")
    said = await say(client, ada, theirs, "Said")
    await say(client, bob, mine, "By Bob")
    regretted = await say(client, ada, theirs, "Regretted")
    await delete(client, ada, regretted)
    await call("PUT", f"/api/like/feed/{theirs['id']}")
    await call("PUT", f"/api/like/comment/{said['id']}")
    await call("PUT", f"/api/follow/{bob['id']}")
    await call("PUT", f"/api/follow/{ada['id']}", bob)
    (face,) = await call("POST", "/api/image/upload", files=files("images", PNG))
    await call("PATCH", "/api/mypage/profile", json={"bio": "Me", "avatar_id": face["id"]})

    opened = await take(ada)

    profile = opened.json("profile.json")
    assert (profile["email"], profile["bio"]) == (ada["email"], "Me")
    (feed,) = opened.json("feeds.json")
    assert (feed["title"], feed["content"]) == ("Two", "Ünïcode\n…")
    assert feed["image_ids"] == [image["id"] for image in mine["images"]]
    assert [was["title"] for was in opened.json("feed_history.json")] == ["One"]
    assert [feed["title"] for feed in opened.json("deleted_feeds.json")] == ["Dropped"]
    assert [comment["content"] for comment in opened.json("comments.json")] == ["Said"]
    assert [it["content"] for it in opened.json("deleted_comments.json")] == ["Regretted"]
    assert [like["feed_id"] for like in opened.json("liked_feeds.json")] == [theirs["id"]]
    assert [like["comment_id"] for like in opened.json("liked_comments.json")] == [said["id"]]
    assert opened.json("sessions.json")[0]["device"].startswith("python-httpx")
    for people in ("following.json", "followers.json"):
        assert [person["nickname"] for person in opened.json(people)] == ["Bob"]
    # Neither password hash nor e-mail address of anybody else.
    everything = b"".join(opened.zip.read(name) for name in opened.names if "images/" not in name)
    assert b"argon2" not in everything
    assert bob["email"].encode() not in everything
    # Each image under its id, byte for byte as it is stored.
    shown = [*mine["images"], *dropped["images"], face]
    facts = {row["id"]: row for row in opened.json("images.json")}
    assert set(facts) == {image["id"] for image in shown}
    assert {n for n in opened.names if n.startswith("images/")} == {
        row["file"] for row in facts.values()
    }
    for image in [*mine["images"], face]:
        name = facts[image["id"]]["file"]
        assert name == f"images/{image['id']}.{image['url'].rpartition('.')[2]}"
        assert opened.zip.read(name) == (await client.get(image["url"])).content
    manifest = opened.json("manifest.json")
    assert manifest["missing_images"] == []
    assert manifest["rows"]["images.json"] == 4
    for name, number in manifest["rows"].items():
        assert len(opened.json(name)) == number


async def test_who_has_nothing_takes_empty_lists(make_user, take):
    opened = await take(await make_user())

    # One is logged in, at least.
    rows = opened.json("manifest.json")["rows"].keys() - {"sessions.json"}
    assert rows
    assert all(opened.json(name) == [] for name in rows)
    assert "README.txt" in opened.names


async def test_it_is_a_download_that_nobody_keeps(client, make_user):
    answer = await client.get("/api/mypage/export", headers=bearer(await make_user()))

    assert answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.headers["cache-control"] == "no-store"


async def test_an_image_that_is_gone_meanwhile_is_named(
    client, db, make_user, make_feed, take, stored_keys, app
):
    ada = await make_user()
    async with db.begin():
        # One that is on its way is none yet.
        facts = {"content_type": "image/png", "bytes": 1, "width": 1, "height": 1}
        pending = {"state": ImageState.PENDING, "owner_id": ada["id"], "reap_dt": func.now()}
        db.add(Image(key="images/aaaaaaaaaaaaaaaa.png", **facts, **pending))
    feed = await make_feed(ada, images=[PNG, PNG])
    gone, kept = feed["images"]
    await app.state.images.delete("images/" + gone["url"].rpartition("/")[2])

    opened = await take(ada)

    assert opened.json("manifest.json")["missing_images"] == [gone["id"]]
    named = {row["id"]: row["file"] for row in opened.json("images.json")}
    assert named == {gone["id"]: None, kept["id"]: f"images/{kept['id']}.png"}


async def test_batches_leave_out_nothing_and_repeat_nothing(db, make_user, take, monkeypatch):
    monkeypatch.setattr(exporting, "FEW", 2)
    monkeypatch.setattr(exporting, "MANY", 3)
    ada = await make_user()
    async with db.begin():
        feeds = [Feed(title=f"{n}", content="C", author_id=ada["id"]) for n in range(7)]
        db.add_all(feeds)
        await db.flush()
        for feed in feeds:
            for n in range(5):
                was = {"title": f"{n}", "content": "C", "image_ids": []}
                db.add(FeedRevision(feed_id=feed.id, **was))
            db.add(FeedLike(feed_id=feed.id, user_id=ada["id"]))
            at = {"root_id": 1, "path": [1], "content": "C"}
            db.add(Comment(feed_id=feed.id, author_id=ada["id"], **at))

    opened = await take(ada)

    def ids(name, key="id"):
        return [row[key] for row in opened.json(name)]

    assert ids("feeds.json") == ids("liked_feeds.json", "feed_id") == [feed.id for feed in feeds]
    assert len(set(ids("comments.json"))) == len(ids("comments.json")) == 7
    assert len(set(ids("feed_history.json"))) == len(ids("feed_history.json")) == 35


async def test_one_at_a_time(live_client, monkeypatch):
    client, make_user = live_client, user_maker(live_client)
    ada, bob = await make_user(), await make_user()
    begun, go_on = asyncio.Event(), asyncio.Event()
    add_images = exporting._add_images

    async def waiting(*arguments):
        begun.set()
        await go_on.wait()
        return await add_images(*arguments)

    monkeypatch.setattr(exporting, "_add_images", waiting)
    first = asyncio.create_task(client.get("/api/mypage/export", headers=bearer(ada)))
    await begun.wait()
    twin = await client.get("/api/mypage/export", headers=bearer(ada))
    go_on.set()
    of_another = await client.get("/api/mypage/export", headers=bearer(bob))
    answers = [await first, of_another]
    again = await client.get("/api/mypage/export", headers=bearer(ada))

    assert (twin.status_code, twin.json()["type"]) == (409, "/problems/export-running")
    assert [answer.status_code for answer in (*answers, again)] == [200, 200, 200]


async def post_live(client, user, *images):
    posted = await client.post(
        "/api/feed/create",
        data={"title": "T", "content": "C"},
        files=files("images", *images),
        headers=bearer(user),
    )
    assert posted.status_code == 200
    return posted.json()


async def test_a_store_that_fails_midway_leaves_no_whole_zip(
    live_app, live_client, live_server, monkeypatch
):
    ada = await user_maker(live_client)()
    await post_live(live_client, ada, PNG, JPEG)
    read, times = ImageStore.read, 0

    async def failing(store, name, **asked):
        nonlocal times
        times += 1
        image = await read(store, name, **asked)
        if times == 2:

            async def chunks():
                yield b"half of"
                raise OSError("the store is gone")

            image.chunks = chunks
        return image

    monkeypatch.setattr(ImageStore, "read", failing)
    got = bytearray()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live_server}") as client:
        async with client.stream("GET", "/api/mypage/export", headers=bearer(ada)) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - as far as it goes
                async for chunk in answer.aiter_bytes():
                    got += chunk
        with pytest.raises(BadZipFile):
            ZipFile(io.BytesIO(got))
        monkeypatch.undo()
        again = await client.get("/api/mypage/export", headers=bearer(ada))
    assert ZipFile(io.BytesIO(again.content)).testzip() is None
    # Whatever it was reading, it has let go of.
    assert live_app.state.images._reads._value == 256


async def test_a_reader_who_stops_reading_holds_nothing(
    live_app, live_client, live_server, monkeypatch
):
    """Neither a connection to the database meanwhile, nor, in the end, one to the store."""
    large = pictures.png(pictures.photo(1600, 1200))
    ada = await user_maker(live_client)()
    await post_live(live_client, ada, *[large] * 3)
    monkeypatch.setattr(image_routes, "SEND_PATIENCE", 3)
    stuck = asyncio.Event()
    passing_on = Archive._pass_on

    async def watched(archive, at_least):
        passing = asyncio.ensure_future(passing_on(archive, at_least))
        try:
            async with asyncio.timeout(0.2):
                await asyncio.shield(passing)
        except TimeoutError:
            stuck.set()
            await passing

    monkeypatch.setattr(Archive, "_pass_on", watched)
    with socket.create_connection(("127.0.0.1", live_server)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        token = f"Authorization: Bearer {ada['access_token']}"
        lines = ["GET /api/mypage/export HTTP/1.1", "Host: localhost", token, "", ""]
        slow.sendall("\r\n".join(lines).encode())
        await asyncio.wait_for(stuck.wait(), 20)
        async with asyncio.timeout(2):  # The service's background work borrows one now and then.
            while live_app.state.sessions.kw["bind"].pool.checkedout():
                await asyncio.sleep(0.01)
        assert live_app.state.exports._running
        async with asyncio.timeout(20):
            while live_app.state.exports._running:
                await asyncio.sleep(0.05)
    assert live_app.state.images._reads._value == 256


class Slices:
    """An image of zeros, as the store gives one."""

    def __init__(self, size):
        self.left = size

    async def chunks(self):
        while self.left:
            size = min(self.left, 64 * 1024)
            self.left -= size
            yield bytes(size)

    def close(self):
        """Nothing is open."""


async def test_memory_does_not_grow_with_what_is_exported(db, app, make_user, monkeypatch):
    ada = await make_user()

    async def read(store, name):
        return Slices(500_000)

    monkeypatch.setattr(ImageStore, "read", read)
    facts = {"state": ImageState.PENDING, "owner_id": ada["id"], "stored": True}
    facts |= {"content_type": "image/png", "bytes": 1, "width": 1, "height": 1}
    async with db.begin():
        row = {"title": "T", "content": "words " * 3_400, "author_id": ada["id"]}
        await db.execute(insert(Feed), [row] * 4_000)
        keys = [{"key": f"images/{n:016}.png"} for n in range(400)]
        values = {"reap_dt": func.now() + text("interval '1 day'")}
        await db.execute(insert(Image).values(**values), [facts | key for key in keys])
    async with db.begin():
        owner = await db.get(User, ada["id"])
    sent = 0

    async def send(data):
        nonlocal sent
        sent += len(data)

    tracemalloc.start()
    await export(db, app.state.images, owner, send, restorable=app.state.settings.restorable)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sent > 400 * 500_000
    print(f"a peak of {peak:,} bytes while {sent:,} were sent")  # For -s.
    # Of 80 MB of words and 200 MB of images.
    assert peak < 10_000_000


async def test_a_zip_of_more_than_65_535_files_is_whole(tmp_path):
    written = bytearray()

    async def send(data):
        written.extend(data)

    archive = Archive(send)
    for n in range(66_000):
        with archive._zip.open(f"images/{n}.png", "w") as file:
            file.write(b"x")
    await archive.add_text("last.txt", "the end")
    await archive.close()

    opened = Opened(bytes(written), tmp_path)
    assert len(opened.names) == 66_001
    assert opened.zip.read("last.txt") == b"the end"
