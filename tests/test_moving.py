"""`feedboard images move`: the images go to another bucket, and nobody notices."""

import asyncio
import hashlib
import signal
import subprocess

import httpx
import pytest

from config.db import open_engine, session_factory
from config.places import board_place
from config.s3 import open_s3, require_bucket
from services.backups.moving import Move
from services.several import each
from tests.boards import JPEG, Author, Nobody, Traffic, answers_of, open_boards, until
from tests.conftest import keys_in, make_settings
from tests.pictures import annotated_png
from tests.test_cli import COMMAND

PNG = annotated_png()


@pytest.fixture
async def make_board(make_database, store, settings):
    async with open_boards(make_database, store) as make:
        yield make


def other(store):
    return {f"OTHER_{name.upper()}": value for name, value in store.items()}


def of_store(store):
    return {name.upper(): value for name, value in store.items()}


async def test_a_board_goes_over_to_another_store_while_others_write(make_board, store, seaweedfs):
    """As docs/backup.md says: follow, set, restart, fetch what came in between."""
    old = {name: value for name, value in store.items() if name != "s3_bucket"}
    board = await (await make_board()).started()
    async with httpx.AsyncClient() as client:
        ada = await Author.sign_up(board, client)
        feeds = [await ada.post(JPEG, PNG) for _ in range(3)]
        paths = [f"/api/feed/read/{feed['id']}" for feed in feeds]
        before = await answers_of(board, paths)
        form = await ada.send(
            "POST", "/image/presign", json={"type": "image/png", "bytes": len(PNG)}
        )
        put = await client.post(form["url"], data=form["fields"], files={"file": PNG})
        assert put.is_success
        async with Traffic([await Author.sign_up(board, client) for _ in range(2)]).flowing() as it:
            await it.moves()
            said = board.folder / "move.log"
            with said.open("w") as log:
                following = subprocess.Popen(
                    [*COMMAND, "images", "move", "--to", "s3://new/one/two", "--follow"],
                    cwd=board.folder,
                    env=board.environment | other(seaweedfs),
                    stdout=log,
                    stderr=log,
                )
            try:
                await until(lambda: "To go over" in said.read_text(), "it does not come to an end")
                await it.moves(4)
                await board.stopped()
                new = of_store(seaweedfs) | {"S3_BUCKET": "new", "S3_KEY_PREFIX": "one/two"}
                board.environment |= new
                await board.started()
                await it.moves(2)
            finally:
                following.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(following.wait, 60) == 0, said.read_text()
            fetched = await board.ran(
                "images", "move", "--from", f"s3://{board.store['s3_bucket']}", **other(old)
            )
            await it.moves(2)

        assert "all others were there" in fetched
        text = said.read_text()
        for line in ("S3_BUCKET=new", "S3_KEY_PREFIX=one/two", "S3_SECRET_KEY=(what OTHER_"):
            assert line in text
        assert f"feedboard images move --from s3://{board.store['s3_bucket']}" in text
        assert seaweedfs["s3_secret_key"] not in text
        assert await answers_of(board, paths) == before
        await answers_of(board, [f"/api/feed/read/{feed['id']}" for feed in it.kept])
        done = await ada.send("POST", f"/image/{form['id']}/complete")
        assert (await client.get(done["url"])).status_code == 200
        assert "nothing is wrong" in await board.ran("images", "fsck", "--deep")


async def two_buckets(board, seaweedfs):
    """The board's settings, and those of a bucket of another store."""
    there = make_settings(**seaweedfs, s3_bucket=f"new-{board.store['s3_bucket']}")
    async with open_s3(there) as s3:
        await require_bucket(s3, there)
    return board.settings, there


async def moved(old, new):
    async with open_engine(old) as engine, session_factory(engine)() as db:
        move = Move(db, board_place(old), board_place(new))
        await move.begin(Nobody())
        return await move.settle(Nobody())


async def test_a_move_goes_on_where_it_was_and_mends_what_is_not_the_same(make_board, seaweedfs):
    board = await (await make_board()).started()
    old, new = await two_buckets(board, seaweedfs)
    async with httpx.AsyncClient() as client, open_s3(new) as s3:
        ada = await Author.sign_up(board, client)
        await ada.post(JPEG, PNG, PNG)
        first = await moved(old, new)
        keys = await keys_in(s3, new)
        assert first.copied == len(keys) >= 3

        longer, swapped, gone, *_ = sorted(keys)
        named = {"Bucket": new.s3_bucket}
        found = await (await s3.get_object(**named, Key=swapped))["Body"].read()
        await s3.put_object(**named, Key=swapped, Body=found.swapcase())
        await s3.put_object(**named, Key=longer, Body=b"longer")
        await s3.delete_object(**named, Key=gone)
        again = await moved(old, new)

        assert (again.copied, again.missing) == (3, set())
        assert (await moved(old, new)).copied == 0
        assert await digests(new, keys) == await digests(old, keys)


async def digests(settings, keys):
    place = board_place(settings)

    async def one(key):
        found = await place.get_async(key)
        told = found.attributes["Content-Type"], found.attributes["Cache-Control"]
        return hashlib.sha256(await found.bytes_async()).hexdigest(), told

    return await each(one, sorted(keys))


async def test_what_is_deleted_while_it_is_moved_does_not_live_on(make_board, seaweedfs):
    board = await (await make_board()).started()
    old, new = await two_buckets(board, seaweedfs)
    async with (
        httpx.AsyncClient() as client,
        open_s3(new) as s3,
        open_engine(old) as engine,
        session_factory(engine)() as db,
    ):
        ada = await Author.sign_up(board, client)
        feeds = [await ada.post(PNG), await ada.post(PNG)]
        move = Move(db, board_place(old), board_place(new))
        await move.begin(Nobody())
        there = (await move.settle(Nobody())).copied
        await ada.delete(feeds[0])

        found = await move.settle(Nobody())

        assert (found.copied, found.deleted) == (0, there // 2)
        assert len(await keys_in(s3, new)) == there // 2


async def test_what_neither_bucket_has_is_told(make_board, seaweedfs):
    board = await (await make_board()).started()
    async with httpx.AsyncClient() as client, open_s3(board.settings) as s3:
        await (await Author.sign_up(board, client)).post(PNG)
        key = min(await keys_in(s3, board.settings))
        await s3.delete_object(Bucket=board.store["s3_bucket"], Key=key)

    said = await board.ran("images", "move", "--to", "s3://lost", code=1, **other(seaweedfs))

    assert f"1 are in neither bucket, such as {key}" in said


async def test_a_move_needs_another_bucket(make_board):
    board = await make_board()
    own = f"s3://{board.store['s3_bucket']}"
    for arguments, sentence in [
        (["--to", own], "the board's own bucket already"),
        (["--to", "/tmp/folder"], "names no bucket"),
        (["--to", "s3://a", "--from", "s3://b"], "Name one bucket"),
        ([], "Name one bucket"),
    ]:
        assert sentence in await board.ran("images", "move", *arguments, code=1)
