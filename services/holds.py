"""Holds: while a backup is made, nobody deletes an object that it names.

A backup names the objects that its snapshot of the database names, and copies them long after that
snapshot was taken. Meanwhile their rows may be condemned, but not their objects deleted.

The backup takes an advisory lock first, waits for all who have a share in it, and only then takes
its snapshot. Whoever condemns an image takes a share in the same transaction (`FREE`), without
waiting for it, and deletes the object after that transaction. There are two cases. They got the
share: then the backup waited for their commit (a transaction is seen to be over before its locks
are free), so that its snapshot shows the row as condemned, and does not name it. They did not get
it: then a backup is under way, or about to begin, and they leave row and object to the reaper. He
asks in the statement that claims rows which were condemned before, so the same holds for him.

Rows are no way around that: one that is condemned goes after its object. Nor are objects under
other rows: those that are pending and not stored, incoming, or condemned, no backup names.

The lock belongs to a transaction, so that it is free again whatever becomes of the backup, and so
that it holds through a pooler of transactions. Such a transaction, which has neither written nor
read, does not keep the database from cleaning up.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from config.db import DatabaseError
from config.settings import SettingsError

# Any numbers will do that nobody else uses for an advisory lock in the same database.
_OBJECTS, _BACKUP = 0x66656564686F6C64, 0x666565646261636B
# Whether objects may be deleted: of a statement, in the transaction that condemns their rows.
FREE = select(func.pg_try_advisory_xact_lock_shared(_OBJECTS)).scalar_subquery()
# Seconds between signs of life, for what stands between here and the database.
_PULSE = 30.0


class Hold:
    """The lock, for as long as its connection lives."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()

    async def confirm(self) -> None:
        """See that nothing was let go; raises SettingsError if it was."""
        try:
            async with self._turn:
                await self._connection.execute(select(1))
        except DatabaseError as error:
            raise SettingsError(
                "The connection to the database was lost, and with it the hold on the images; "
                "run the command again, it goes on where it was."
            ) from error

    async def live(self) -> None:
        """Give signs of life until the connection is lost, which `confirm` will say."""
        with suppress(SettingsError):
            while True:
                await asyncio.sleep(_PULSE)
                await self.confirm()


@asynccontextmanager
async def hold(engine: AsyncEngine) -> AsyncGenerator[Hold]:
    """Let no object be deleted that a snapshot names which is taken inside.

    Raises SettingsError if another backup is under way.
    """
    async with engine.connect() as connection, connection.begin():
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        if not await connection.scalar(select(func.pg_try_advisory_xact_lock(_BACKUP))):
            raise SettingsError("Another backup of this board is under way; wait for its end.")
        await connection.execute(select(func.pg_advisory_xact_lock(_OBJECTS)))
        held = Hold(connection)
        living = asyncio.create_task(held.live())
        try:
            yield held
        finally:
            living.cancel()
            await asyncio.wait([living])


async def is_free(db: AsyncSession) -> bool:
    """Whether an object may be deleted whose row was condemned, or went, before this was asked."""
    async with db.begin():
        return bool(await db.scalar(select(FREE)))
