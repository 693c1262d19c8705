"""Feeds: what happens when one is written, read, listed, changed or deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Row,
    Select,
    any_,
    bindparam,
    func,
    insert,
    select,
)
from sqlalchemy import delete as delete_
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, Message
from models.feed import Feed, FeedRead, ListQuery, SortBy
from models.image import Image, ImageRead
from models.like import FeedLike
from models.user import User
from services import history, idempotency, ledger, versions
from services.access import FEED_KEPT, require_deletable, require_here, require_own
from services.cursors import Bound, Cursor, Page, following, keyset
from services.errors import FeedNotFound, InvalidInput
from services.images import WITH_FEED, shown_with_feed
from services.ledger import Upload
from services.readers import Reader
from services.store import ImageStore
from services.versions import Expected

# Which of these readers like a feed.
_LIKED_BY = func.array(
    select(FeedLike.user_id)
    .where(
        FeedLike.feed_id == Feed.id,
        FeedLike.user_id == any_(bindparam("reader_ids", type_=ARRAY(BigInteger))),
    )
    .correlate(Feed)
    .scalar_subquery(),
    type_=ARRAY(BigInteger),
)
# One statement shows a feed or a page of them, however many images they have.
SHOWN = (
    select(
        Feed.id,
        Feed.title,
        Feed.content,
        Feed.author_id,
        User.email.label("author_email"),
        User.nickname.label("author_nickname"),
        WITH_FEED.label("images"),
        Feed.like_count,
        Feed.comment_count,
        Feed.create_dt,
        Feed.update_dt,
    )
    .join(User, User.id == Feed.author_id)
    .where(FEED_KEPT)
)
SHOWN_TO_READERS = SHOWN.add_columns(_LIKED_BY.label("liked_by"))
_IMAGES = TypeAdapter(list[ImageRead])
# Built once, and past the unit of work, which has nothing to find out about one new row.
_NEW = (
    insert(Feed)
    .values({name: bindparam(name) for name in ("title", "content", "author_id")})
    .returning(Feed.id)
    .execution_options(dml_strategy="raw")
)


async def create(
    db: AsyncSession,
    images: ImageStore,
    author: User,
    reader: Reader,
    *,
    title: str,
    content: str,
    image_ids: Sequence[int] = (),
    uploads: Sequence[Upload],
) -> FeedRead:
    """Post a feed with its images, all or nothing: those uploaded before, then those given now.

    Raises InvalidInput for images that are not the author's and pending, or too many,
    NotAuthenticated for an author who has left meanwhile, and what `ledger.stored` does.
    """
    _check_count(images, len(image_ids) + len(uploads), pointer="/images")
    async with db.begin():
        # Asked before the work of storing images, and once more, under a lock, after it.
        await _ordered(db, author, [], image_ids)
    async with ledger.stored(db, images, author, uploads) as rows, db.begin():
        await require_here(db, author)
        earlier = await _ordered(db, author, [], image_ids)
        words = {"title": title, "content": content, "author_id": author.id}
        feed_id = (await db.execute(_NEW, words)).scalar_one()
        await ledger.attach(db, [*earlier, *rows], feed_id=feed_id)
        return await idempotency.keep(db, await _shown(db, images, reader, feed_id))


async def read(db: AsyncSession, images: ImageStore, reader: Reader, feed_id: int) -> FeedRead:
    """One feed; raises FeedNotFound."""
    async with db.begin():
        return await _shown(db, images, reader, feed_id)


async def page(
    db: AsyncSession, images: ImageStore, reader: Reader, query: ListQuery, *of: ColumnElement[bool]
) -> Page[FeedRead]:
    """A page of all feeds, or `of` some; raises InvalidInput for a cursor that does not fit."""
    cursor, sort_by = start(query)
    found = page_of(SHOWN_TO_READERS, sort_by, after=cursor is not None).where(*of)
    async with db.begin():
        # One more than asked for says whether there is a next page, without counting.
        asked = {"page_size": query.limit + 1} | (cursor.values() if cursor else {})
        shown = found.offset(query.skip or None)
        rows = (await db.execute(shown, shown_to(images, reader) | asked)).all()
        counted = select(func.count()).select_from(Feed).where(FEED_KEPT, *of)
        total = await db.scalar(counted) if query.total else None
    items = [_read(reader, row) for row in rows[: query.limit]]
    time = "update_dt" if sort_by.startswith("update") else "create_dt"
    return Page(items, following(rows, query.limit, sort_by=sort_by, time=time), total)


def start(query: ListQuery) -> tuple[Cursor | None, SortBy]:
    """Where a page starts, and its order; raises InvalidInput for a cursor that does not fit."""
    cursor = Cursor.decode(query.cursor) if query.cursor else None
    if cursor and query.skip:
        raise InvalidInput("Give either cursor or skip, not both.", pointer="/skip")
    if cursor and query.sort_by not in {None, cursor.sort_by}:
        raise InvalidInput(
            f"The cursor is of a list sorted by {cursor.sort_by}; leave sort_by out.",
            pointer="/sort_by",
        )
    return cursor, cursor.sort_by if cursor else query.sort_by or SortBy.CREATE_DT_DESC


@cache
def page_of(
    shown: Select[*tuple[Any, ...]], sort_by: SortBy, *, after: bool
) -> Select[*tuple[Any, ...]]:
    """The statement of a page of `page_size` feeds, which may start after a cursor's feed."""
    time = Feed.update_dt if sort_by.startswith("update") else Feed.create_dt
    cursor = Bound() if after else None
    statement = keyset(shown, time, Feed.id, cursor, descending=sort_by.endswith("desc"))
    return statement.limit(bindparam("page_size", type_=Integer))


async def update(
    db: AsyncSession,
    images: ImageStore,
    editor: User,
    reader: Reader,
    feed_id: int,
    *,
    title: str | None,
    content: str | None,
    remove_urls: Sequence[str],
    image_ids: Sequence[int] = (),
    uploads: Sequence[Upload],
    expected: Expected = None,
) -> FeedRead:
    """Change what is given (None is unchanged), all or nothing.

    `image_ids` is the whole new order: the feed's own that are not in it are removed, pending ones
    of the editor are added; uploads come behind. Raises FeedNotFound, Forbidden, InvalidInput when
    an image is not one to remove or to add or the feed would have too many, PreconditionFailed, and
    what `ledger.stored` does.
    """
    change = _Change(remove_urls, image_ids, len(uploads), expected)
    async with db.begin():
        # Asked before the work of storing images, and once more, under a lock, after it.
        await _changing(db, images, editor, feed_id, change)
    async with ledger.stored(db, images, editor, uploads) as rows, db.begin():
        feed, kept, removed = await _changing(db, images, editor, feed_id, change)
        changes = bool(rows or removed or image_ids or title is not None or content is not None)
        if changes:
            await history.record(db, feed_id)
        discarded = await ledger.condemn(db, removed)
        if rows or removed or image_ids:
            await ledger.attach(db, [*kept, *rows], feed_id=feed_id)
        feed.title = feed.title if title is None else title
        feed.content = feed.content if content is None else content
        feed.update_dt = NOW if changes else feed.update_dt
        await db.flush()
        changed = await idempotency.keep(db, await _shown(db, images, reader, feed_id))
    await ledger.discard(db, images, discarded)
    return changed


async def delete(
    db: AsyncSession,
    images: ImageStore,
    editor: User,
    feed_id: int,
    *,
    restorable: timedelta,
    expected: Expected = None,
) -> Message:
    """Delete a feed and its images; for a while its author can bring them back.

    What an administrator deletes of others is gone at once. Raises FeedNotFound, Forbidden and
    PreconditionFailed, never anything for S3's sake.
    """
    async with db.begin():
        feed = await _locked(db, feed_id)
        require_deletable(editor, feed.author_id)
        await _require(db, images, editor, feed_id, expected)
        feed.deleted_dt = NOW
        await db.flush()
        kept = restorable and feed.author_id == editor.id
        discarded = [] if kept else await remove(db, [feed.id])
        deleted = await idempotency.keep(db, Message(message="Feed Deleted"))
    await ledger.discard(db, images, discarded)
    return deleted


async def restore(
    db: AsyncSession,
    images: ImageStore,
    editor: User,
    reader: Reader,
    feed_id: int,
    *,
    restorable: timedelta,
) -> FeedRead:
    """Bring a deleted feed back; raises FeedNotFound when it is too late, and Forbidden."""
    since = Feed.deleted_dt > NOW - restorable
    async with db.begin():
        feed = await db.scalar(
            select(Feed).where(Feed.id == feed_id, since).with_for_update(key_share=True)
        )
        if feed is None:
            raise FeedNotFound
        require_own(editor, feed.author_id)
        feed.deleted_dt = None
        await db.flush()
        return await idempotency.keep(db, await _shown(db, images, reader, feed_id))


async def purge(db: AsyncSession, *, restorable: timedelta, batch: int = 100) -> int:
    """Remove feeds that cannot be restored any more; gives how many. Their images are condemned."""
    over = (
        select(Feed)
        .where(Feed.deleted_dt <= NOW - restorable)
        .order_by(Feed.deleted_dt)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    async with db.begin():
        feeds = (await db.scalars(over)).all()
        await remove(db, [feed.id for feed in feeds])
    return len(feeds)


async def remove(db: AsyncSession, feed_ids: Sequence[int]) -> Sequence[str]:
    """Delete feeds for good, inside the transaction that locked them; gives the keys to discard."""
    shown = select(Image).where(Image.feed_id.in_(feed_ids), Image.original_id.is_(None))
    discarded = await ledger.condemn(db, (await db.scalars(shown)).all())
    await db.execute(delete_(Feed).where(Feed.id.in_(feed_ids)))
    return discarded


async def _shown(db: AsyncSession, images: ImageStore, reader: Reader, feed_id: int) -> FeedRead:
    row = (await db.execute(_ONE, shown_to(images, reader) | {"feed_id": feed_id})).one_or_none()
    if row is None:
        raise FeedNotFound
    return _read(reader, row)


_ONE = SHOWN_TO_READERS.where(Feed.id == bindparam("feed_id", type_=BigInteger))


def shown_to(images: ImageStore, *readers: Reader) -> dict[str, Any]:
    """What these ask for: where images are, and for whom it is that likes are looked up."""
    ids = [reader.id for reader in readers if reader.id is not None]
    return {"base_url": images.url(""), "reader_ids": ids}


def _read(reader: Reader, row: Row[*tuple[Any, ...]]) -> FeedRead:
    images = _IMAGES.validate_json(shown_with_feed(row.images)[1])
    return FeedRead(
        id=row.id,
        title=row.title,
        content=row.content,
        author_id=row.author_id,
        author_email=reader.email(row.author_email, of=row.author_id),
        author_nickname=row.author_nickname,
        image_urls=[image.url for image in images],
        images=images,
        like_count=row.like_count,
        comment_count=row.comment_count,
        liked=None if reader.id is None else reader.id in row.liked_by,
        create_dt=row.create_dt,
        update_dt=row.update_dt,
    )


async def _locked(db: AsyncSession, feed_id: int) -> Feed:
    """The feed, locked until the transaction ends; raises FeedNotFound."""
    found = select(Feed).where(Feed.id == feed_id, FEED_KEPT).with_for_update()
    feed = await db.scalar(found.execution_options(populate_existing=True))
    if feed is None:
        raise FeedNotFound
    return feed


async def _require(
    db: AsyncSession, images: ImageStore, editor: User, feed_id: int, expected: Expected
) -> None:
    """See that a locked feed is what the editor has seen; raises PreconditionFailed."""
    if expected is not None:
        versions.require(expected, await _shown(db, images, Reader(editor.id), feed_id))


@dataclass(frozen=True)
class _Change:
    """What an update asks of a feed's images; `added` is the number of uploads."""

    remove_urls: Sequence[str]
    image_ids: Sequence[int]
    added: int
    expected: Expected


async def _changing(
    db: AsyncSession, images: ImageStore, editor: User, feed_id: int, change: _Change
) -> tuple[Feed, list[Image], list[Image]]:
    """The feed, locked, the images to keep in their order, and those to remove.

    Raises what makes the change impossible.
    """
    feed = await _locked(db, feed_id)
    require_own(editor, feed.author_id)
    await _require(db, images, editor, feed_id, change.expected)
    shown = await _images(db, feed_id)
    if change.image_ids and change.remove_urls:
        raise InvalidInput(
            "Give either image_ids or target_image_urls, not both.", pointer="/image_ids"
        )
    if change.image_ids:
        kept = await _ordered(db, editor, shown, change.image_ids)
        removed = [image for image in shown if image.id not in change.image_ids]
    else:
        removed = _named(images, shown, change.remove_urls)
        kept = [image for image in shown if image not in removed]
    _check_count(images, len(kept) + change.added, pointer="/new_images")
    return feed, kept, removed


async def _ordered(
    db: AsyncSession, owner: User, shown: Sequence[Image], image_ids: Sequence[int]
) -> list[Image]:
    """Images by id, in this order, out of the feed's own and the owner's pending ones."""
    own = {image.id: image for image in shown}
    known = own | await ledger.pending(db, owner, [i for i in image_ids if i not in own])
    for image_id in image_ids:
        if image_id not in known:
            raise InvalidInput(
                f"{image_id} is neither an image of this feed nor a pending image of yours.",
                pointer="/image_ids",
            )
    if len(set(image_ids)) < len(image_ids):
        raise InvalidInput("An image can be named once only.", pointer="/image_ids")
    return [known[image_id] for image_id in image_ids]


def _check_count(images: ImageStore, count: int, *, pointer: str) -> None:
    if count > images.max_images:
        raise InvalidInput(
            f"A feed has at most {images.max_images} images; this one would have {count}.",
            pointer=pointer,
        )


async def _images(db: AsyncSession, feed_id: int) -> Sequence[Image]:
    shown = (
        select(Image)
        .where(Image.feed_id == feed_id, Image.original_id.is_(None))
        .order_by(Image.position)
    )
    return (await db.scalars(shown)).all()


def _named(images: ImageStore, shown: Sequence[Image], urls: Sequence[str]) -> list[Image]:
    _check_count(images, len(urls), pointer="/target_image_urls")
    by_url = {images.url(image.key): image for image in shown}
    for url in urls:
        if url not in by_url:
            raise InvalidInput(
                f"{url[:200]} is not an image of this feed; give a URL of its image_urls.",
                pointer="/target_image_urls",
            )
    return [by_url[url] for url in dict.fromkeys(urls)]
