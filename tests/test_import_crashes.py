"""An import that dies on its way, or runs beside those who write: nothing is lost or doubled."""

import asyncio
import contextlib
import signal
import subprocess
import time

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import func, select

from app.capabilities import prepare
from config.settings import SettingsError
from models.feed import Feed
from models.image import Image, ImageState
from models.imported import Imported, Kind
from tests import ancestor
from tests.conftest import bearer, empty_bucket, keys_in, open_s3, user_maker
from tests.moved import Mover, asked, looked_into, miscounted, new_board, rows_of
from tests.pictures import annotated_png, photo
from tests.test_cli import COMMAND, Board

FEEDS = 40


@pytest.fixture
async def old(make_database):
    """An ancestor of forty feeds with an image each, and a comment and a like on each."""
    url = await make_database()
    await ancestor.run(url, ancestor.TABLES)
    for table, row in {
        "users": "n, 'old' || n || '@example.com', '', 'Old ' || n, now()",
        "feeds": "n, 'Title', 'Words', 'old1@example.com', '[\"one.png\"]', now(), now()",
        "comments": "n, 'Words', 'old2@example.com', n, now(), now()",
        "likes": "n, 'old3@example.com', n, NULL",
    }.items():
        await ancestor.run(
            url, f"INSERT INTO {table} SELECT {row} FROM generate_series(1, {FEEDS}) AS n"
        )
    return url


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "one.png").write_bytes(annotated_png(photo(600, 400)))
    return folder


@pytest.fixture
async def new(settings, make_database, tmp_path):
    own = settings.replace(s3_key_prefix=f"imports/{tmp_path.name}")
    return await new_board(own, make_database, tmp_path)


async def test_a_killed_import_goes_on_where_it_ended(old, images, new, tmp_path):
    killed = 0
    while killed < 3:
        before = await _taken(new)
        importing = _start(new.settings, tmp_path, old, images)
        deadline = time.monotonic() + 60
        while await _taken(new) < before + 5:
            assert importing.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        importing.send_signal(signal.SIGKILL)
        importing.communicate()
        killed += 1
    between = await _taken(new)

    await new.ancestor(old, images)

    assert 15 <= between < FEEDS
    assert await rows_of(new.settings) == {
        "users": FEEDS,
        "feeds": FEEDS,
        "comments": FEEDS,
        "feed_likes": FEEDS,
        "comment_likes": 0,
        "follows": 0,
    }
    assert await miscounted(new.settings) == []
    await _assert_each_feed_has_its_image(new)


async def _assert_each_feed_has_its_image(new):
    """And of what the dead ones left there is no object without a row, for the reaper to take."""
    async with looked_into(new.settings) as db:
        attached = select(Image.feed_id, func.count()).where(
            Image.state == ImageState.ATTACHED, Image.original_id.is_(None)
        )
        shown = dict((await db.execute(attached.group_by(Image.feed_id))).all())
        keys = (await db.scalars(select(Image.key))).all()
        kept = set(await db.scalars(select(Image.key).where(Image.state == ImageState.ATTACHED)))
    async with open_s3(new.settings) as s3:
        prefix = f"{new.settings.s3_key_prefix}/"
        objects = {key for key in await keys_in(s3, new.settings) if key.startswith(prefix)}
    assert shown == dict.fromkeys(range(1, FEEDS + 1), 1)
    assert objects <= {prefix + key for key in keys}
    assert {prefix + key for key in kept} <= objects


async def test_an_import_that_is_told_to_stop_says_so_and_can_go_on(old, images, new, tmp_path):
    importing = _start(new.settings, tmp_path, old, images)
    while await _taken(new) < 3:
        assert importing.poll() is None
        await asyncio.sleep(0.02)
    importing.send_signal(signal.SIGINT)

    said, complained = importing.communicate(timeout=30)

    assert importing.returncode == 0
    assert "Stopped." in said
    assert "run this again, and it goes on from here" in complained
    assert "Traceback" not in complained
    await new.ancestor(old, images)
    assert (await rows_of(new.settings))["feeds"] == FEEDS


async def test_two_imports_at_once_are_one_too_many(old, images, new, tmp_path):
    importing = _start(new.settings, tmp_path, old, images)
    while await _taken(new) < 1:
        assert importing.poll() is None
        await asyncio.sleep(0.02)

    with pytest.raises(SettingsError, match="Another import is under way"):
        await new.ancestor(old, images)

    importing.communicate(timeout=60)
    assert (await rows_of(new.settings))["feeds"] == FEEDS


async def test_others_post_and_like_while_a_board_moves_in(old, images, new):
    async with asked(new.settings) as client:
        users = [await user_maker(client)() for _ in range(2)]
        moving = asyncio.create_task(new.ancestor(old, images))
        posted, liked, refused = [], 0, []
        while not moving.done():
            form = {"title": "Live", "content": "Words"}
            made = await client.post("/api/feed/create", data=form, headers=bearer(users[0]))
            refused += [] if made.status_code == 200 else [made.text]
            posted.append(made.json().get("id"))
            for feed_id in (posted[-1], 1):
                like = await client.put(f"/api/like/feed/{feed_id}", headers=bearer(users[1]))
                refused += [] if like.status_code in {200, 404} else [like.text]
                liked += like.status_code == 200
            comment = {"feed_id": 2, "content": "Live"}
            said = await client.post("/api/comment/create", json=comment, headers=bearer(users[1]))
            refused += [] if said.status_code in {200, 404} else [said.text]
        await moving

    assert refused == []
    assert len(posted) > 3
    # Once it had begun, old numbers went to old feeds alone.
    early = [feed_id for feed_id in posted if feed_id <= FEEDS]
    assert early == list(range(1, len(early) + 1)) == posted[: len(early)]
    assert await miscounted(new.settings) == []
    assert (await rows_of(new.settings))["feeds"] == FEEDS + len(posted)


async def test_an_author_who_leaves_meanwhile_is_not_brought_back(old, images, new):
    await ancestor.run(old, "UPDATE users SET password = $1 WHERE id = 1", ancestor.hashed())
    await new.ancestor(old, images)
    async with asked(new.settings) as client:
        account = {"email": "old1@example.com", "password": ancestor.PASSWORD}
        user = (await client.post("/api/auth/login", json=account)).json()
        left = await client.request(
            "DELETE", "/api/mypage", json={"password": ancestor.PASSWORD}, headers=bearer(user)
        )
        assert left.status_code == 200, left.text
    await ancestor.run(
        old,
        "INSERT INTO feeds VALUES (99, 'New', 'Words', 'old1@example.com', NULL, now(), now())",
    )

    said = await new.ancestor(old, images)

    assert said["feeds 99"] == ["its author, user 1, is not on this board"]
    rows = await rows_of(new.settings)
    assert (rows["users"], rows["feeds"], rows["comments"]) == (FEEDS - 1, 0, 0)


async def test_a_store_that_fails_amid_it_is_a_sentence_and_the_next_run_goes_on(
    old, images, new, store, tmp_path
):
    doomed = Mover(new.settings.replace(s3_bucket=f"{store['s3_bucket']}-doomed"), tmp_path)
    await prepare(doomed.settings)
    moving = asyncio.create_task(doomed.ancestor(old, images))
    while await _taken(new) < 3:
        await asyncio.sleep(0.02)
    gone = False
    while not gone:
        with contextlib.suppress(ClientError):  # Something was put into it meanwhile.
            await empty_bucket(store | {"s3_bucket": doomed.settings.s3_bucket}, remove=True)
            gone = True

    with pytest.raises(SettingsError, match=r"the image store is at fault .*NoSuchBucket"):
        await moving

    assert 3 <= await _taken(new) < FEEDS
    await prepare(doomed.settings)
    await doomed.ancestor(old, images)
    assert (await rows_of(new.settings))["feeds"] == FEEDS
    await empty_bucket(store | {"s3_bucket": doomed.settings.s3_bucket}, remove=True)


async def _taken(new):
    """How many feeds have been taken; each is written down with its row."""
    async with looked_into(new.settings) as db:
        feeds = await db.scalar(select(func.count()).select_from(Feed))
        noted = await db.scalar(
            select(func.count()).select_from(Imported).where(Imported.kind == Kind.FEEDS)
        )
    assert noted >= feeds
    return feeds


def _start(settings, folder, old, images):
    """`feedboard import ancestor`, as a process of its own."""
    board = Board.on(folder, settings, S3_KEY_PREFIX=settings.s3_key_prefix)
    return subprocess.Popen(
        [*COMMAND, "import", "ancestor", "--database", old, "--images", str(images)],
        cwd=folder,
        env=board.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
