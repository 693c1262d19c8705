"""Links: made when their mail goes, known by their hashes alone, good once and not for long."""

import hashlib
import secrets

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW
from models.link import Link, LinkKind
from models.user import User
from services.errors import LinkNotFound


async def issue(db: AsyncSession, user: User, kind: LinkKind) -> str:
    """Make a link for a user, inside the caller's transaction; gives its token."""
    token = secrets.token_urlsafe(32)
    db.add(Link(user_id=user.id, kind=kind, token_hash=_hash(token), expires_dt=NOW + kind.life))
    await db.flush()
    return token


async def owner(db: AsyncSession, kind: LinkKind, token: str) -> User:
    """Whose link it is, inside the caller's transaction; raises LinkNotFound."""
    found = select(User).join(Link, Link.user_id == User.id).where(*_good(kind, token))
    if (user := await db.scalar(found)) is None:
        raise LinkNotFound
    return user


async def use(db: AsyncSession, kind: LinkKind, token: str) -> int:
    """Use up a link, inside the caller's transaction; gives its user's id, raises LinkNotFound.

    Of two who come with it at once, one waits for the other's row, and finds it gone.
    """
    used = delete(Link).where(*_good(kind, token)).returning(Link.user_id)
    if (user_id := await db.scalar(used)) is None:
        raise LinkNotFound
    await void(db, user_id, kind)
    return user_id


async def void(db: AsyncSession, user_id: int, kind: LinkKind | None = None) -> None:
    """Void a user's links, inside the caller's transaction; without a kind all of them, as a change
    of the e-mail address has to. A deleted account takes its links with it by itself."""
    kinds = [kind] if kind else list(LinkKind)
    await db.execute(delete(Link).where(Link.user_id == user_id, Link.kind.in_(kinds)))


async def forget(db: AsyncSession) -> None:
    """Delete what has expired."""
    async with db.begin():
        old = select(Link.id).where(Link.expires_dt <= NOW).with_for_update(skip_locked=True)
        await db.execute(delete(Link).where(Link.id.in_(old)))


def _good(kind: LinkKind, token: str) -> tuple[ColumnElement[bool], ...]:
    return (Link.token_hash == _hash(token), Link.kind == kind, Link.expires_dt > NOW)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
