"""A stand-in for the sessions of a user, which another part of this work brings; to be replaced."""

from sqlalchemy.ext.asyncio import AsyncSession


async def end_all(db: AsyncSession, user_id: int, *, but: int | None = None) -> None:
    """End all sessions of a user, `but` one, inside the caller's transaction: here, nothing."""
