"""Quotas: how much of the bucket one user may take."""

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW
from models.image import Image, ImageState
from models.user import User
from services.access import ACCOUNT_GONE
from services.errors import NotAuthenticated, QuotaExceeded
from services.store import LINGER, ImageStore

# What is condemned counts no more, but for a form that its client may still send (`store.LINGER`).
_KEPT = select(
    func.coalesce(func.sum(Image.bytes), 0),
    func.count().filter(Image.state != ImageState.ATTACHED, Image.original_id.is_(None)),
).where(
    Image.owner_id == bindparam("owner_id"),
    or_(Image.state != ImageState.CONDEMNED, Image.reap_dt > NOW + LINGER),
)


async def require(
    db: AsyncSession,
    store: ImageStore,
    owner: User,
    *,
    size: int,
    pending: int = 0,
    freed: int = 0,
) -> None:
    """See that the owner may keep `size` bytes more, and so many pending images more.

    `freed` bytes of what the owner keeps are about to go. Runs inside the caller's transaction;
    of requests that ask at the same time each waits for the one before to end its own, so that no
    room is given away twice. Raises QuotaExceeded, saying what is left, and NotAuthenticated.
    """
    # A lock that is not in the way of rows which merely point to the user.
    here = select(User.id).where(User.id == owner.id, User.leaving_dt.is_(None))
    if await db.scalar(here.with_for_update(key_share=True)) is None:
        raise NotAuthenticated(ACCOUNT_GONE)
    kept, waiting = (await db.execute(_KEPT, {"owner_id": owner.id})).one()
    left = max(store.max_user_bytes - kept + freed, 0)
    if size > left:
        raise QuotaExceeded(
            f"You may keep {store.max_user_bytes:,} bytes of images, smaller copies included; "
            f"{left:,} bytes are left, and this takes {size:,}."
        )
    left = max(store.max_pending - waiting, 0)
    if pending > left:
        raise QuotaExceeded(
            f"You may have {store.max_pending:,} images waiting for a feed; {left:,} more may "
            f"come, and these are {pending:,}. Post some or delete some first."
        )
