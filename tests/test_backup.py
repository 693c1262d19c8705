"""`feedboard backup`: what is in it, and what happens to the board meanwhile."""

import os
import subprocess

import httpx
import pytest
from sqlalchemy import text

from config.db import open_engine
from config.dumps import find_programs
from config.s3 import open_s3, require_bucket
from config.settings import SettingsError
from services.holds import hold
from tests.backup_parts import add_objects, backed_up, faults_of, fill, objects_in, restored
from tests.boards import JPEG, PNG, Author, Traffic, answers_of, open_boards, until
from tests.conftest import PASSWORD, files, keys_in, make_settings, to_anybody
from tests.test_cli import COMMAND


@pytest.fixture
async def make_board(make_database, store, settings):
    async with open_boards(make_database, store) as make:
        yield make


async def test_a_board_that_was_destroyed_is_there_again(make_board, tmp_path):
    """Others write and delete while it is backed up, and none of that breaks what is in it."""
    board, place = await (await make_board()).started(), str(tmp_path / "backup")
    async with httpx.AsyncClient() as client:
        ada, paths = await fill(board, client)
        waiting = (await ada.send("POST", "/image/upload", files=files("images", JPEG)))[0]
        before = await answers_of(board, paths)
        writers = [await Author.sign_up(board, client) for _ in range(3)]
        async with Traffic(writers).flowing() as traffic:
            await traffic.moves()
            kept, deleted = list(traffic.kept), traffic.deleted
            assert "images" in await board.ran("backup", place)
            assert traffic.deleted > deleted
            await traffic.moves()
        await board.stopped()

        again = await make_board()
        said = await again.ran("restore", place)
        assert "is restored" in said
        assert "nothing is wrong" in await again.ran("images", "fsck", "--deep")
        await again.started()

        assert await answers_of(again, paths) == before
        await answers_of(again, ["/api/feed/list?limit=100"])
        await answers_of(again, [f"/api/feed/read/{feed['id']}" for feed in kept])
        form = {"title": "T", "content": "C", "image_ids": waiting["id"]}
        posted = await ada.send("POST", "/feed/create", data=form)
        assert posted["image_urls"] == [waiting["url"]], "sessions and uploads live on"


async def test_nothing_that_a_backup_names_is_deleted_before_it_was_copied(make_board, tmp_path):
    board = await (await make_board()).started()
    async with httpx.AsyncClient() as client:
        ada = await Author.sign_up(board, client)
        feeds = [await ada.post(JPEG) for _ in range(2)]
        waiting = (await ada.send("POST", "/image/upload", files=files("images", JPEG)))[0]
        there = await objects_in(board)

        async def delete():
            await ada.delete(feeds[0])
            await ada.send("DELETE", f"/image/{waiting['id']}")
            await ada.send("DELETE", "/mypage", json={"password": PASSWORD})
            await board.ran("images", "reap")
            await board.ran("images", "fsck", "--repair", "--force")
            assert await objects_in(board) == there

        made = await backed_up(board, tmp_path, delete)

        assert (made.objects, made.missing) == (len(there), 0)
        await board.ran("images", "reap")
        assert await objects_in(board) == set(), "they go when the backup has come to its end"
        again = await make_board()
        await restored(again, tmp_path)
        assert await objects_in(again) == there


async def test_a_backup_that_lost_its_hold_is_none(make_board, tmp_path):
    board = await make_board()
    await add_objects(board, 2)
    end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE mode = 'ExclusiveLock' AND "

    async def cut_off():
        async with open_engine(board.settings) as engine, engine.connect() as connection:
            ours = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE "
            await connection.execute(text(f"{end}{ours}datname = current_database())"))

    with pytest.raises(SettingsError, match="hold on the images"):
        await backed_up(board, tmp_path, cut_off)

    assert not list(tmp_path.glob("backups/*/manifest.json"))


async def test_there_is_one_backup_at_a_time(make_board, tmp_path):
    board = await make_board()
    await add_objects(board, 1)
    async with open_engine(board.settings, patience=None) as engine, hold(engine):
        assert "under way" in await board.ran("backup", str(tmp_path), code=1)
    await backed_up(board, tmp_path)


async def test_an_interrupted_backup_goes_on_where_it_was(make_board, tmp_path):
    board, place = await make_board(), tmp_path / "backup"
    await add_objects(board, 600)
    process = subprocess.Popen(
        [*COMMAND, "backup", str(place)], cwd=board.folder, env=board.environment
    )
    objects = place / "objects" / "images"
    await until(lambda: objects.is_dir() and len(os.listdir(objects)) > 50, "nothing was copied")
    process.kill()
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in objects.glob("*.png")}
    assert len(there) < 600
    assert not list(place.glob("backups/*/manifest.json"))

    said = await board.ran("backup", str(place))

    assert f"600 images ({600 * 33 / 1000} kB), of which {600 - len(there)} were new" in said
    assert there.items() <= {p.name: p.stat().st_mtime_ns for p in objects.glob("*.png")}.items()
    assert len(list(place.glob("backups/*"))) == 1, "of the unfinished one nothing is left"


async def test_the_lists_of_an_unfinished_backup_are_believed(make_board, tmp_path):
    """What was noted down is not even read again, but for what has gone from the place since."""
    board, place = await make_board(), tmp_path / "backup"
    await add_objects(board, 20)
    await backed_up(board, place)
    next(place.glob("backups/*/manifest.json")).unlink()
    gone, kept = sorted((place / "objects/images").iterdir())[:2]
    gone.unlink()
    kept.write_bytes(kept.read_bytes().swapcase())

    assert "of which 1 were new" in await board.ran("backup", str(place))

    assert await faults_of(board, place) == [f"objects/images/{kept.name} is damaged."]


async def test_a_second_backup_copies_what_is_new_and_some_can_be_thinned_out(make_board, tmp_path):
    board, place = await (await make_board()).started(), tmp_path / "backup"
    async with httpx.AsyncClient() as client:
        ada = await Author.sign_up(board, client)
        first = await ada.post(PNG)
        await backed_up(board, place)
        there = await objects_in(board)
        await ada.delete(first)
        second = await ada.post(PNG)

        said = await board.ran("backup", str(place))
        new = await objects_in(board)
        assert f"of which {len(new)} were new" in said
        assert {p.name for p in (place / "objects/images").iterdir()} == names(there | new)

        older = min(p.name for p in (place / "backups").iterdir())
        for name in (older, max(p.name for p in (place / "backups").iterdir())):
            assert await faults_of(board, place, name) == []
        assert "of which 0 were new" in await board.ran("backup", str(place), "--keep", "2")
        assert {p.name for p in (place / "objects/images").iterdir()} == names(new)
        assert len(list((place / "backups").iterdir())) == 2
        nowhere = await board.ran("restore", str(place), "--verify", "--backup", older, code=1)
        assert f"no backup '{older}'" in nowhere

        again = await make_board()
        await restored(again, place)
        await board.stopped()
        await again.started()
        shown = await answers_of(again, [f"/api/feed/read/{second['id']}"])
        assert shown[f"/api/feed/read/{second['id']}"] == to_anybody(second)


def names(keys):
    return {key.removeprefix("images/") for key in keys}


async def test_a_backup_lies_in_a_bucket_of_another_store(make_board, seaweedfs):
    board, again = await make_board(), await make_board()
    other = {f"OTHER_{name.upper()}": value for name, value in seaweedfs.items()}
    elsewhere = make_settings(**seaweedfs, s3_bucket="backups-of-boards")
    async with open_s3(elsewhere) as s3:
        await require_bucket(s3, elsewhere)
    await add_objects(board, 30)

    for _ in range(2):
        await board.ran("backup", "s3://backups-of-boards/one/two", "--keep", "1", **other)
    said = await again.ran("restore", "s3://backups-of-boards/one/two", "--verify", **other)
    await again.ran("restore", "s3://backups-of-boards/one/two", **other)

    assert "whole" in said
    assert await objects_in(again) == await objects_in(board)
    assert "nothing is wrong" in await again.ran("images", "fsck", "--deep")
    async with open_s3(elsewhere) as s3:
        kept = {key for key in await keys_in(s3, elsewhere) if key.endswith("manifest.json")}
    assert len(kept) == 1


async def test_images_that_are_missing_on_the_board_are_told_and_the_rest_is_backed_up(
    make_board, tmp_path
):
    board, again = await make_board(), await make_board()
    await add_objects(board, 3)
    async with open_s3(board.settings) as s3:
        key = "images/0000000000000000000001.png"
        await s3.delete_object(Bucket=board.store["s3_bucket"], Key=key)

    said = await board.ran("backup", str(tmp_path), code=1)
    assert "1 of the images are missing in the bucket" in said
    assert key in said
    assert await faults_of(board, tmp_path) == [
        f"objects/{key} was missing in the bucket already when the backup was made."
    ]
    await restored(again, tmp_path)
    assert f"{key}, which is not in the bucket" in await again.ran("images", "fsck", code=1)


async def test_programs_reach_the_database_as_the_service_does_and_show_no_password():
    url = "postgresql://ada:se%20cret@db.example.com:6543/board?ssl=require"
    programs = await find_programs(make_settings(database_url=url))

    assert programs.environment == {
        "PGHOST": "db.example.com",
        "PGPORT": "6543",
        "PGUSER": "ada",
        "PGPASSWORD": "se cret",
        "PGDATABASE": "board",
        "PGSSLMODE": "require",
    }
    by_socket = make_settings(database_url="postgresql://ada@/board?host=/run/postgres&port=5433")
    assert (await find_programs(by_socket)).environment["PGHOST"] == "/run/postgres"
    with pytest.raises(SettingsError, match="PostgreSQL 999 are needed"):
        await find_programs(by_socket, server=999)
