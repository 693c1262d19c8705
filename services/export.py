"""Export: everything of a user's, as a ZIP of JSON and images that is sent while it is read.

Rows are read in batches, each in a transaction of its own, so that a slow reader holds none; so the
files are not of one and the same moment. An image that is deleted meanwhile is named in the
manifest. When the store or the database fails, the ZIP stays without its end, and is none.
"""

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from pydantic_core import to_json
from sqlalchemy import BigInteger, Select, any_, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from models.base import NOW
from models.comment import Comment
from models.feed import Feed, FeedRevision
from models.follow import Follow
from models.image import Image, ImageState
from models.like import CommentLike, FeedLike
from models.session import Session
from models.user import User
from services.archive import Archive, Write
from services.errors import ExportRunning, ImageNotFound
from services.store import ImageStore

# Rows that are in memory at a time: of feeds, which may be long, and of all others.
FEW, MANY = 50, 500
By = Sequence[InstrumentedAttribute[Any]]
Statement = Select[*tuple[Any, ...]]
Rows = AsyncIterator[dict[str, Any]]


class Exports:
    """Whose exports are under way in this process: one of each user's at a time."""

    def __init__(self) -> None:
        self._running: set[int] = set()

    @contextmanager
    def turn(self, user_id: int) -> Generator[None]:
        """Let the block be the user's one export; raises ExportRunning."""
        if user_id in self._running:
            raise ExportRunning
        self._running.add(user_id)
        try:
            yield
        finally:
            self._running.remove(user_id)


async def export(
    db: AsyncSession, store: ImageStore, user: User, send: Write, *, restorable: timedelta
) -> None:
    """Send everything of the user's; raises StorageUnavailable and what a database raises."""
    archive = Archive(send)
    await archive.add_text("README.txt", _README)
    await archive.add_text("profile.json", to_json(_profile(user), indent=2).decode())
    counts = {}
    for name, rows in _parts(db, user, restorable).items():
        counts[name] = await archive.add_rows(name, rows)
    missing = await _add_images(db, store, archive, user)
    counts["images.json"] = await archive.add_rows("images.json", _images(db, archive, user))
    manifest = {
        "format": "feedboard-export",
        "version": 1,
        "create_dt": datetime.now(UTC),
        "user_id": user.id,
        "rows": counts,
        "missing_images": missing,
    }
    await archive.add_text("manifest.json", to_json(manifest, indent=2).decode())
    await archive.close()


def _profile(user: User) -> dict[str, Any]:
    told = ("id", "email", "nickname", "bio", "is_admin", "follower_count", "following_count")
    return {name: getattr(user, name) for name in (*told, "create_dt", "update_dt")}


def _parts(db: AsyncSession, user: User, restorable: timedelta) -> dict[str, Rows]:
    """The files of rows; one that is to be exported, too, is named here."""
    kept = (Feed.author_id == user.id, Feed.deleted_dt.is_(None))
    deleted = (Feed.author_id == user.id, Feed.deleted_dt > NOW - restorable)
    # Each in the order of an index.
    newer, later = (Feed.create_dt, Feed.id), (Feed.deleted_dt, Feed.id)
    return {
        "feeds.json": _rows(db, _FEEDS.where(*kept), newer, FEW),
        "feed_history.json": _history(db, select(*newer).where(*kept), newer),
        "deleted_feeds.json": _rows(db, _FEEDS.where(*deleted), later, FEW),
        "deleted_feed_history.json": _history(db, select(*later).where(*deleted), later),
        "comments.json": _rows(
            db,
            _COMMENTS.where(Comment.author_id == user.id, Comment.deleted_dt.is_(None)),
            (Comment.create_dt, Comment.id),
        ),
        "deleted_comments.json": _rows(
            db,
            _COMMENTS.where(
                Comment.author_id == user.id,
                Comment.deleted_dt > NOW - restorable,
                Comment.content != "",
            ),
            (Comment.create_dt, Comment.id),
        ),
        "liked_feeds.json": _rows(
            db,
            select(FeedLike.feed_id, FeedLike.create_dt).where(FeedLike.user_id == user.id),
            (FeedLike.feed_id,),
        ),
        "liked_comments.json": _rows(
            db,
            select(CommentLike.comment_id, CommentLike.create_dt).where(
                CommentLike.user_id == user.id
            ),
            (CommentLike.comment_id,),
        ),
        "sessions.json": _rows(db, _SESSIONS.where(Session.user_id == user.id), (Session.id,)),
        "following.json": _people(db, user, Follow.follower_id, Follow.followed_id),
        "followers.json": _people(db, user, Follow.followed_id, Follow.follower_id),
    }


_SESSIONS = select(
    Session.id,
    Session.device,
    Session.address,
    Session.create_dt,
    Session.last_used_dt,
    Session.expires_dt,
    Session.ended_dt,
)


async def _batches(
    db: AsyncSession, statement: Statement, by: By, size: int
) -> AsyncIterator[Sequence[Any]]:
    """Rows in the order of some of their columns, a batch at a time, from where the last ended."""
    ordered = statement.order_by(*by).limit(size)
    following = ordered
    while True:
        async with db.begin():
            rows = (await db.execute(following)).all()
        if rows:
            yield rows
        if len(rows) < size:
            return
        ended = tuple_(*(getattr(rows[-1], column.key) for column in by))
        following = ordered.where(tuple_(*by) > ended)


async def _rows(db: AsyncSession, statement: Statement, by: By, size: int = MANY) -> Rows:
    async for batch in _batches(db, statement, by, size):
        for row in batch:
            yield dict(row._mapping)


async def _history(db: AsyncSession, of: Statement, by: By) -> Rows:
    """How some feeds were, feed after feed."""
    async for batch in _batches(db, of, by, MANY):
        ids = literal([row.id for row in batch], ARRAY(BigInteger))
        statement = _REVISIONS.where(FeedRevision.feed_id == any_(ids))
        async for row in _rows(db, statement, (FeedRevision.feed_id, FeedRevision.id), FEW):
            yield row


def _people(
    db: AsyncSession,
    user: User,
    mine: InstrumentedAttribute[int],
    other: InstrumentedAttribute[int],
) -> Rows:
    found = (
        select(other, User.nickname, Follow.create_dt)
        .join_from(Follow, User, User.id == other)
        .where(mine == user.id, User.leaving_dt.is_(None))
    )
    return _rows(db, found, (Follow.create_dt, other))


async def _add_images(
    db: AsyncSession, store: ImageStore, archive: Archive, user: User
) -> list[int]:
    """Add the files of images; gives the ids of those that are gone, if they are, by their turn."""
    missing = []
    async for row in _rows(db, _own_images(user), (Image.id,)):
        try:
            image = await store.read(PurePosixPath(row["key"]).name)
        except ImageNotFound:
            missing.append(row["id"])
            continue
        try:
            async with archive.file(_file_name(row), compress=False) as write:
                async for chunk in image.chunks():
                    await write(chunk)
        finally:
            image.close()
    return missing


async def _images(db: AsyncSession, archive: Archive, user: User) -> Rows:
    """The facts of images; `file` is null where the file is not in the archive."""
    async for row in _rows(db, _own_images(user), (Image.id,)):
        name = _file_name(row)
        del row["key"]
        yield row | {"file": name if name in archive else None}


def _own_images(user: User) -> Statement:
    shown = Image.state.in_([ImageState.PENDING, ImageState.ATTACHED])
    return _IMAGES.where(
        Image.owner_id == user.id, Image.original_id.is_(None), shown, Image.stored
    )


def _file_name(row: dict[str, Any]) -> str:
    return f"images/{row['id']}{PurePosixPath(row['key']).suffix}"


_FEEDS = select(
    Feed.id,
    Feed.title,
    Feed.content,
    Feed.like_count,
    Feed.comment_count,
    func.array(
        select(Image.id)
        .where(Image.feed_id == Feed.id, Image.original_id.is_(None))
        .order_by(Image.position)
        .scalar_subquery()
    ).label("image_ids"),
    Feed.create_dt,
    Feed.update_dt,
    Feed.deleted_dt,
)
_REVISIONS = select(
    FeedRevision.id,
    FeedRevision.feed_id,
    FeedRevision.title,
    FeedRevision.content,
    FeedRevision.image_ids,
    FeedRevision.create_dt,
)
_COMMENTS = select(
    Comment.id,
    Comment.feed_id,
    Comment.parent_id,
    Comment.content,
    Comment.like_count,
    Comment.reply_count,
    Comment.create_dt,
    Comment.update_dt,
    Comment.deleted_dt,
)
_IMAGES = select(
    Image.id,
    Image.key,
    Image.feed_id,
    Image.avatar_of.is_not(None).label("avatar"),
    Image.content_type,
    Image.bytes,
    Image.width,
    Image.height,
    Image.alt,
    Image.create_dt,
)
_README = """\
Everything of yours on this board, as it was while this archive was made.

profile.json               your account
feeds.json                 what you posted; image_ids are names of files in images/
feed_history.json          how it was before each change
comments.json              what you wrote below feeds
deleted_*.json             what you deleted and can still restore
liked_*.json               what you like
following.json             whom you follow
followers.json             who follows you
images.json                facts of your images; "file" is null where the file is not in here
images/                    your images, by id
manifest.json              how many rows each file has, and which images were gone
                           before they could be read

Times are UTC. The archive is whole if manifest.json is in it.
"""
