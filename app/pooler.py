"""What `feedboard doctor` looks at behind a pooler: whether the way past it leads to the same."""

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.checks import SECONDS, Examination, Found, Level
from config.db import open_engine
from config.settings import Settings

_WHERE = text("SELECT current_database(), pg_postmaster_start_time()")


async def examine(settings: Settings) -> Examination:
    if settings.database_direct_url is None:
        return
    found = []
    try:
        for way in (settings, settings.direct):
            async with open_engine(way, patience=SECONDS) as engine, engine.connect() as db:
                found.append((await db.execute(_WHERE)).one())
    except (DBAPIError, OSError) as error:
        why = f"not both ways can be used: {getattr(error, 'orig', None) or error}"
        yield Found("direct", Level.FAILED, why, "Check DATABASE_DIRECT_URL and DATABASE_URL.")
        return
    if found[0] == found[1]:
        yield Found("direct", Level.OK, "the way past the pooler leads to the same database")
    else:
        do = "Let DATABASE_DIRECT_URL name the database that the pooler leads to."
        yield Found("direct", Level.FAILED, "past the pooler there is another database", do)
