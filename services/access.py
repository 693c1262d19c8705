"""Who may do what with whose things; `tests/test_access.py` walks every route as everybody."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from models.user import User
from services.errors import Forbidden, NotAuthenticated

ACCOUNT_GONE = "The account of this access token no longer exists."


async def require_here(db: AsyncSession, user: User) -> None:
    """Raise NotAuthenticated if the account is gone; it stays until the transaction ends.

    Asked by whoever writes a row of the user's own, after the locks on what that row is about. The
    lock is a foreign key's, in nobody's way but of who leaves.
    """
    here = select(User.id).where(User.id == user.id, User.leaving_dt.is_(None))
    if await db.scalar(here.with_for_update(read=True, key_share=True)) is None:
        raise NotAuthenticated(ACCOUNT_GONE)


def require_own(user: User, owner_id: int | None) -> None:
    """Raise Forbidden unless it is theirs: nobody speaks in another's name."""
    if owner_id != user.id:
        raise Forbidden


def require_deletable(user: User, owner_id: int | None) -> None:
    """Raise Forbidden unless it is theirs, or they are an administrator, who keeps the house."""
    if owner_id != user.id and not user.is_admin:
        raise Forbidden
