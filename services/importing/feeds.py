"""Feeds of another board, with their images; their numbers stay what they were where they can."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from models.feed import Feed
from models.image import Image
from models.imported import Kind
from models.record import FeedRecord
from services import bulk, ledger
from services.errors import NotAuthenticated
from services.importing.arrival import Arrival, Found, users_here
from services.importing.images import look_for, stored
from services.several import each

_Feed = Found[FeedRecord]


async def take_feeds(arrival: Arrival, feeds: Sequence[_Feed]) -> None:
    """Post feeds as they were: those without images together, each other one by itself."""
    bare = [feed for feed in feeds if not feed.record.images]
    if bare:
        async with arrival.sessions() as db, db.begin():
            await _post(db, arrival, bare)
    with_images = [feed for feed in feeds if feed.record.images]
    await each(partial(_take_with_images, arrival), with_images, at_once=arrival.at_once)


async def _take_with_images(arrival: Arrival, feed: _Feed) -> None:
    record = feed.record
    async with arrival.sessions() as db:
        async with db.begin():
            users = await users_here(db, arrival, [record.author_id])
        author_id = users.get(record.author_id)
        if author_id is None or arrival.rehearsal:
            if author_id is not None:
                await look_for(arrival, Kind.FEEDS, feed.row, record.images)
            async with db.begin():
                await _post(db, arrival, [feed])
            return
        try:
            images = stored(db, arrival, Kind.FEEDS, feed.row, author_id, record.images)
            async with images as rows, db.begin():
                await _post(db, arrival, [feed], rows)
        except NotAuthenticated as error:
            arrival.report.skip(Kind.FEEDS, feed.row, error.detail.rstrip("."))


async def _post(
    db: AsyncSession, arrival: Arrival, feeds: Sequence[_Feed], images: Sequence[Image] = ()
) -> None:
    """Write feeds, one of them if it has images, in the caller's transaction."""
    authors = await users_here(db, arrival, [feed.record.author_id for feed in feeds])
    there = [feed for feed in feeds if feed.record.author_id in authors]
    for feed in feeds:
        if feed.record.author_id not in authors:
            why = f"its author, user {feed.record.author_id}, is not on this board"
            arrival.report.skip(Kind.FEEDS, feed.row, why)
    ids = await _ids(db, arrival, there)
    if there and not arrival.rehearsal:
        rows = [
            {
                "id": ids[feed.record.id],
                "title": feed.record.title,
                "content": feed.record.content,
                "author_id": authors[feed.record.author_id],
                "create_dt": feed.record.create_dt or arrival.began,
                "update_dt": feed.record.update_dt or feed.record.create_dt or arrival.began,
            }
            for feed in there
        ]
        await bulk.write(db, Feed, rows)
        if images:
            await ledger.attach(db, images, feed_id=ids[there[0].record.id])
    await arrival.book.note(db, Kind.FEEDS, ids)
    arrival.report.taken[Kind.FEEDS] += len(there)


async def _ids(db: AsyncSession, arrival: Arrival, feeds: Sequence[_Feed]) -> dict[str, int]:
    """Ids for feeds, by their old ones: the same where it was kept for them."""
    old = {feed.record.id: _number(feed.record.id) for feed in feeds}
    ids = {it: n for it, n in old.items() if n in arrival.book.kept_ids}
    without = [it for it in old if it not in ids]
    if arrival.rehearsal:
        return dict(zip(old, arrival.book.unreal(len(old)), strict=True))
    return ids | dict(zip(without, await bulk.draw(db, Feed, len(without)), strict=True))


def _number(old_id: str) -> int:
    # Only what is written just so: "007" is no number of a feed, and neither is "٧".
    written = old_id.isascii() and old_id.isdigit() and old_id[0] != "0" and len(old_id) <= 18
    return int(old_id) if written else 0
