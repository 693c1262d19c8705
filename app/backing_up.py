"""What `feedboard backup` and `feedboard restore` do and say."""

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager

import typer
from rich.console import Console
from rich.filesize import decimal
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.parts import open_parts
from app.progress import bar
from config.db import open_engine
from config.dumps import DumpFailed, Programs, find_programs
from config.places import board_place, open_place
from config.s3 import open_s3, require_bucket
from config.settings import Settings, SettingsError
from services.backups import restore
from services.backups.backup import Backup
from services.backups.copying import Damaged, PlaceError, told

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


async def back_up(settings: Settings, where: str, *, keep: int | None) -> None:
    """Make a backup; raises SettingsError, and typer.Exit(1) if images were missing."""
    # There are addresses in it, and hashes of passwords: what is written is nobody else's to read.
    os.umask(0o077)
    place = open_place(where, settings, make=True)
    async with open_parts(settings, share=True) as complete, _open(complete) as (engine, programs):
        with explained(), bar("Backing up") as watch:
            backup = Backup(engine, programs, board_place(complete), place)
            made = await backup.make(watch, keep=keep)
    out.print(
        f"Backup {made.name}: {made.objects:,} images ({decimal(made.size)}), of which "
        f"{backup.copied:,} were new; database {decimal(made.dump.size)}."
    )
    if made.missing:
        err.print(
            f"{made.missing:,} of the images are missing in the bucket; the log names them, and "
            "so does `feedboard images fsck`."
        )
        raise typer.Exit(1)


async def bring_back(settings: Settings, where: str, name: str | None) -> None:
    """Restore a backup; raises SettingsError."""
    place = open_place(where, settings)
    async with open_parts(settings) as complete, _open(complete) as (engine, programs):
        async with open_s3(complete) as s3:
            await require_bucket(s3, complete)
        with explained(), bar("Restoring") as watch:
            bringing = restore.Restore(engine, programs, board_place(complete), place)
            done = await bringing.run(name, watch)
    out.print(
        f"Backup {done.name} is restored: {done.objects - done.missing:,} images "
        f"({decimal(done.size)}). The service can be started."
    )


async def look_through(settings: Settings, where: str, name: str | None) -> None:
    """Verify a backup; raises SettingsError, and typer.Exit(1) if something is broken."""
    place = open_place(where, settings)
    programs = await find_programs(settings)
    broken = 0
    with explained(), bar("Verifying") as watch:
        async with aclosing(restore.verify(place, programs, name, watch)) as faults:
            async for fault in faults:
                broken += 1
                # A key may be anything, even what moves a terminal's cursor.
                out.print(fault if fault.isprintable() else ascii(fault), markup=False)
    if broken:
        raise typer.Exit(1)
    out.print("All of it is there, and whole.")


@asynccontextmanager
async def _open(settings: Settings) -> AsyncGenerator[tuple[AsyncEngine, Programs]]:
    """The database, past a pooler where there is a way, and programs that are new enough for it."""
    settings = settings.direct
    # One connection holds the images while the other reads the table.
    enough = settings.replace(database_pool_size=2)
    async with open_engine(enough, patience=None) as engine:
        async with engine.connect() as connection:
            server = int(await connection.scalar(text("SHOW server_version_num")) or 0)
        yield engine, await find_programs(settings, server=server // 10_000)


@contextmanager
def explained() -> Generator[None]:
    """Turn what may go wrong with places and programs into SettingsError."""
    try:
        yield
    except asyncio.CancelledError:
        err.print("Stopped before the end; run it again, and it goes on where it was.")
        raise typer.Exit(1) from None
    except Damaged as error:
        raise SettingsError(f"{error}.") from error
    except DumpFailed as error:
        raise SettingsError(f"The database could not be copied: {error}") from error
    except PlaceError as error:
        raise SettingsError(
            f"The objects cannot be copied ({told(error)}); "
            "run it again, and it goes on where it was."
        ) from error
