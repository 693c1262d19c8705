"""Feeds: what happens when one is written, read, listed, changed or deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Row, Select, func, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, TEXT, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW
from models.feed import Feed, FeedRead, ListQuery, SortBy
from models.image import Image
from models.user import User
from services import images as ledger
from services.cursors import Cursor
from services.errors import FeedNotFound, Forbidden, InvalidInput
from services.images import ImageStore, Upload

_KEYS = (
    select(func.array_agg(aggregate_order_by(Image.key, Image.position), type_=ARRAY(TEXT)))
    .where(Image.feed_id == Feed.id)
    .correlate(Feed)
    .scalar_subquery()
)
# One statement shows a feed, or a page of them, however many images they have.
_SHOWN = select(
    Feed.id,
    Feed.title,
    Feed.content,
    User.email.label("author_email"),
    User.nickname.label("author_nickname"),
    _KEYS.label("keys"),
    Feed.create_dt,
    Feed.update_dt,
).join(User, User.id == Feed.author_id)


@dataclass(frozen=True)
class Page:
    """A page of a list; `next` is where the following one starts, `total` only if asked for."""

    feeds: list[FeedRead]
    next: Cursor | None
    total: int | None


async def create(
    db: AsyncSession,
    images: ImageStore,
    author: User,
    *,
    title: str,
    content: str,
    uploads: Sequence[Upload],
) -> FeedRead:
    """Post a feed with its images, all or nothing; raises what `images.stored` does."""
    _check_count(images, len(uploads), pointer="/images")
    async with ledger.stored(db, images, author, uploads) as rows, db.begin():
        feed = Feed(title=title, content=content, author_id=author.id)
        db.add(feed)
        await db.flush()
        await ledger.attach(db, rows, feed_id=feed.id)
        return await _shown(db, images, feed.id)


async def read(db: AsyncSession, images: ImageStore, feed_id: int) -> FeedRead:
    """One feed; raises FeedNotFound."""
    async with db.begin():
        return await _shown(db, images, feed_id)


async def page(db: AsyncSession, images: ImageStore, query: ListQuery) -> Page:
    """A page of all feeds; raises InvalidInput for a cursor that does not fit."""
    statement, sort_by = _page_statement(query)
    async with db.begin():
        # One more than asked for says whether there is a next page, without counting.
        rows = (await db.execute(statement.limit(query.limit + 1))).all()
        total = await db.scalar(select(func.count()).select_from(Feed)) if query.total else None
    feeds = [_feed(images, row) for row in rows[: query.limit]]
    following = None
    if len(rows) > query.limit:
        last = feeds[-1]
        time = last.update_dt if sort_by.startswith("update") else last.create_dt
        following = Cursor(sort_by, time, last.id)
    return Page(feeds, following, total)


async def update(
    db: AsyncSession,
    images: ImageStore,
    editor: User,
    feed_id: int,
    *,
    title: str | None,
    content: str | None,
    remove_urls: Sequence[str],
    uploads: Sequence[Upload],
) -> FeedRead:
    """Change what is given (None is unchanged), all or nothing.

    Raises FeedNotFound, Forbidden, InvalidInput when a URL is not one of this feed's images or
    the feed would have too many, and what `images.stored` does.
    """
    async with db.begin():
        # Asked before the work of storing images, and once more, under a lock, after it.
        await _changing(db, images, editor, feed_id, remove_urls, len(uploads))
    async with ledger.stored(db, images, editor, uploads) as rows, db.begin():
        feed, shown, removed = await _changing(
            db, images, editor, feed_id, remove_urls, len(uploads)
        )
        discarded = await ledger.condemn(db, removed)
        await ledger.attach(
            db, rows, feed_id=feed_id, after=max((i.position for i in shown), default=0)
        )
        feed.title = feed.title if title is None else title
        feed.content = feed.content if content is None else content
        if rows or removed or title is not None or content is not None:
            feed.update_dt = NOW
        await db.flush()
        changed = await _shown(db, images, feed_id)
    await ledger.discard(db, images, discarded)
    return changed


async def delete(db: AsyncSession, images: ImageStore, editor: User, feed_id: int) -> None:
    """Delete a feed and its images; raises FeedNotFound and Forbidden, never for S3's sake."""
    async with db.begin():
        feed = await _own(db, editor, feed_id)
        discarded = await ledger.condemn(db, await _images(db, feed_id))
        await db.delete(feed)
    await ledger.discard(db, images, discarded)


def _page_statement(query: ListQuery) -> tuple[Select[tuple[object, ...]], SortBy]:
    cursor = Cursor.decode(query.cursor) if query.cursor else None
    if cursor and query.skip:
        raise InvalidInput("Give either cursor or skip, not both.", pointer="/skip")
    if cursor and query.sort_by not in {None, cursor.sort_by}:
        raise InvalidInput(
            f"The cursor is of a list sorted by {cursor.sort_by}; leave sort_by out.",
            pointer="/sort_by",
        )
    sort_by = cursor.sort_by if cursor else query.sort_by or SortBy.CREATE_DT_DESC
    time = Feed.update_dt if sort_by.startswith("update") else Feed.create_dt
    descending = sort_by.endswith("desc")
    order = [column.desc() if descending else column.asc() for column in (time, Feed.id)]
    statement = _SHOWN.order_by(*order).offset(query.skip or None)
    if cursor:
        here, there = tuple_(time, Feed.id), tuple_(cursor.time, cursor.id)
        statement = statement.where(here < there if descending else here > there)
    return statement, sort_by


async def _shown(db: AsyncSession, images: ImageStore, feed_id: int) -> FeedRead:
    row = (await db.execute(_SHOWN.where(Feed.id == feed_id))).one_or_none()
    if row is None:
        raise FeedNotFound
    return _feed(images, row)


def _feed(images: ImageStore, row: Row[tuple[object, ...]]) -> FeedRead:
    shown = dict(row._mapping)
    keys = shown.pop("keys") or []
    return FeedRead(**shown, image_urls=[images.url(key) for key in keys])


async def _own(db: AsyncSession, editor: User, feed_id: int) -> Feed:
    """The feed, locked until the transaction ends; raises FeedNotFound and Forbidden."""
    feed = await db.get(Feed, feed_id, with_for_update=True, populate_existing=True)
    if feed is None:
        raise FeedNotFound
    if feed.author_id != editor.id:
        raise Forbidden
    return feed


async def _changing(
    db: AsyncSession,
    images: ImageStore,
    editor: User,
    feed_id: int,
    remove_urls: Sequence[str],
    added: int,
) -> tuple[Feed, Sequence[Image], list[Image]]:
    """The feed, locked, its images, and those to remove; raises what makes a change impossible."""
    feed = await _own(db, editor, feed_id)
    shown = await _images(db, feed_id)
    removed = _named(images, shown, remove_urls)
    _check_count(images, len(shown) - len(removed) + added, pointer="/new_images")
    return feed, shown, removed


def _check_count(images: ImageStore, count: int, *, pointer: str) -> None:
    if count > images.max_images:
        raise InvalidInput(
            f"A feed has at most {images.max_images} images; this one would have {count}.",
            pointer=pointer,
        )


async def _images(db: AsyncSession, feed_id: int) -> Sequence[Image]:
    shown = select(Image).where(Image.feed_id == feed_id).order_by(Image.position)
    return (await db.scalars(shown)).all()


def _named(images: ImageStore, shown: Sequence[Image], urls: Sequence[str]) -> list[Image]:
    by_url = {images.url(image.key): image for image in shown}
    for url in urls:
        if url not in by_url:
            raise InvalidInput(
                f"{url[:200]} is not an image of this feed; give a URL of its image_urls.",
                pointer="/target_image_urls",
            )
    return [by_url[url] for url in dict.fromkeys(urls)]
