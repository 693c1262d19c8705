"""Boards that move, for the tests: new ones to move to, and what they say of themselves."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.board_moves import MoveIn
from app.capabilities import prepare
from app.main import create_app
from config.settings import Settings
from models.comment import Comment
from models.feed import Feed
from models.follow import Follow
from models.like import CommentLike, FeedLike
from models.user import User
from tests.conftest import client_of

Remarks = dict[str, list[str]]


class Mover:
    """Moves boards into one of `settings`, as `feedboard import` does."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._file = folder / "report.jsonl"

    async def ancestor(
        self, url: str, images: object, *, zone: str = "UTC", name: str = "ancestor", **how: bool
    ) -> Remarks:
        """Take the ancestor in; gives what was said of each row, under "feeds 17"."""
        move = self._move(name, **how)
        await move.ancestor(self.settings, url, images=str(images), zone=zone)
        return self.remarks()

    async def folder(self, where: object, *, name: str = "folder", **how: bool) -> Remarks:
        await self._move(name, **how).folder(self.settings, str(where))
        return self.remarks()

    def remarks(self) -> Remarks:
        said: Remarks = {}
        for line in self._file.read_text().splitlines():
            remark = json.loads(line)
            said.setdefault(f"{remark['kind']} {remark['id']}", []).append(remark["why"])
        return said

    def _move(self, name: str, *, dry_run: bool = False, strict: bool = False) -> MoveIn:
        return MoveIn(name, dry_run=dry_run, strict=strict, report=self._file)


async def new_board(
    settings: Settings, make_database: Callable[[], Awaitable[str]], folder: Path
) -> Mover:
    """An empty board of its own, to move to; what is said of it is kept in the folder."""
    board = settings.replace(database_url=await make_database())
    await prepare(board)
    return Mover(board, folder)


@asynccontextmanager
async def asked(settings: Settings) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the service on these settings."""
    app = create_app(settings)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


@asynccontextmanager
async def looked_into(settings: Settings) -> AsyncGenerator[AsyncConnection]:
    engine = create_async_engine(settings.database_url or "")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def rows_of(settings: Settings) -> dict[str, int]:
    """How many rows there are in each table that an import fills."""
    tables = (User, Feed, Comment, FeedLike, CommentLike, Follow)
    async with looked_into(settings) as db:
        return {
            table.__tablename__: await db.scalar(select(func.count()).select_from(table)) or 0
            for table in tables
        }


async def miscounted(settings: Settings) -> list[Any]:
    """Each thing whose counts are not those of the rows that they count."""
    kept = Comment.deleted_dt.is_(None)
    counts = {
        (Feed, Feed.like_count): (FeedLike.feed_id,),
        (Feed, Feed.comment_count): (Comment.feed_id, kept),
        (Comment, Comment.like_count): (CommentLike.comment_id,),
        (User, User.follower_count): (Follow.followed_id,),
        (User, User.following_count): (Follow.follower_id,),
    }
    wrong = []
    async with looked_into(settings) as db:
        for (table, column), (id_, *where) in counts.items():
            rows = select(func.count()).where(id_ == table.id, *where).scalar_subquery()
            found = await db.execute(select(table.id, column, rows).where(column != rows))
            wrong += [(str(column), *row) for row in found]
    return wrong
