"""Images by themselves: uploaded before their feed, described, found again, and deleted."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, CursorQuery
from models.feed import Feed, SortBy
from models.image import Image, ImageRead, ImageState, OwnImageRead
from models.user import User
from services import ledger
from services.cursors import Cursor, Page, keyset
from services.errors import Forbidden, ImageNotFound, InvalidInput
from services.ledger import Upload
from services.store import ImageStore


async def upload(
    db: AsyncSession, store: ImageStore, owner: User, *, uploads: Sequence[Upload]
) -> list[ImageRead]:
    """Store images for a feed to come; one that no feed takes within the grace is collected.

    Raises InvalidInput for more at once than a feed may have, and what `ledger.stored` does.
    """
    if len(uploads) > store.max_images:
        raise InvalidInput(
            f"At most {store.max_images} images are taken at once; these are {len(uploads)}.",
            pointer="/images",
        )
    async with ledger.stored(db, store, owner, uploads) as rows, db.begin():
        return ledger.read(store, await _with_variants(db, [row.id for row in rows]))


async def describe(
    db: AsyncSession, store: ImageStore, owner: User, image_id: int, *, alt: str
) -> ImageRead:
    """Say in words what an image shows; raises ImageNotFound and Forbidden."""
    async with db.begin():
        row = await _own(db, owner, image_id)
        row.alt = alt
        await db.flush()
        return ledger.read(store, await _with_variants(db, [row.id]))[0]


async def mine(
    db: AsyncSession, store: ImageStore, owner: User, query: CursorQuery
) -> Page[OwnImageRead]:
    """A page of what the owner has uploaded, newest first; raises InvalidInput for a bad cursor."""
    cursor = Cursor.decode(query.cursor) if query.cursor else None
    own = select(Image).where(
        Image.owner_id == owner.id,
        Image.original_id.is_(None),
        Image.state != ImageState.CONDEMNED,
    )
    statement = keyset(own, Image.create_dt, Image.id, cursor, descending=True)
    async with db.begin():
        rows = (await db.scalars(statement.limit(query.limit + 1))).all()
        found = {row.id: row for row in rows[: query.limit]}
        shown = ledger.read(store, await _with_variants(db, list(found)))
    by_id = {image.id: image for image in shown}
    items = [
        OwnImageRead(**by_id[row.id].model_dump(), feed_id=row.feed_id, create_dt=row.create_dt)
        for row in found.values()
    ]
    following = None
    if len(rows) > query.limit:
        following = Cursor(SortBy.CREATE_DT_DESC, items[-1].create_dt, items[-1].id)
    return Page(items, following)


async def delete(db: AsyncSession, store: ImageStore, owner: User, image_id: int) -> None:
    """Delete an image, also from the feed that shows it; raises ImageNotFound and Forbidden."""
    async with db.begin():
        row = await _own(db, owner, image_id)
        if row.feed_id is not None:
            # The feed's lock first, as whoever changes a feed takes them; then the image anew.
            feed = await db.get_one(Feed, row.feed_id, with_for_update=True)
            feed.update_dt = NOW
        row = await _own(db, owner, image_id, lock=True)
        keys = await ledger.condemn(db, [row])
    await ledger.discard(db, store, keys)


async def _own(db: AsyncSession, owner: User, image_id: int, *, lock: bool = False) -> Image:
    found = select(Image).where(
        Image.id == image_id,
        Image.original_id.is_(None),
        Image.state != ImageState.CONDEMNED,
    )
    if lock:
        found = found.with_for_update().execution_options(populate_existing=True)
    row = await db.scalar(found)
    if row is None:
        raise ImageNotFound
    if row.owner_id != owner.id:
        raise Forbidden
    return row


async def _with_variants(db: AsyncSession, image_ids: Sequence[int]) -> Sequence[Image]:
    both = select(Image).where(Image.id.in_(image_ids) | Image.original_id.in_(image_ids))
    ordered = both.order_by(Image.original_id.nulls_first(), Image.id, Image.width)
    return (await db.scalars(ordered)).all()
