"""Who may do what with whose things; `tests/test_access.py` walks every route as everybody."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, SQLColumnExpression, and_, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from models.comment import Comment
from models.feed import Feed
from models.user import User
from services.errors import Forbidden, NotAuthenticated

ACCOUNT_GONE = "The account of this access token no longer exists."
_leaver = aliased(User)
_LEAVERS = select(_leaver.id).where(_leaver.leaving_dt.is_not(None)).correlate(None)


def is_here(user_id: SQLColumnExpression[Any]) -> ColumnElement[bool]:
    """That somebody has not left; what is theirs may still be erased then, but nobody sees it.

    Few are leaving at a time: they are looked up once, and a statement is planned as without this.
    """
    return user_id.not_in(_LEAVERS)


_HERE = (
    select(User.id)
    .where(User.id == bindparam("user_id", type_=BigInteger), User.leaving_dt.is_(None))
    .with_for_update(read=True, key_share=True)
)
FEED_KEPT = and_(Feed.deleted_dt.is_(None), is_here(Feed.author_id))
COMMENT_KEPT = and_(Comment.deleted_dt.is_(None), is_here(Comment.author_id))


async def require_here(db: AsyncSession, user: User) -> None:
    """Raise NotAuthenticated if the account is gone; it stays until the transaction ends.

    Asked by whoever writes a row of the user's own, after the locks on what that row is about. The
    lock is a foreign key's, in nobody's way but of who leaves.
    """
    if await db.scalar(_HERE, {"user_id": user.id}) is None:
        raise NotAuthenticated(ACCOUNT_GONE)


def require_own(user: User, owner_id: int | None) -> None:
    """Raise Forbidden unless it is theirs: nobody speaks in another's name."""
    if owner_id != user.id:
        raise Forbidden


def require_deletable(user: User, owner_id: int | None) -> None:
    """Raise Forbidden unless it is theirs, or they are an administrator, who keeps the house."""
    if owner_id != user.id and not user.is_admin:
        raise Forbidden
