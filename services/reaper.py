"""The reaper: collects what no feed shows, in every process, each row by one of them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from time import monotonic

import structlog
from sqlalchemy import Select, column, func, literal, select, table, update
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import DatabaseError, Sessions
from models.base import NOW
from models.image import Image, ImageState
from services import comments, feeds, holds, idempotency
from services import sessions as signed_in
from services.ledger import SETTLED, discard
from services.store import ImageStore

log = structlog.get_logger()

# Seconds between rounds; after rounds that failed the pause doubles, up to the second.
REAP_EVERY = 15.0
REAP_AT_LEAST_EVERY = 240.0
# Seconds between looks at what was deleted too long ago to be restored.
PURGE_EVERY = 300.0
_CLASSES = table("pg_class")


async def claim(db: AsyncSession, *, batch: int = 100) -> Sequence[str]:
    """Claim a batch of condemned images whose time has come; gives the keys to discard.

    A pending one whose time has come is condemned first, and discarded when no PUT of it can still
    be under way: an object that came after its row was forgotten would stay for ever. There are
    none while a backup is made.
    """
    overdue = (
        update(Image)
        .where(
            Image.state.in_([ImageState.PENDING, ImageState.INCOMING]),
            Image.reap_dt <= NOW,
        )
        .values(state=ImageState.CONDEMNED, reap_dt=NOW + SETTLED)
    )
    due = (
        select(Image.id)
        .where(Image.state == ImageState.CONDEMNED, Image.reap_dt <= NOW, holds.FREE)
        .order_by(Image.reap_dt)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    # Claimed by a time in the future, not by a lock held while S3 works: should this process die
    # or S3 fail, the next reaper takes them up again.
    claimed = (
        update(Image).where(Image.id.in_(due)).values(reap_dt=NOW + SETTLED).returning(Image.key)
    )
    async with db.begin():
        await db.execute(overdue)
        return (await db.scalars(claimed)).all()


async def reap(db: AsyncSession, store: ImageStore) -> tuple[int, int]:
    """Collect one batch of what is due; gives how many objects are gone, and how many are left.

    What S3 did not confirm is left, and due again after `ledger.SETTLED`.
    """
    keys = await claim(db)
    gone = await discard(db, store, keys)
    return gone, len(keys) - gone


@dataclass(frozen=True)
class Backlog:
    """Rows of the ledger by state, and since when (seconds) the oldest is due to be deleted."""

    rows: Mapping[str, int]
    seconds: float


async def backlog(db: AsyncSession) -> Backlog:
    """Count what is on its way; what is shown is PostgreSQL's estimate, as counting takes long."""
    waiting = Image.state != ImageState.ATTACHED
    counted = select(Image.state, func.count()).where(waiting).group_by(Image.state)
    due = select(func.extract("epoch", NOW - func.min(Image.reap_dt))).where(
        waiting, Image.reap_dt <= NOW
    )
    name = literal(Image.__tablename__).cast(REGCLASS)
    estimate: Select[tuple[float]] = (
        select(column("reltuples")).select_from(_CLASSES).where(column("oid") == name)
    )
    async with db.begin():
        rows = {state.value: 0 for state in ImageState}
        rows |= {state.value: number for state, number in await db.execute(counted)}
        # -1 until it is first analyzed.
        rows["attached"] = max(0, int(await db.scalar(estimate) or 0) - sum(rows.values()))
        return Backlog(rows, float(await db.scalar(due) or 0))


async def reap_forever(sessions: Sessions, store: ImageStore, *, restorable: timedelta) -> None:
    """The service's own reaper: a round now and then, and seldom while rounds fail."""
    pause, purged = REAP_EVERY, -inf
    while True:
        if (now := monotonic()) - purged >= PURGE_EVERY:
            await _purge(sessions, restorable)
            purged = now
        collected = await _round(sessions, store)
        pause = REAP_EVERY if collected else min(2 * pause, REAP_AT_LEAST_EVERY)
        await asyncio.sleep(pause)


async def _purge(sessions: Sessions, restorable: timedelta) -> None:
    """Remove what is over: deletions, sessions and keys."""
    try:
        async with sessions() as db:
            while await feeds.purge(db, restorable=restorable):
                pass
            await comments.purge(db, restorable)
            await signed_in.purge(db)
            await idempotency.purge(db)
    except DatabaseError as error:
        log.warning("what was deleted could not be removed", error=str(error))
    except Exception:
        log.exception("the purge failed")


async def _round(sessions: Sessions, store: ImageStore) -> bool:
    """Collect all that is due; False, and a line in the log, when something failed."""
    try:
        async with sessions() as db:
            while True:
                gone, left = await reap(db, store)
                if left or not gone:
                    return not left
    except DatabaseError as error:
        log.warning("images could not be collected", error=str(error))
    except Exception:
        # A fault of ours must not end the reaper for the rest of the process's life.
        log.exception("the reaper failed")
    return False
