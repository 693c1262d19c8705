"""Feeds: what happens when one is written, changed, deleted or restored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import (
    bindparam,
    insert,
    select,
)
from sqlalchemy import delete as delete_
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, Message
from models.feed import Feed, FeedRead
from models.image import Image
from models.user import User
from services import history, idempotency, ledger, showing, versions
from services.access import FEED_KEPT, require_deletable, require_here, require_own
from services.errors import FeedNotFound, InvalidInput
from services.ledger import Upload
from services.readers import Reader
from services.store import ImageStore
from services.versions import Expected

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
        return await idempotency.keep(db, await showing.one(db, images, reader, feed_id))


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
        changed = await idempotency.keep(db, await showing.one(db, images, reader, feed_id))
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
        return await idempotency.keep(db, await showing.one(db, images, reader, feed_id))


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
        versions.require(expected, await showing.one(db, images, Reader(editor.id), feed_id))


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
