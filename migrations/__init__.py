"""The schema's history, and the one way in which it is applied."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import SettingsError

# Any number will do that nobody else uses for an advisory lock in the same database.
_LOCK = 0x66656564626F6172


async def upgrade(engine: AsyncEngine) -> bool:
    """Bring the schema to the newest revision; False when it was there already.

    One process at a time does it: others wait for the lock and then find nothing to do.
    """
    async with engine.connect() as connection, connection.begin():
        # Held by the transaction, so it is free again whatever happens to this process.
        await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        return await connection.run_sync(_upgrade)


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, for the package's own folder, wherever it is installed."""
    settings = Config(attributes={"connection": connection})
    settings.set_main_option("script_location", str(Path(__file__).parent))
    return settings


def _upgrade(connection: Connection) -> bool:
    settings = config(connection)
    newest = ScriptDirectory.from_config(settings).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() == newest:
        return False
    try:
        command.upgrade(settings, "head")
    except CommandError as error:
        raise SettingsError(
            f"DATABASE_URL: the database is of a newer Feedboard than this one ({error}); upgrade."
        ) from error
    return True
