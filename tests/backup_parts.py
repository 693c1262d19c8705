"""What is backed up and brought back in tests, without a process for each command."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from alembic.command import upgrade
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from config.db import open_engine, session_factory
from config.dumps import Programs, find_programs
from config.places import board_place, open_place
from config.s3 import open_s3, require_bucket
from models.base import NOW
from models.image import Image, ImageState
from services.backups.backup import Backup
from services.backups.layout import Manifest
from services.backups.restore import Restore, verify
from services.several import each
from tests.boards import JPEG, PNG, Author, Nobody, OwnBoard
from tests.conftest import Json, files, keys_in
from tests.test_cli import Board


async def fill(board: Board, client: httpx.AsyncClient) -> tuple[Author, list[str]]:
    """A board with some of everything; gives an author, and where it can be looked at."""
    ada, bob = [await Author.sign_up(board, client) for _ in range(2)]
    feeds = [await ada.post(JPEG, PNG), await bob.post(PNG), await ada.post()]
    on = {"feed_id": feeds[0]["id"], "content": "I was there, too"}
    comment = await bob.send("POST", "/comment/create", json=on)
    await ada.send("POST", "/comment/create", json=on | {"parent_id": comment["id"]})
    await bob.send("PUT", f"/like/feed/{feeds[0]['id']}")
    await bob.send("PUT", f"/follow/{ada.user['id']}")
    face = (await ada.send("POST", "/image/upload", files=files("images", JPEG)))[0]
    await ada.send("PATCH", "/mypage/profile", json={"bio": "Hello", "avatar_id": face["id"]})
    paths = [f"/api/feed/read/{feed['id']}" for feed in feeds]
    paths += [f"/api/comment/feed/{feed['id']}" for feed in feeds]
    paths += [f"/api/user/{author.user['id']}" for author in (ada, bob)]
    return ada, paths


async def add_objects(board: OwnBoard, number: int, revision: str = "head") -> None:
    """A feed with so many small images; rows and objects are written without the service."""
    keys = [f"images/{number:022}.png" for number in range(number)]
    async with open_engine(board.settings) as engine:
        async with engine.begin() as connection:
            await connection.run_sync(lambda it: upgrade(migrations.config(it), revision))
        await _add_rows(engine, keys)
    async with open_s3(board.settings) as s3:
        await require_bucket(s3, board.settings)
    bucket = board_place(board.settings)
    await each(lambda key: bucket.put_async(key, key.encode()), keys)


async def _add_rows(engine: AsyncEngine, keys: list[str]) -> None:
    async with session_factory(engine)() as db, db.begin():
        user = await db.scalar(text(_USER))
        feed = await db.scalar(text(_FEED), {"user": user})
        shown: Json = {
            "state": ImageState.ATTACHED,
            "stored": True,
            "owner_id": user,
            "feed_id": feed,
        }
        shown |= {"content_type": "image/png", "width": 1, "height": 1, "reap_dt": NOW}
        db.add_all(Image(key=key, bytes=len(key), **shown) for key in keys)


_USER = (
    "INSERT INTO users (email, email_key, nickname, nickname_key, password_hash, bio) "
    "VALUES ('z@example.com', 'z', 'Z', 'z', '', '') RETURNING id"
)
_FEED = "INSERT INTO feeds (author_id, title, content) VALUES (:user, 'T', 'C') RETURNING id"


async def objects_in(board: OwnBoard) -> set[str]:
    async with open_s3(board.settings) as s3:
        return await keys_in(s3, board.settings)


@dataclass(frozen=True)
class _Meanwhile(Programs):
    """pg_dump, before which something happens, when the snapshot was taken already."""

    deed: Callable[[], Awaitable[object]]

    async def dump(self, snapshot: str) -> AsyncGenerator[bytes]:
        await self.deed()
        async for piece in super().dump(snapshot):
            yield piece


async def _nothing() -> None:
    """Happens meanwhile."""


async def backed_up(
    board: OwnBoard, folder: Path, deed: Callable[[], Awaitable[object]] = _nothing
) -> Manifest:
    """What `feedboard backup` does; the deed is done between the snapshot and the copies."""
    async with open_engine(board.settings, patience=None) as engine:
        found = await find_programs(board.settings)
        programs = _Meanwhile(found.folder, found.environment, deed)
        place = open_place(str(folder), board.settings, make=True)
        return await Backup(engine, programs, board_place(board.settings), place).make(Nobody())


async def restored(board: OwnBoard, folder: Path) -> Manifest:
    """What `feedboard restore` does."""
    async with open_engine(board.settings, patience=None) as engine:
        async with open_s3(board.settings) as s3:
            await require_bucket(s3, board.settings)
        programs = await find_programs(board.settings)
        place = open_place(str(folder), board.settings)
        restore = Restore(engine, programs, board_place(board.settings), place)
        return await restore.run(None, Nobody())


async def faults_of(board: OwnBoard, folder: Path, name: str | None = None) -> list[str]:
    """What `feedboard restore --verify` says."""
    programs = await find_programs(board.settings)
    place = open_place(str(folder), board.settings)
    return [fault async for fault in verify(place, programs, name, Nobody())]
