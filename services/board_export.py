"""Moving out: the whole board as files of JSON Lines, and the images as they are kept.

All rows are read in one transaction, so that they are of one moment, and none stays in memory for
long. No image that they name is deleted meanwhile, as with a backup (`services.holds`).
`export.json` is written last: an export without it was broken off.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import obstore
from obstore.store import ObjectStore
from pydantic_core import to_json
from sqlalchemy import (
    JSON,
    BigInteger,
    CompoundSelect,
    Row,
    Select,
    String,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.comment import Comment
from models.feed import Feed
from models.follow import Follow
from models.image import Image, ImageState
from models.imported import Kind
from models.like import CommentLike, FeedLike
from models.user import User
from services.access import COMMENT_KEPT, FEED_KEPT, is_here
from services.holds import hold
from services.several import each

FORMAT, VERSION, MANIFEST = "feedboard-board", 1, "export.json"
# Rows that are in memory at a time, and images that are copied at a time.
_ROWS, _COPIES = 200, 8
Advance = Callable[[str, int], object]
_Statement = Select[*tuple[Any, ...]] | CompoundSelect[*tuple[Any, ...]]


class NotEmpty(Exception):
    """There is something already where the export is to lie."""


def file_of(kind: str) -> str:
    """The file of an export that holds the records of a kind."""
    return f"{kind}.jsonl"


async def survey(engine: AsyncEngine) -> dict[str, int]:
    """How many lines each file will have, and how many images there are, as it looks now."""
    statements = {file_of(kind): statement for kind, statement in _STATEMENTS.items()}
    counts = {}
    async with engine.connect() as connection:
        for name, statement in (statements | {"images": _IMAGES}).items():
            counted = select(func.count()).select_from(statement.order_by(None).subquery())
            counts[name] = await connection.scalar(counted) or 0
    return counts


async def export(
    engine: AsyncEngine, board: ObjectStore, place: ObjectStore, advance: Advance
) -> dict[str, Any]:
    """Write all of the board into a place that is empty; gives what `export.json` says.

    Raises NotEmpty, SettingsError while a backup is made, and what database and stores raise.
    """
    async for found in obstore.list(place, chunk_size=1):
        if found:
            raise NotEmpty
    snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    async with hold(engine) as held, engine.connect() as connection:
        await connection.execution_options(**snapshot)
        async with connection.begin():
            files = {
                file_of(kind): await _write(connection, place, file_of(kind), statement, advance)
                for kind, statement in _STATEMENTS.items()
            }
            images = await _copy_all(connection, board, place, advance)
        await held.confirm()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "create_dt": datetime.now(UTC),
        "files": files,
        **images,
    }
    await obstore.put_async(place, MANIFEST, to_json(manifest, indent=2) + b"\n")
    return manifest


async def _write(
    connection: AsyncConnection,
    place: ObjectStore,
    name: str,
    statement: _Statement,
    advance: Advance,
) -> dict[str, Any]:
    """Write a file of rows, one a line; gives what there is of it."""
    digest, size, records = sha256(), 0, 0
    async with obstore.open_writer_async(place, name) as file:
        async for rows in _streamed(connection, statement):
            lines = b"".join(to_json(dict(row._mapping)) + b"\n" for row in rows)
            digest.update(lines)
            size, records = size + len(lines), records + len(rows)
            await file.write(lines)
            advance(name, len(rows))
    return {"records": records, "bytes": size, "sha256": digest.hexdigest()}


async def _copy_all(
    connection: AsyncConnection, board: ObjectStore, place: ObjectStore, advance: Advance
) -> dict[str, Any]:
    """Copy the images; gives how many, and those that are not in the bucket."""
    copied, missing = 0, []

    async def copy(image: Row[str, str]) -> None:
        nonlocal copied
        try:
            await _copy(board, image.key, place, image.file)
        except FileNotFoundError:
            missing.append(image.file)
        else:
            copied += 1
        advance("images", 1)

    async for images in _streamed(connection, _IMAGES):
        await each(copy, images, at_once=_COPIES)
    return {"images": copied, "missing_images": missing}


async def _copy(board: ObjectStore, key: str, place: ObjectStore, file: str) -> None:
    found = await obstore.get_async(board, key)
    async with obstore.open_writer_async(place, file) as copy:
        async for chunk in found.stream():
            await copy.write(chunk)


async def _streamed(
    connection: AsyncConnection, statement: _Statement
) -> AsyncGenerator[Sequence[Row[*tuple[Any, ...]]]]:
    """Rows, by a cursor of the server's, some at a time."""
    async with connection.stream(statement.execution_options(yield_per=_ROWS)) as result:
        async for rows in result.partitions():
            yield rows


_FILE = (
    literal("images/")
    .concat(cast(Image.id, String))
    .concat(func.substring(Image.key, r"\.[a-z0-9]+$"))
)
# An image as a record names it.
_SHOWN = func.json_build_object(
    literal("file", String), _FILE, literal("alt", String), Image.alt, type_=JSON
)
_ORIGINAL = Image.original_id.is_(None)
_OF_FEED = (
    select(
        func.coalesce(
            func.json_agg(aggregate_order_by(_SHOWN, Image.position)),
            text("'[]'::json"),
            type_=JSON,
        )
    )
    .where(Image.feed_id == Feed.id, _ORIGINAL)
    .correlate(Feed)
    .scalar_subquery()
)
_IMAGES = (
    select(Image.key, _FILE.label("file"))
    .outerjoin(Feed, Feed.id == Image.feed_id)
    .where(_ORIGINAL, Image.state == ImageState.ATTACHED, is_here(Image.owner_id))
    .where(or_(Image.feed_id.is_(None), FEED_KEPT))
    .order_by(Image.id)
)
_NONE = cast(null(), BigInteger)
_STATEMENTS: dict[Kind, _Statement] = {
    Kind.USERS: select(
        User.id,
        User.email,
        User.nickname,
        User.password_hash,
        User.bio,
        User.is_admin,
        User.verified_dt,
        User.create_dt,
        User.update_dt,
    )
    .where(User.leaving_dt.is_(None))
    .order_by(User.id),
    Kind.AVATARS: select(Image.avatar_of.label("user_id"), _SHOWN.label("image"))
    .where(_ORIGINAL, Image.avatar_of.is_not(None), is_here(Image.avatar_of))
    .order_by(Image.avatar_of),
    Kind.FEEDS: select(
        Feed.id,
        Feed.author_id,
        Feed.title,
        Feed.content,
        _OF_FEED.label("images"),
        Feed.create_dt,
        Feed.update_dt,
    )
    .where(FEED_KEPT)
    .order_by(Feed.id),
    # Of what is deleted the place alone, where it has replies.
    Kind.COMMENTS: select(
        Comment.id,
        Comment.feed_id,
        case((COMMENT_KEPT, Comment.author_id)).label("author_id"),
        case((COMMENT_KEPT, Comment.content)).label("content"),
        Comment.parent_id,
        Comment.create_dt,
        Comment.update_dt,
    )
    .join(Feed, Feed.id == Comment.feed_id)
    .where(FEED_KEPT, or_(COMMENT_KEPT, Comment.reply_count > 0))
    .order_by(Comment.id),
    Kind.LIKES: union_all(
        select(
            FeedLike.user_id,
            FeedLike.feed_id,
            _NONE.label("comment_id"),
            FeedLike.create_dt,
        )
        .join(Feed, Feed.id == FeedLike.feed_id)
        .where(FEED_KEPT, is_here(FeedLike.user_id)),
        select(
            CommentLike.user_id,
            _NONE.label("feed_id"),
            CommentLike.comment_id,
            CommentLike.create_dt,
        )
        .join(Comment, Comment.id == CommentLike.comment_id)
        .join(Feed, Feed.id == Comment.feed_id)
        .where(FEED_KEPT, COMMENT_KEPT, is_here(CommentLike.user_id)),
    ).order_by("feed_id", "comment_id", "user_id"),
    Kind.FOLLOWS: select(Follow.follower_id, Follow.followed_id, Follow.create_dt)
    .where(is_here(Follow.follower_id), is_here(Follow.followed_id))
    .order_by(Follow.follower_id, Follow.followed_id),
}
