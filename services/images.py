"""Images by themselves: uploaded before their feed, described, found again, and deleted."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    LargeBinary,
    Row,
    SQLColumnExpression,
    String,
    any_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, CursorQuery, Message
from models.feed import Feed
from models.image import (
    Image,
    ImagePresign,
    ImageRead,
    ImageState,
    OwnImageRead,
    PresignedUpload,
    VariantRead,
)
from models.user import User
from services import history, idempotency, ledger, quotas, versions
from services.access import is_here, require_deletable, require_own
from services.cursors import Cursor, Page, following, keyset
from services.errors import (
    DamagedImage,
    ImageNotFound,
    ImageTooLarge,
    InvalidInput,
    NothingUploaded,
    UnsupportedImage,
)
from services.ledger import Upload
from services.store import LINGER, ImageStore, key_of
from services.versions import Expected


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
    async with ledger.stored(db, store, owner, uploads, waiting=True) as rows, db.begin():
        await ledger.keep(db, rows)
        shown = read(store, await _with_variants(db, [row.id for row in rows]))
        return await idempotency.keep(db, shown)


async def presign(
    db: AsyncSession, store: ImageStore, owner: User, upload: ImagePresign
) -> PresignedUpload:
    """Give out a form by which the owner puts one file into the bucket, and nothing else.

    Raises ImageTooLarge, QuotaExceeded and StorageUnavailable.
    """
    if upload.bytes > store.max_bytes:
        raise ImageTooLarge(
            f"The file has {upload.bytes:,} bytes; the limit is {store.max_bytes:,} bytes.",
            pointer="/bytes",
        )
    key = ledger.new_key()
    # Made before the row, which outlives it; and not within the transaction.
    url, fields = await store.form(key, content_type=upload.type, size=upload.bytes)
    async with db.begin():
        await quotas.require(db, store, owner, size=upload.bytes, pending=1)
        row = await ledger.announce(
            db, owner, key, content_type=upload.type, size=upload.bytes, alt=upload.alt
        )
        expires_dt = row.reap_dt - LINGER
        form = PresignedUpload(id=row.id, url=url, fields=fields, expires_dt=expires_dt)
        return await idempotency.keep(db, form)


async def complete(db: AsyncSession, store: ImageStore, owner: User, image_id: int) -> ImageRead:
    """Make an image, still pending, of what was uploaded by a form; asked again, give it again.

    An upload that is refused is deleted, and its id is gone. Raises ImageNotFound, Forbidden,
    NothingUploaded, and what `ledger.stored` does.
    """
    async with db.begin():
        row = await _there(db, image_id, incoming=True)
        require_own(owner, row.owner_id)
        if row.state is not ImageState.INCOMING:
            shown = read(store, await _with_variants(db, [image_id]))[0]
            return await idempotency.keep(db, shown)
    try:
        async with store.fetched(row.key) as file:
            upload = Upload(file, "The file", row.alt)
            async with (
                ledger.stored(db, store, owner, [upload], freed=row.bytes) as (made,),
                db.begin(),
            ):
                row = await _there(db, image_id, incoming=True, lock=True)
                if row.state is not ImageState.INCOMING:
                    raise NothingUploaded(_TWICE)
                raw = await ledger.adopt(db, store, row, made)
                shown = read(store, await _with_variants(db, [image_id]))[0]
                await idempotency.keep(db, shown)
    except (UnsupportedImage, ImageTooLarge, DamagedImage):
        await _withdraw(db, store, image_id)
        raise
    await ledger.discard(db, store, [raw])
    return shown


async def read_own(db: AsyncSession, store: ImageStore, owner: User, image_id: int) -> ImageRead:
    """One of the owner's images; raises ImageNotFound and Forbidden."""
    async with db.begin():
        require_own(owner, (await _there(db, image_id)).owner_id)
        return read(store, await _with_variants(db, [image_id]))[0]


async def describe(
    db: AsyncSession,
    store: ImageStore,
    owner: User,
    image_id: int,
    *,
    alt: str,
    expected: Expected = None,
) -> ImageRead:
    """Say in words what an image shows; raises ImageNotFound, Forbidden, PreconditionFailed."""
    async with db.begin():
        row = await _there(db, image_id, lock=True)
        require_own(owner, row.owner_id)
        versions.require(expected, _original(store, row))
        row.alt = alt
        await db.flush()
        shown = read(store, await _with_variants(db, [row.id]))[0]
        return await idempotency.keep(db, shown)


async def mine(
    db: AsyncSession, store: ImageStore, owner: User, query: CursorQuery
) -> Page[OwnImageRead]:
    """A page of what the owner has uploaded, newest first; raises InvalidInput for a bad cursor."""
    cursor = Cursor.newest_first(query.cursor)
    own = select(Image).where(
        Image.owner_id == owner.id,
        Image.original_id.is_(None),
        Image.state.in_([ImageState.PENDING, ImageState.ATTACHED]),
        Image.stored,
    )
    statement = keyset(own, Image.create_dt, Image.id, cursor, descending=True)
    async with db.begin():
        rows = (await db.scalars(statement.limit(query.limit + 1))).all()
        found = {row.id: row for row in rows[: query.limit]}
        shown = read(store, await _with_variants(db, list(found)))
    by_id = {image.id: image for image in shown}
    items = [
        OwnImageRead(
            **by_id[row.id].model_dump(),
            feed_id=row.feed_id,
            avatar=row.avatar_of is not None,
            create_dt=row.create_dt,
        )
        for row in found.values()
    ]
    return Page(items, following(rows, query.limit))


async def shown_by_name(db: AsyncSession, name: str) -> Row[str, str, int]:
    """Key, content type and size (bytes) of the image of a name; raises ImageNotFound, also if its
    feed is deleted."""
    async with db.begin():
        row = (await db.execute(SHOWN_BY_KEY, {"keys": [key_of(name)]})).one_or_none()
    if row is None:
        raise ImageNotFound
    return row


async def delete(
    db: AsyncSession, store: ImageStore, owner: User, image_id: int, *, expected: Expected = None
) -> Message:
    """Delete an image, also from where it is shown.

    Raises ImageNotFound, Forbidden and PreconditionFailed.
    """
    async with db.begin():
        row = await _there(db, image_id, incoming=True)
        require_deletable(owner, row.owner_id)
        if row.feed_id is not None:
            # The feed's lock first, as whoever changes a feed takes them; then the image anew.
            feed = await db.get(Feed, row.feed_id, with_for_update=True)
            if feed is None:
                raise ImageNotFound  # it went with its feed
            await history.record(db, feed.id)
            feed.update_dt = NOW
        row = await _there(db, image_id, incoming=True, lock=True)
        versions.require(expected, _original(store, row))
        keys = await ledger.condemn(db, [row])
        deleted = await idempotency.keep(db, Message(message="Image Deleted"))
    await ledger.discard(db, store, keys)
    return deleted


def shown_with_feed(found: bytes | None) -> tuple[bytes, bytes]:
    """What `WITH_FEED` gave, as JSON: the URLs of a feed's images, and the images."""
    if found is None:
        return b"[]", b"[]"
    urls, images = found.split(_IMAGES)
    # Each image ends where the next one starts; before its first variant there is no comma.
    images = images[1:].replace(_IMAGE, b"]},").replace(_VARIANTS + b",", b"")
    return b"[%b]" % urls, b"[%b]}]" % images.replace(_VARIANTS, b"")


async def avatars(
    db: AsyncSession, store: ImageStore, user_ids: Sequence[int]
) -> dict[int, ImageRead]:
    """The avatars of those users who have one, by user; one statement."""
    rows = (await db.scalars(_AVATARS, {"user_ids": list(user_ids)})).all()
    user_of = {row.id: row.avatar_of for row in rows}
    return {user_of[image.id] or 0: image for image in read(store, rows)}


def read(store: ImageStore, rows: Sequence[Image]) -> list[ImageRead]:
    """Images as clients see them, out of rows in which an original comes before its variants."""
    originals: dict[int, ImageRead] = {}
    for row in rows:
        if row.original_id is None:
            originals[row.id] = _original(store, row)
        elif row.original_id in originals:
            originals[row.original_id].variants.append(_variant(store, row))
    return list(originals.values())


SHOWN_BY_KEY = select(Image.key, Image.content_type, Image.bytes).where(
    Image.key == any_(bindparam("keys", type_=ARRAY(String))),
    # Written out: no parameters but the keys.
    Image.state.in_(
        [literal_column(f"'{it}'") for it in (ImageState.PENDING, ImageState.ATTACHED)]
    ),
    ~exists().where(Feed.id == Image.feed_id, Feed.deleted_dt.is_not(None)),
    is_here(Image.owner_id),
)
# Before all images, before each, and before its variants: no character of JSON is one of these.
_IMAGES, _IMAGE, _VARIANTS = b"\1", b"\2", b"\3"


def _json(text: SQLColumnExpression[Any]) -> ColumnElement[str]:
    return func.to_json(text).cast(String)


def _json_or_null(text: SQLColumnExpression[Any]) -> ColumnElement[str]:
    return func.coalesce(_json(text), literal_column("'null'"))


def _object(start: str, end: str, **values: ColumnElement[Any] | Any) -> ColumnElement[str]:
    """A JSON object without blanks, as pydantic writes it, out of JSON values."""
    parts: list[ColumnElement[Any]] = []
    for name, value in values.items():
        parts += [
            literal_column(f"""'{"," if parts else start + "{"}"{name}":'"""),
            value,
        ]
    return func.concat(*parts, literal_column(f"'{end}'"))


_SIZE = {"width": Image.width, "height": Image.height}
_ADDRESS = _json(bindparam("base_url", type_=String) + Image.key)
_ORIGINAL = _object(
    _IMAGE.decode(),
    ',"variants":[' + _VARIANTS.decode(),
    id=Image.id,
    url=_ADDRESS,
    **_SIZE,
    alt=_json(Image.alt),
    placeholder=_json_or_null(Image.placeholder),
    color=_json_or_null(Image.color),
)
_SMALLER = _object(",", "}", url=_ADDRESS, **_SIZE, type=_json(Image.content_type))
_IS_ORIGINAL = Image.original_id.is_(None)
# Beside a feed: its images and their variants, by one walk down an index. As text, since as rows of
# their own they cost a second statement; `shown_with_feed` reads it.
_URLS = func.string_agg(_ADDRESS, aggregate_order_by(literal_column("','"), Image.position))
_SHOWN = func.string_agg(
    case((_IS_ORIGINAL, _ORIGINAL), else_=_SMALLER),
    # An original comes before its variants, and those by their width.
    aggregate_order_by(
        literal_column("''"), Image.position, Image.original_id.nulls_first(), Image.width
    ),
)
_TEXT = _URLS.filter(_IS_ORIGINAL).concat(literal_column(f"'{_IMAGES.decode()}'")).concat(_SHOWN)
WITH_FEED = (
    select(func.convert_to(_TEXT, literal_column("'UTF8'"), type_=LargeBinary))
    .where(Image.feed_id == Feed.id)
    .correlate(Feed)
    .scalar_subquery()
)

_AVATARS = (
    select(Image)
    .where(Image.avatar_of == any_(bindparam("user_ids", type_=ARRAY(BigInteger))))
    .order_by(Image.original_id.nulls_first(), Image.width)
    .execution_options(populate_existing=True)
)


async def _withdraw(db: AsyncSession, store: ImageStore, image_id: int) -> None:
    """Delete an upload that is not to be completed, unless that was done meanwhile."""
    incoming = select(Image).where(Image.id == image_id, Image.state == ImageState.INCOMING)
    async with db.begin():
        keys = await ledger.condemn(db, (await db.scalars(incoming.with_for_update())).all())
    await ledger.discard(db, store, keys)


async def _there(
    db: AsyncSession, image_id: int, *, incoming: bool = False, lock: bool = False
) -> Image:
    """An image that clients know of; raises ImageNotFound."""
    there = Image.stored & (Image.state != ImageState.CONDEMNED)
    found = select(Image).where(
        Image.id == image_id,
        Image.original_id.is_(None),
        is_here(Image.owner_id),
        or_(there, Image.state == ImageState.INCOMING) if incoming else there,
    )
    if lock:
        found = found.with_for_update().execution_options(populate_existing=True)
    row = await db.scalar(found)
    if row is None:
        raise ImageNotFound
    return row


async def _with_variants(db: AsyncSession, image_ids: Sequence[int]) -> Sequence[Image]:
    both = select(Image).where(Image.id.in_(image_ids) | Image.original_id.in_(image_ids))
    ordered = both.order_by(Image.original_id.nulls_first(), Image.id, Image.width)
    return (await db.scalars(ordered.execution_options(populate_existing=True))).all()


def _original(store: ImageStore, row: Image) -> ImageRead:
    return ImageRead(
        id=row.id,
        url=store.url(row.key),
        width=row.width,
        height=row.height,
        alt=row.alt,
        placeholder=row.placeholder,
        color=row.color,
        variants=[],
    )


def _variant(store: ImageStore, row: Image) -> VariantRead:
    return VariantRead(
        url=store.url(row.key), width=row.width, height=row.height, type=row.content_type
    )


_TWICE = "Another request has completed this upload meanwhile; ask once more for its image."
