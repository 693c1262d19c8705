"""Health: whether the parts that the service needs answer."""

import asyncio
from collections.abc import Awaitable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.store import ImageStore

PATIENCE = 3.0


async def failing(db: AsyncSession, images: ImageStore) -> dict[str, str]:
    """Ask the database and the bucket at the same time; gives what failed, by part, and why."""
    answers = await asyncio.gather(_ask(_select_one(db)), _ask(images.head()))
    parts = zip(("database", "bucket"), answers, strict=True)
    return {part: error for part, error in parts if error is not None}


async def _select_one(db: AsyncSession) -> None:
    async with db.begin():
        await db.execute(text("SELECT 1"))


async def _ask(question: Awaitable[None]) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE):
            await question
    except TimeoutError:
        return f"no answer within {PATIENCE:g} s"
    except Exception as error:
        # Whatever is wrong, the answer is "not ready"; the first line says enough and leaks little.
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None
