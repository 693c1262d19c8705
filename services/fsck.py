"""Table against bucket: where the ledger and the objects differ, and how that is mended.

Both are read once, side by side, in the order of their keys, a page at a time: memory does not
grow with the bucket. What the pages seem to say is only a suspicion, as both change while they are
read. Each suspicion is asked about once more, row and object, before it is a finding; so neither a
busy service nor a store that lists in an order of its own makes a false one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import structlog
from sqlalchemy import String, bindparam, collate, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config.s3 import S3Error
from models.base import NOW
from models.image import Image, ImageState
from services import holds
from services.bucket import Bucket, Listed, Object
from services.ledger import SETTLED, discard
from services.several import batches
from services.store import ImageStore

log = structlog.get_logger()

PAGE = 1000
# Suspicions looked into together: so many HEAD requests are under way at most.
BATCH = 32


class Kind(StrEnum):
    """What can be wrong with a key."""

    LOST = "lost"  # A feed, or a profile, names an object that is not there.
    STALE = "stale"  # A row that nobody shows, without an object, and its time is long past.
    ORPHAN = "orphan"  # An object without a row.
    WRONG_SIZE = "wrong-size"  # An attached row and its object differ in bytes.
    WRONG_TYPE = "wrong-type"  # An attached row and its object differ in their content type.


@dataclass(frozen=True)
class Finding:
    """One fault; `expected` is the row's size (bytes) or type, `found` the object's.

    `age` is the object's, in seconds by the store's clock; None without an object.
    """

    kind: Kind
    key: str
    feed_id: int | None = None
    expected: int | str | None = None
    found: int | str | None = None
    age: float | None = None
    # Whose avatar it is, if no feed shows it.
    avatar_of: int | None = None

    @property
    def shown_by(self) -> str:
        return f"feed {self.feed_id}" if self.avatar_of is None else f"user {self.avatar_of}"


@dataclass
class Tally:
    """What was compared, and what came of it."""

    objects: int = 0
    rows: int = 0
    found: Counter[Kind] = field(default_factory=Counter)
    mended: Counter[Kind] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.found.total() - self.mended.total()


class _Row(NamedTuple):
    key: str
    state: ImageState
    feed_id: int | None
    content_type: str
    bytes: int
    stale: bool
    avatar_of: int | None


# S3 lists by the bytes of UTF-8, as "C" collates and as Python compares strings.
_KEY = collate(Image.key, "C")
# A deletion under way, too, has a row that is due and an object that is gone, but not for long.
_STALE = (Image.state != ImageState.ATTACHED) & (Image.reap_dt < NOW - SETTLED)
_ROW = select(
    Image.key,
    Image.state,
    Image.feed_id,
    Image.content_type,
    Image.bytes,
    _STALE.label("stale"),
    Image.avatar_of,
)
_NEXT_ROWS = _ROW.where(bindparam("after", type_=String) < _KEY).order_by(_KEY).limit(PAGE)
_ROWS = _ROW.where(Image.key.in_(bindparam("keys", expanding=True)))
_COUNT = select(func.count()).select_from(Image)


async def count(db: AsyncSession) -> int:
    """How many rows there are to compare."""
    async with db.begin():
        return (await db.scalars(_COUNT)).one()


async def survey(
    db: AsyncSession,
    bucket: Bucket,
    tally: Tally,
    *,
    deep: bool = False,
    advance: Callable[[int], object] = lambda objects: None,
) -> AsyncGenerator[Finding]:
    """Compare table and bucket in both directions; gives what is wrong and counts it in `tally`.

    A listing has no content types: `deep` asks for every object's, which takes a request each.
    Raises one of `S3Error` and `SQLAlchemyError`.
    """

    def counted(objects: int) -> None:
        tally.objects += objects
        advance(objects)

    suspects = _suspects(_rows(db, tally), bucket.listing(counted), deep=deep)
    async for keys in batches(suspects, BATCH):
        for finding in await _verified(db, bucket, keys):
            tally.found[finding.kind] += 1
            yield finding


async def mend(db: AsyncSession, images: ImageStore, bucket: Bucket, finding: Finding) -> bool:
    """Mend a finding if that is safe; False when it is not, or was not confirmed.

    What no feed can miss is deleted, and a content type is set right. A lost object cannot be
    brought back, and of two sizes nobody knows which one is right. Raises one of `S3Error` and
    `SQLAlchemyError`.
    """
    match finding.kind:
        case Kind.ORPHAN:
            return await _delete_orphan(db, images, bucket, finding.key)
        case Kind.STALE:
            return await _forget(db, images, finding.key)
        case Kind.WRONG_TYPE:
            return await _retype(db, images, bucket, finding.key)
    return False


async def _rows(db: AsyncSession, tally: Tally) -> AsyncGenerator[_Row]:
    after = ""
    while True:
        # A transaction for each page: none is open while S3 is talked to.
        async with db.begin():
            page = [_Row(*row) for row in await db.execute(_NEXT_ROWS, {"after": after})]
        for row in page:
            tally.rows += 1
            yield row
        if len(page) < PAGE:
            return
        after = page[-1].key


async def _suspects(
    rows: AsyncIterator[_Row], objects: AsyncIterator[Listed], *, deep: bool
) -> AsyncGenerator[str]:
    """Merge both sides; gives the keys that are on one side only, or differ."""
    row, found = await anext(rows, None), await anext(objects, None)
    while row or found:
        if found and (row is None or found.key < row.key):
            yield found.key
            found = await anext(objects, None)
        elif row and (found is None or row.key < found.key):
            if row.stale or row.state is ImageState.ATTACHED:
                yield row.key
            row = await anext(rows, None)
        elif row and found:
            if row.state is ImageState.ATTACHED and (deep or row.bytes != found.bytes):
                yield row.key
            row, found = await anext(rows, None), await anext(objects, None)


async def _verified(db: AsyncSession, bucket: Bucket, suspects: Sequence[str]) -> list[Finding]:
    """Ask about each key again: row, object, and row once more.

    It is a finding if the row was the same before and after the object was asked for. A row only
    goes from pending to attached to condemned and away, so asking again comes to an end.
    """
    findings, keys = [], list(suspects)
    while keys:
        before = await _rows_of(db, keys)
        objects = await asyncio.gather(*(bucket.look(key) for key in keys))
        judged = {
            key: faults
            for key, found in zip(keys, objects, strict=True)
            if (faults := _judge(key, before.get(key), found))
        }
        after = await _rows_of(db, list(judged))
        for key, faults in judged.items():
            if before.get(key) == after.get(key):
                findings += faults
        keys = [key for key in judged if before.get(key) != after.get(key)]
    return findings


async def _rows_of(db: AsyncSession, keys: Sequence[str]) -> dict[str, _Row]:
    # S3 allows U+0000 in a key, PostgreSQL does not.
    keys = [key for key in keys if "\0" not in key]
    if not keys:
        return {}
    async with db.begin():
        return {row.key: _Row(*row) for row in await db.execute(_ROWS, {"keys": keys})}


def _judge(key: str, row: _Row | None, found: Object | None) -> list[Finding]:
    age = found.age.total_seconds() if found else None
    if row is None:
        return [Finding(Kind.ORPHAN, key, age=age)] if found else []
    if found is None:
        if row.state is ImageState.ATTACHED:
            return [Finding(Kind.LOST, key, row.feed_id, avatar_of=row.avatar_of)]
        return [Finding(Kind.STALE, key)] if row.stale else []
    if row.state is not ImageState.ATTACHED:
        return []  # the reaper's, whatever it looks like
    faults = []
    for kind, expected, actual in (
        (Kind.WRONG_SIZE, row.bytes, found.bytes),
        (Kind.WRONG_TYPE, row.content_type, found.content_type),
    ):
        if expected != actual:
            faults.append(Finding(kind, key, row.feed_id, expected, actual, age, row.avatar_of))
    return faults


async def _delete_orphan(db: AsyncSession, images: ImageStore, bucket: Bucket, key: str) -> bool:
    """Delete an object without a row, unless it is younger than the grace.

    Keys are random and a row comes before its object, so none can appear for this one any more.
    """
    found = await bucket.look(key)
    if found is None:
        return True
    if found.age < images.grace or await _rows_of(db, [key]):
        return False
    return await images.delete(key)


async def _forget(db: AsyncSession, images: ImageStore, key: str) -> bool:
    """Do with a stale row what the reaper would: claim it, delete once more, remove the row."""
    claimed = (
        update(Image)
        .where(Image.key == key, _STALE)
        .values(state=ImageState.CONDEMNED, reap_dt=NOW + SETTLED)
        .returning(Image.key)
    )
    async with db.begin():
        keys = (await db.scalars(claimed)).all()
    return not keys or await discard(db, images, keys) == 1


async def _retype(db: AsyncSession, images: ImageStore, bucket: Bucket, key: str) -> bool:
    row = (await _rows_of(db, [key])).get(key)
    if row is None or row.state is not ImageState.ATTACHED:
        return True  # forgotten meanwhile
    try:
        await bucket.retype(key, row.content_type)
    except S3Error as error:
        log.warning("a content type could not be mended", key=key, error=str(error))
        return False
    row = (await _rows_of(db, [key])).get(key)
    if row is None or row.state is not ImageState.ATTACHED:
        # The copy may have come after the deletion, and would have undone it.
        return await holds.is_free(db) and await images.delete(key)
    return True
