"""The schema's history, and the one way in which it is applied.

Alembic is imported where something is to be done, which is seldom: it takes a twentieth of the
start, and 9 MB.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from config.settings import SettingsError

if TYPE_CHECKING:
    from alembic.config import Config

# Any number will do that nobody else uses for an advisory lock in the same database.
_LOCK = 0x66656564626F6172
_FOLDER = Path(__file__).parent


async def upgrade(engine: AsyncEngine) -> bool:
    """Bring the schema to the newest revision; False when it was there already.

    One process at a time does it: others wait for the lock and then find nothing to do.
    """
    async with engine.connect() as connection, connection.begin():
        # Held by the transaction, so it is free again whatever happens to this process.
        await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        return await connection.run_sync(_upgrade)


def newest() -> str:
    """The newest revision that there is; each file is named by its own."""
    return max(path.stem.partition("_")[0] for path in _FOLDER.glob("versions/[0-9]*.py"))


def config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration, for the package's own folder, wherever it is installed."""
    from alembic.config import Config

    settings = Config(attributes={"connection": connection})
    settings.set_main_option("script_location", str(_FOLDER))
    return settings


def _upgrade(connection: Connection) -> bool:
    if current(connection) == newest():
        return False

    from alembic import command
    from alembic.util.exc import CommandError

    try:
        command.upgrade(config(connection), "head")
    except CommandError as error:
        raise SettingsError(
            f"DATABASE_URL: the database is of a newer Feedboard than this one ({error}); upgrade."
        ) from error
    return True


def current(connection: Connection) -> str | None:
    """The revision that a database is at; None: it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found
