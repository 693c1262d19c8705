"""`feedboard restore`: into what, what is looked at, and what is not brought back."""

import os
import shutil

import httpx
import pytest
from sqlalchemy import text

import migrations
from config.db import open_engine
from config.s3 import open_s3, require_bucket
from config.settings import SettingsError
from services.backups.copying import Damaged, PlaceError
from tests.backup_parts import add_objects, backed_up, faults_of, restored
from tests.boards import open_boards
from tests.conftest import own_folder, to_anybody
from tests.test_cli import Board


@pytest.fixture
async def make_board(make_database, store, settings):
    async with open_boards(make_database, store) as make:
        yield make


@pytest.fixture
async def empty_and_full(make_board, tmp_path):
    """An instance with nothing in it, and a backup of another one in a folder."""
    board, again = await make_board(), await make_board()
    await add_objects(board, 10)
    await backed_up(board, tmp_path / "backup")
    async with open_s3(again.settings) as s3:
        await require_bucket(s3, again.settings)
    return again, tmp_path / "backup"


def swap(path):
    path.write_bytes(path.read_bytes().swapcase())


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


FILES = [
    "objects/images/0000000000000000000007.png",
    "backups/*/database.dump",
    "backups/*/objects-000001.jsonl",
    "backups/*/manifest.json",
]


async def test_what_is_broken_is_named_and_nothing_is_restored(empty_and_full):
    board, folder = empty_and_full
    for pattern in FILES:
        path = next(folder.glob(pattern))
        whole, name = path.read_bytes(), str(path.relative_to(folder))
        for damage in (swap, cut, empty, os.unlink):
            damage(path)
            if path.exists() or not name.endswith("manifest.json"):
                faults = await faults_of(board, folder)
                assert len(faults) == 1, (damage, faults)
                assert name in faults[0]
            with pytest.raises((Damaged, SettingsError, *PlaceError)) as refused:
                await restored(board, folder)
            assert name in str(refused.value) or "no backup" in str(refused.value)
            async with open_engine(board.settings) as engine, engine.connect() as connection:
                assert await connection.run_sync(migrations.current) is None
            path.write_bytes(whole)
    assert await faults_of(board, folder) == []


async def test_a_restore_that_was_refused_goes_on_where_it_was(empty_and_full):
    board, folder = empty_and_full
    broken = folder / FILES[0]
    whole = broken.read_bytes()
    swap(broken)
    said = await board.ran("restore", str(folder), "--verify", code=1)
    assert said == f"{FILES[0]} is damaged.\n"
    said = await board.ran("restore", str(folder), code=1)
    assert said.startswith(f"error: {FILES[0]} is damaged.\nThe database was not touched")
    there = await modified(board)
    assert len(there) == 9

    broken.write_bytes(whole)
    await board.ran("restore", str(folder))

    now = await modified(board)
    assert len(now) == 10
    assert there.items() <= now.items(), "what was there is not copied again"
    assert "nothing is wrong" in await board.ran("images", "fsck")


async def modified(board):
    async with open_s3(board.settings) as s3:
        page = await s3.list_objects_v2(Bucket=board.store["s3_bucket"])
    return {entry["Key"]: entry["LastModified"] for entry in page["Contents"]}


async def test_only_an_instance_with_nothing_in_it_is_restored_into(empty_and_full):
    board, folder = empty_and_full
    async with open_s3(board.settings) as s3:
        named = {"Bucket": board.store["s3_bucket"], "Key": "images/somebody-elses-image.png"}
        await s3.put_object(**named, Body=b"x")
        said = await board.ran("restore", str(folder), code=1)
        assert "1 objects in it that this backup does not name" in said
        await s3.delete_object(**named)
    async with open_engine(board.settings) as engine:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE others (id int)"))
        said = await board.ran("restore", str(folder), code=1)
        assert "tables in it that are not a board's (others)" in said
        async with engine.begin() as connection:
            await connection.execute(text("DROP TABLE others"))

    await board.ran("migrate")
    await board.ran("restore", str(folder))

    said = await board.ran("restore", str(folder), code=1)
    assert "has a board in it already" in said
    assert "no folder" in await board.ran("restore", str(folder / "none"), code=1)


async def test_a_backup_of_an_older_schema_is_brought_to_the_newest(make_board, tmp_path):
    board, again = await make_board(), await make_board()
    await add_objects(board, 3, "0011")
    await backed_up(board, tmp_path)

    await restored(again, tmp_path)

    async with open_engine(again.settings) as engine, engine.connect() as connection:
        assert await connection.run_sync(migrations.current) == migrations.newest()
    assert "nothing is wrong" in await again.ran("images", "fsck")


def test_a_board_with_nothing_configured_is_backed_up_while_it_runs(laptop):
    laptop.start()
    token = laptop.sign_up("ada@example.com")
    feed = laptop.post(token)

    made = laptop.run("backup", "backup")
    assert made.returncode == 0, made.stderr
    in_use = laptop.run("restore", "backup")
    assert (in_use.returncode, "is in use by" in in_use.stderr) == (1, True)
    laptop.stop()
    assert "of which 0 were new" in laptop.run("backup", "backup").stdout
    data = laptop.folder / "data"
    secret = (data / "secret-key").read_text()
    shutil.rmtree(data)
    data.mkdir()
    (data / "secret-key").write_text(secret)
    restored = laptop.run("restore", "backup")
    assert restored.returncode == 0, restored.stderr

    laptop.start()
    path = f"{laptop.url}/api/feed/read/{feed['id']}"
    assert httpx.get(path).json() == to_anybody(feed)
    image = httpx.get(feed["image_urls"][0].replace("localhost", "127.0.0.1"))
    assert image.content.startswith(b"\x89PNG")
    mine = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{laptop.url}/api/image/mine", headers=mine).status_code == 200


@pytest.fixture
def laptop():
    with own_folder() as folder:
        board = Board(folder)
        yield board
        if board.process.poll() is None:
            board.stop()
