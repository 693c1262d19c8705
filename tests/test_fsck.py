"""`feedboard images`: what is wrong between table and bucket is found, and no more than that."""

import asyncio
import itertools
import json
import os
import secrets
import sys
import tracemalloc
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import delete, text, update

from app.capabilities import prepare
from app.upkeep import Check
from config.db import open_engine, session_factory
from config.s3 import open_s3, require_bucket
from config.settings import SettingsError
from models.base import NOW
from models.image import Image, ImageState
from services import fsck
from services.bucket import Bucket, Object
from services.fsck import Kind, Tally
from tests.conftest import (
    bearer,
    client_of,
    empty_bucket,
    files,
    keys_in,
    own_folder,
    user_maker,
)
from tests.live import served
from tests.pictures import annotated_png, camera_jpeg
from tests.test_cli import Board as Command

PNG = annotated_png()
JPEG = camera_jpeg()
DAY = timedelta(days=1)


class Board:
    """A service, its table, and a bucket of its own with nothing in it."""

    def __init__(self, settings, client, db, s3, author):
        self.settings, self.client, self.db, self.s3 = settings, client, db, s3
        self.author = author
        self.bucket = Bucket(s3, settings)

    async def post(self, *images):
        posted = await self.client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=files("images", *images),
            headers=bearer(self.author),
        )
        assert posted.status_code == 200, posted.text
        return posted.json()

    async def put(self, key, body=PNG, **options):
        await self.s3.put_object(
            Bucket=self.settings.s3_bucket, Key=key, Body=body, ContentType="image/png", **options
        )

    async def drop(self, key):
        await self.s3.delete_object(Bucket=self.settings.s3_bucket, Key=key)

    async def add_row(self, key, state=ImageState.PENDING, *, due_in=timedelta(), **values):
        row = {"content_type": "image/png", "bytes": len(PNG), "width": 1, "height": 1, **values}
        async with self.db.begin():
            self.db.add(
                Image(
                    key=key,
                    state=state,
                    owner_id=self.author["id"],
                    reap_dt=NOW + due_in,
                    **row,
                )
            )

    async def change_row(self, key, **values):
        async with self.db.begin():
            await self.db.execute(update(Image).where(Image.key == key).values(values))

    async def found(self, **options):
        """What is wrong: kind and key of each finding."""
        return {(finding.kind, finding.key) for finding in await self.findings(**options)}

    async def findings(self, **options):
        self.tally = Tally()
        return [
            finding async for finding in fsck.survey(self.db, self.bucket, self.tally, **options)
        ]

    async def repair(self):
        """Mend what can be mended; gives the keys of what was, and of what was not."""
        mended = {True: set(), False: set()}
        for finding in await self.findings(deep=True):
            done = await fsck.mend(self.db, self.images, self.bucket, finding)
            mended[done].add(finding.key)
        return mended[True], mended[False]

    async def keys(self):
        return await keys_in(self.s3, self.settings)


def keys_of(feed):
    return ["images/" + url.rpartition("/")[2] for url in feed["image_urls"]]


@pytest.fixture
async def board(each_store, make_app, make_user, db):
    app = await make_app(**each_store | {"s3_bucket": f"feedboard-fsck-{secrets.token_hex(4)}"})
    settings = app.state.settings
    async with open_s3(settings) as s3, client_of(app) as client:
        await require_bucket(s3, settings)
        board = Board(settings, client, db, s3, await make_user())
        board.images = app.state.images
        yield board
    await empty_bucket(each_store | {"s3_bucket": settings.s3_bucket}, remove=True)


async def test_a_board_whose_table_and_bucket_agree_has_nothing_to_report(board):
    await board.post(PNG, JPEG)
    await board.put("images-of-others.png")

    assert await board.found() == set()
    assert await board.found(deep=True) == set()
    assert (board.tally.objects, board.tally.rows) == (2, 2)


async def test_an_avatar_belongs_to_the_board_and_is_missed(board):
    sent = {"files": files("images", PNG), "headers": bearer(board.author)}
    (image,) = (await board.client.post("/api/image/upload", **sent)).json()
    worn = await board.client.patch(
        "/api/mypage/profile", json={"avatar_id": image["id"]}, headers=bearer(board.author)
    )
    key = "images/" + worn.json()["avatar"]["url"].rpartition("/")[2]

    assert await board.found(deep=True) == set()
    assert await board.repair() == (set(), set())
    await board.drop(key)
    (lost,) = await board.findings()
    assert (lost.kind, lost.key) == (Kind.LOST, key)
    assert lost.shown_by == f"user {board.author['id']}"


async def test_whatever_is_wrong_is_found(board):
    feed = await board.post(PNG, JPEG, PNG, PNG)
    lost, resized, retyped, _ = keys_of(feed)
    await board.drop(lost)
    await board.change_row(resized, bytes=1)
    await board.put(retyped, CacheControl="no-cache")
    await board.change_row(retyped, content_type="image/webp", bytes=len(PNG))
    await board.put("images/orphan.png")
    await board.add_row("images/stale.png", due_in=-DAY)

    shallow = {
        (Kind.LOST, lost),
        (Kind.WRONG_SIZE, resized),
        (Kind.ORPHAN, "images/orphan.png"),
        (Kind.STALE, "images/stale.png"),
    }
    assert await board.found() == shallow
    assert await board.found(deep=True) == shallow | {(Kind.WRONG_TYPE, retyped)}
    by_kind = {finding.kind: finding for finding in await board.findings(deep=True)}
    assert by_kind[Kind.LOST].feed_id == by_kind[Kind.WRONG_TYPE].feed_id == feed["id"]
    assert by_kind[Kind.WRONG_SIZE].expected == 1
    assert by_kind[Kind.WRONG_TYPE].expected == "image/webp"
    assert by_kind[Kind.WRONG_TYPE].found == "image/png"
    assert 0 <= by_kind[Kind.ORPHAN].age < 60


async def test_repairing_mends_what_no_feed_can_miss_and_says_what_is_left(board):
    feed = await board.post(PNG, PNG, PNG)
    lost, resized, retyped = keys_of(feed)
    await board.drop(lost)
    await board.change_row(resized, bytes=1)
    await board.change_row(retyped, content_type="image/webp")
    await board.put("images/orphan.png")
    await board.add_row("images/stale.png", due_in=-DAY)
    board.images.grace = timedelta()

    mended, left = await board.repair()

    assert mended == {retyped, "images/orphan.png", "images/stale.png"}
    assert left == {lost, resized}
    assert await board.found(deep=True) == {(Kind.LOST, lost), (Kind.WRONG_SIZE, resized)}
    assert await board.keys() == {resized, retyped}
    found = await board.s3.head_object(Bucket=board.settings.s3_bucket, Key=retyped)
    assert found["ContentType"] == "image/webp"
    assert found["CacheControl"] == "public, max-age=31536000, immutable"


async def test_an_object_younger_than_the_grace_is_reported_but_not_touched(board):
    await board.put("images/orphan.png")

    mended, left = await board.repair()

    assert (mended, left) == (set(), {"images/orphan.png"})
    assert await board.keys() == {"images/orphan.png"}


async def test_what_is_under_way_is_not_wrong(board):
    await board.add_row("images/uploading.png", due_in=DAY)
    await board.add_row("images/uploaded.png", due_in=DAY, bytes=1, content_type="image/gif")
    await board.put("images/uploaded.png")
    await board.add_row("images/being-deleted.png", ImageState.CONDEMNED)
    await board.add_row("images/to-be-deleted.png", ImageState.CONDEMNED)
    await board.put("images/to-be-deleted.png")

    assert await board.found(deep=True) == set()


async def test_keys_of_every_kind_are_matched_in_the_order_of_the_store(board):
    """SeaweedFS lists what is in a folder at the folder's place, not at the key's."""
    names = [*"A a B b -x _x 0 Z z a-b a_b a.b a/b ab aB/c a+b é ü € ﾐ 😀 ~".split(), "a b"]
    keys = {f"images/{name}" for name in names}
    for key in keys:
        await board.put(key)
        await board.add_row(key, due_in=DAY)
    feed = await board.post(PNG)
    for key in keys:
        await board.change_row(key, state=ImageState.ATTACHED, feed_id=feed["id"])

    assert await board.found(deep=True) == set()
    assert board.tally.objects == board.tally.rows == len(keys) + 1

    await board.drop("images/a/b")
    async with board.db.begin():
        await board.db.execute(delete(Image).where(Image.key == "images/aB/c"))
    assert await board.found() == {(Kind.LOST, "images/a/b"), (Kind.ORPHAN, "images/aB/c")}


@pytest.mark.parametrize("each_store", ["store"], indirect=True)
async def test_many_pages_are_compared_in_constant_memory(board):
    async def peak(number):
        """Of the memory (bytes) in which so many rows and objects are compared."""
        async with board.db.begin():
            await board.db.execute(text(_MANY_ROWS), {"number": number, "id": board.author["id"]})
            keys = (await board.db.scalars(text("SELECT key FROM images"))).all()
        pages = Pages(sorted(keys))
        # The listing's own keys are the test's; what is measured begins here.
        tracemalloc.start()
        tally = Tally()
        found = [f async for f in fsck.survey(board.db, Bucket(pages, board.settings), tally)]
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == []
        assert tally.objects == tally.rows == number
        return used

    few = await peak(10_000)
    many = await peak(100_000)

    assert many < 1.5 * few


_MANY_ROWS = """
    INSERT INTO images (key, state, owner_id, position, content_type, bytes, width, height, reap_dt)
    SELECT 'images/' || md5(number::text) || '.png', 'pending', :id, 0, 'image/png', 1, 1, 1, now()
    FROM generate_series(1, :number) AS number ON CONFLICT DO NOTHING
"""


class Pages:
    """A listing of these keys, as the S3 client gives it."""

    def __init__(self, keys):
        self.keys = keys

    def get_paginator(self, operation):
        return self

    async def paginate(self, **arguments):
        # Held nowhere but in `keys`: the memory is measured in which they are read.
        listed = (key for key in self.keys if key.startswith(arguments["Prefix"]))
        while page := [{"Key": key, "Size": 1} for key in itertools.islice(listed, 1000)]:
            yield {"Contents": page}


@pytest.mark.parametrize("each_store", ["store"], indirect=True)
@pytest.mark.parametrize("order", ["nothing", "backwards", "more"])
async def test_a_listing_is_not_trusted(board, monkeypatch, order):
    """It may be old by the time it is read, and some stores list in an order of their own."""
    feeds = [await board.post(PNG, JPEG) for _ in range(20)]
    keys = sorted(key for feed in feeds for key in keys_of(feed))
    listed = {"nothing": [], "backwards": keys[::-1], "more": sorted([*keys, "images/gone.png"])}
    monkeypatch.setattr(
        board.bucket,
        "listing",
        lambda advance: Bucket(Pages(listed[order]), board.settings).listing(advance),
    )

    assert await board.found() == set()


@pytest.mark.parametrize("each_store", ["store"], indirect=True)
async def test_a_feed_that_is_deleted_while_its_images_are_asked_for_lost_nothing(
    board, monkeypatch
):
    feed = await board.post(PNG)
    look = board.bucket.look

    async def look_late(key):
        path = f"/api/feed/delete/{feed['id']}"
        await board.client.delete(path, headers=bearer(board.author))
        return await look(key)

    monkeypatch.setattr(board.bucket, "look", look_late)

    assert await board.found(deep=True) == set()
    assert await board.keys() == set()


@pytest.fixture
async def own(make_database, settings, store):
    """Settings of a board with a database and a bucket that nothing else uses."""
    bucket = f"feedboard-fsck-{secrets.token_hex(4)}"
    own = settings.replace(database_url=await make_database(), s3_bucket=bucket)
    await prepare(own)
    yield own
    await empty_bucket(store | {"s3_bucket": bucket}, remove=True)


async def fsck_command(settings, *arguments, **changes):
    """`feedboard images ...` in a process of its own: exit code, standard output and error."""
    secret, names = settings.s3_secret_key, {name.upper() for name in type(settings).model_fields}
    environment = {k: v for k, v in os.environ.items() if k not in names} | {
        "DATABASE_URL": settings.database_url,
        "SECRET_KEY": settings.secret_key.get_secret_value(),
        "S3_BUCKET": settings.s3_bucket,
        "S3_ENDPOINT_URL": settings.s3_endpoint_url or "",
        "S3_ACCESS_KEY": settings.s3_access_key or "",
        "S3_SECRET_KEY": secret.get_secret_value() if secret else "",
        "S3_REGION": settings.s3_region,
    }
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "feedboard",
        "images",
        *arguments,
        env=environment | changes,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


@pytest.fixture
async def real(own):
    """A board with real commits: what another process sees."""
    async with (
        served(own) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
        open_engine(own) as engine,
        session_factory(engine)() as db,
        open_s3(own) as s3,
    ):
        yield Board(own, client, db, s3, await user_maker(client)())


async def test_the_command_says_what_is_wrong_by_its_exit_code_and_in_words(real):
    feed = await real.post(PNG)

    assert await fsck_command(real.settings, "fsck") == (
        0,
        "1 row and 1 object: nothing is wrong.\n",
        "",
    )
    await real.drop(*keys_of(feed))
    await real.put("images/\x1b[2Jorphan.png")
    code, said, _ = await fsck_command(real.settings, "fsck", "--repair", "--force")

    assert code == 1
    assert f"feed {feed['id']} shows {keys_of(feed)[0]}" in said
    assert "orphan: images/\\x1b[2Jorphan.png has no row" in said
    assert "\x1b" not in said


async def test_machines_get_a_document_a_line_and_nothing_else(real):
    feed = await real.post(PNG, PNG)
    (retyped, kept) = keys_of(feed)
    await real.change_row(retyped, content_type="image/webp")
    nothing = dict.fromkeys(Kind, 0)

    code, said, _ = await fsck_command(real.settings, "fsck", "--json", "--deep", "--repair")
    finding, summary = map(json.loads, said.splitlines())

    assert code == 0, "all that was found was mended"
    assert finding.pop("age") >= 0
    assert finding == {
        "kind": "wrong-type",
        "key": retyped,
        "feed_id": feed["id"],
        "expected": "image/webp",
        "found": "image/png",
        "avatar_of": None,
        "mended": True,
    }
    one = nothing | {"wrong-type": 1}
    counts = {"kind": "summary", "objects": 2, "rows": 2}
    assert summary == counts | {"found": one, "mended": one, "left": 0}

    await real.drop(kept)
    code, said, _ = await fsck_command(real.settings, "fsck", "--json", "--deep")
    assert code == 1
    assert [json.loads(line)["kind"] for line in said.splitlines()] == ["lost", "summary"]


async def test_what_cannot_be_found_out_is_neither_clean_nor_wrong(own, make_database):
    unreachable = await fsck_command(
        own, "fsck", "--json", S3_ENDPOINT_URL="http://127.0.0.1:1", S3_BUCKET="b"
    )
    unmigrated = await fsck_command(own, "fsck", "--json", DATABASE_URL=await make_database())
    nowhere = await fsck_command(own, "fsck", DATABASE_URL="postgresql://u@127.0.0.1:1/none")

    for code, said, complained in (unreachable, unmigrated, nowhere):
        assert (code, said) == (2, "")
        assert complained.startswith("error: ")
        assert "Traceback" not in complained
    assert "cannot be used" in unreachable[2]
    assert "feedboard migrate" in unmigrated[2]


async def test_the_bucket_of_another_board_is_not_emptied(own, monkeypatch, capsys):
    """DATABASE_URL and S3_BUCKET that do not belong together make every object an orphan."""
    look = Bucket.look

    async def look_a_day_later(self, key):
        found = await look(self, key)
        return found and Object(found.content_type, found.bytes, found.age + DAY)

    monkeypatch.setattr(Bucket, "look", look_a_day_later)
    async with open_s3(own) as s3:
        for name in "ab":
            await s3.put_object(Bucket=own.s3_bucket, Key=f"images/{name}.png", Body=PNG)

        careful = Check(deep=False, repair=True, force=False, as_json=True)
        with pytest.raises(SettingsError, match="2 of 2 objects have no row: do DATABASE_URL and"):
            await careful.run(own)
        assert (careful.exit_code, len(await keys_in(s3, own))) == (2, 2)

        forced = Check(deep=False, repair=True, force=True, as_json=True)
        await forced.run(own)
        assert (forced.exit_code, await keys_in(s3, own)) == (0, set())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mended"]["orphan"] == 2


async def test_reaping_by_hand_goes_on_until_nothing_is_due(own):
    async with open_engine(own) as engine, open_s3(own) as s3, session_factory(engine)() as db:
        async with db.begin():
            author = {"id": await db.scalar(text(_AUTHOR))}
        board = Board(own, None, db, s3, author)
        await board.add_row("images/later.png", due_in=DAY)
        await board.put("images/later.png")
        await board.add_row("images/due.png", ImageState.CONDEMNED)
        await board.put("images/due.png")

        down = await fsck_command(own, "reap", S3_ENDPOINT_URL="http://127.0.0.1:1")
        async with db.begin():
            await db.execute(text(_MANY_ROWS), {"number": 150, "id": author["id"]})
            earlier = Image.reap_dt - timedelta(hours=1)
            await db.execute(update(Image).values(state=ImageState.CONDEMNED, reap_dt=earlier))
        done = await fsck_command(own, "reap")
        again = await fsck_command(own, "reap")

        assert down[:2] == (1, "0 objects are gone.\n")
        assert "did not confirm 1 deletion;" in down[2]
        assert done == (0, "151 objects are gone.\n", "")
        assert again == (0, "0 objects are gone.\n", "")
        assert await board.keys() == {"images/later.png"}


_AUTHOR = """
    INSERT INTO users (email, email_key, password_hash, nickname, nickname_key)
    VALUES ('a@example.com', 'a@example.com', 'none', 'Ada', 'ada') RETURNING id
"""


async def test_a_busy_board_is_clean_at_every_moment(real, monkeypatch):
    """Feeds come and go, in the service, while this process compares and another one repairs."""
    done, posted = asyncio.Event(), 0

    async def come_and_go():
        nonlocal posted
        while not done.is_set():
            feed = await real.post(PNG, JPEG)
            posted += 1
            if posted % 4:
                path = f"/api/feed/delete/{feed['id']}"
                await real.client.delete(path, headers=bearer(real.author))

    async def compare():
        for deep in itertools.cycle([False, True]):
            assert await real.found(deep=deep) == set()
            if posted > 20:
                break
        return await fsck_command(real.settings, "fsck", "--json", "--deep", "--repair")

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(come_and_go())
        compared = await compare()
        done.set()

    assert compared[0] == 0, compared
    feeds = (await real.client.get("/api/feed/list?limit=100")).json()
    shown = {key for feed in feeds for key in keys_of(feed)}
    assert shown <= await real.keys()
    assert await real.found(deep=True) == set()


def test_both_commands_work_beside_a_running_embedded_service():
    with own_folder() as folder:
        board = Command(folder)
        board.start()
        try:
            token = board.sign_up("ada@example.com")
            board.post(token)
            compared = board.run("images", "fsck", "--deep")
            reaped = board.run("images", "reap")
        finally:
            board.stop()

    assert (compared.returncode, reaped.returncode) == (0, 0), compared.stderr + reaped.stderr
    assert compared.stdout == "1 row and 1 object: nothing is wrong.\n"
    assert reaped.stdout == "0 objects are gone.\n"
