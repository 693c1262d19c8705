"""Idempotency keys: a request that is sent again is answered again, and carried out once.

After draft-ietf-httpapi-idempotency-key-header. Whoever carries a request out claims its key, by a
row, before, and writes the answer into that row in the transaction of the write itself: both are
there, or neither. Who is late finds the answer; who took too long finds the row gone, and cannot
commit any more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hmac import compare_digest
from time import monotonic
from typing import Any, TypeVar

import anyio
import structlog
from sqlalchemy import Update, delete, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import DatabaseError, Sessions
from models.base import NOW
from models.idempotency import IdempotencyKey as Key
from services import purges
from services.errors import IdempotencyKeyReused, NotAuthenticated, RequestOutstanding

log = structlog.get_logger()
Read = TypeVar("Read")

# How long an answer is given again.
KEPT = timedelta(hours=24)
# Longer than a request takes: whose claim is older has died, or is taken for dead.
LEASE = timedelta(minutes=2)
# Seconds that a request waits for the answer of its twin; it looks seldomer the longer it waits.
PATIENCE = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
# Seconds that a request which has failed waits for the database to hear of it.
SETTLE_PATIENCE = 5.0
_CLAIM = "idempotency.claim"
_LAPSED = "It took so long that the same request, sent again, has taken over; ask for its answer."


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, eq=False)
class Claim:
    """One attempt's right to carry a request out; `encode` says how what is read is answered."""

    id: int
    encode: Callable[[Any], Awaitable[Answer]]


async def claim(
    sessions: Sessions, *, user_id: int | None, key_hash: bytes, fingerprint: bytes
) -> int | Answer:
    """Claim a key, and give the claim's id; or the answer, if there is one already.

    Raises IdempotencyKeyReused, and RequestOutstanding when the answer does not come in time.
    """
    row = {"user_id": user_id, "key_hash": key_hash, "fingerprint": fingerprint}
    until, pause = monotonic() + PATIENCE, FIRST_PAUSE
    while True:
        try:
            async with sessions() as db, db.begin():
                found = await _claim(db, row)
        except IntegrityError:
            raise NotAuthenticated from None  # its user is gone
        if found is not None:
            return found
        if monotonic() + pause > until:
            raise RequestOutstanding
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def carry(db: AsyncSession, claim: Claim) -> None:
    """Have what is done in this session answer the claim."""
    db.info[_CLAIM] = claim


async def keep(db: AsyncSession, read: Read) -> Read:
    """Write down what is to be answered, as the last thing of the write's own transaction.

    Gives it back. Does nothing where the request has no key. Raises RequestOutstanding, so that
    nothing is written, when another attempt has taken over.
    """
    claim: Claim | None = db.info.get(_CLAIM)
    if claim is not None:
        answered = _answered(claim.id, await claim.encode(read)).returning(Key.id)
        if await db.scalar(answered) is None:
            raise RequestOutstanding(_LAPSED)
    return read


async def lapsed(db: AsyncSession, claims: Sequence[Claim]) -> set[Claim]:
    """Those that others have taken over; the rest are locked until the transaction ends."""
    if not claims:
        return set()
    ids = [claim.id for claim in claims]
    standing = select(Key.id).where(Key.id.in_(ids), Key.status.is_(None)).with_for_update()
    found = (await db.scalars(standing)).all()
    return {claim for claim in claims if claim.id not in found}


async def keep_each(db: AsyncSession, answers: Sequence[tuple[Claim, Any]]) -> None:
    """As `keep`, for many at once, whose claims have been seen not to be `lapsed`."""
    rows = [{"id": claim.id} | vars(await claim.encode(read)) for claim, read in answers]
    if rows:
        await db.execute(update(Key), rows)


async def settle(sessions: Sessions, claim: Claim, refusal: Answer | None) -> None:
    """End a claim whose attempt wrote nothing: with a refusal as its answer, or (None) as if the
    request had never come. If it did write, after all, its answer stays."""
    settled = (
        delete(Key).where(Key.id == claim.id, Key.status.is_(None))
        if refusal is None
        else _answered(claim.id, refusal)
    )
    # Shielded: a request that is cancelled lets go of its key as well.
    with anyio.CancelScope(shield=True):
        try:
            async with asyncio.timeout(SETTLE_PATIENCE), sessions() as db, db.begin():
                await db.execute(settled)
        except DatabaseError as error:
            log.warning("an idempotency key is free again when its lease ends", error=str(error))


async def purge(db: AsyncSession, *, batch: int = 1000) -> int:
    """Forget what is too old to be answered again; gives how much. Each batch is a transaction."""
    old = select(Key.id).where(Key.create_dt <= NOW - KEPT).limit(batch)
    forgotten = delete(Key).where(Key.id.in_(old.with_for_update(skip_locked=True)))
    return await purges.purge(db, forgotten, Key.id)


async def _claim(db: AsyncSession, row: dict[str, Any]) -> int | Answer | None:
    """The id of a new claim, or the answer; None while the request is under way."""
    added = insert(Key).values(row).on_conflict_do_nothing().returning(Key.id)
    claimed = await db.scalar(added)
    if claimed is None and await _forget(db, row["key_hash"]):
        claimed = await db.scalar(added)
    if claimed is not None:
        return int(claimed)
    known = await db.scalar(select(Key).where(Key.key_hash == row["key_hash"]))
    if known is None:
        return None  # let go of at this moment
    if not compare_digest(known.fingerprint, row["fingerprint"]):
        raise IdempotencyKeyReused
    if known.status is None:
        return None
    return Answer(known.status, known.headers or {}, known.body or b"")


async def _forget(db: AsyncSession, key_hash: bytes) -> bool:
    """Delete a row that counts no more, but for one whose answer is being written just now."""
    dead = Key.status.is_(None) & (Key.create_dt <= NOW - LEASE)
    over = select(Key.id).where(Key.key_hash == key_hash, or_(dead, Key.create_dt <= NOW - KEPT))
    gone = delete(Key).where(Key.id.in_(over.with_for_update(skip_locked=True)))
    return await db.scalar(gone.returning(Key.id)) is not None


def _answered(claim_id: int, answer: Answer) -> Update:
    mine = update(Key).where(Key.id == claim_id, Key.status.is_(None))
    return mine.values(**vars(answer)).execution_options(synchronize_session=False)
