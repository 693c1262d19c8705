"""Purges: what is over is removed batch after batch, and nobody waits long for one."""

from sqlalchemy import Delete, Update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute


async def purge(
    db: AsyncSession, statement: Delete | Update, id_: InstrumentedAttribute[int]
) -> int:
    """Carry out a statement, which is of some rows at most, until it finds none; gives how many
    it found. Each time is a transaction of its own."""
    total, done = 0, 1
    while done:
        async with db.begin():
            done = len((await db.scalars(statement.returning(id_))).all())
        total += done
    return total
