"""What `feedboard import` and `feedboard export` do and say."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from obstore.exceptions import BaseError
from obstore.store import ObjectStore
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

import migrations
from app.capabilities import Capabilities, open_capabilities, prepare
from app.parts import open_parts
from app.progress import counted
from config.db import open_engine
from config.places import board_place, open_place
from config.settings import Settings, SettingsError
from config.values import DatabaseUrl
from models.imported import Kind
from services import board_export
from services.errors import StorageUnavailable
from services.importing import board
from services.importing.ancestor import Ancestor, Unreadable
from services.importing.arrival import Arrival
from services.importing.arrivals import BrokenRow, Degree, NoImages, Remark, Report, Source
from services.importing.book import open_book
from services.importing.folder import Folder, NoExport
from services.importing.people import AnotherBoard

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

# Remarks of a kind that a terminal shows.
SHOWN = 20
# What is given for the place of images that are to be left behind.
_NONE = "none"
# Of each board one import at a time; any number will do that nobody else uses there.
_LOCK = 0x66656564696D706F
# More than anybody keeps: quotas are for those who upload from now on.
_UNBOUNDED = 2**60


class MoveIn:
    """One import: its options, what it has to say, and where."""

    def __init__(self, name: str, *, dry_run: bool, strict: bool, report: Path | None) -> None:
        self._name = name
        self._dry_run = dry_run
        self._path = report
        self._file: IO[str] | None = None
        self._report = Report(self._note, strict=strict)
        self._remarks: dict[Kind, list[Remark]] = {kind: [] for kind in Kind}

    async def ancestor(self, settings: Settings, database: str, *, images: str, zone: str) -> None:
        """Take the ancestor in; raises SettingsError, saying what a person can do."""
        try:
            url = TypeAdapter(DatabaseUrl).validate_python(database)
            source = Ancestor(url, zone=ZoneInfo(zone))
        except ValidationError as error:
            raise SettingsError(f"--database: {error.errors()[0]['msg']}.") from None
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise SettingsError(f"--timezone: there is no {zone!r}; try Asia/Seoul.") from None
        async with self._board(settings) as (complete, able):
            place = None if images == _NONE else open_place(images, complete)
            async with source:
                await self._take(complete, able, place, source)

    async def folder(self, settings: Settings, where: str) -> None:
        """Take an export in; raises SettingsError, saying what a person can do."""
        async with self._board(settings) as (complete, able):
            place = open_place(where, complete)
            await self._take(complete, able, place, Folder(place))

    @asynccontextmanager
    async def _board(self, settings: Settings) -> AsyncGenerator[tuple[Settings, Capabilities]]:
        """This board, which no other import fills meanwhile."""
        with ExitStack() as opened:
            if self._path is not None:
                self._file = opened.enter_context(_written(self._path))
            async with open_parts(settings, share=True) as complete:
                await (_require_schema(complete) if self._dry_run else prepare(complete))
                generous = complete.replace(max_user_bytes=_UNBOUNDED)
                async with open_capabilities(generous) as able, _alone(complete):
                    with _said_to_a_person(self._name):
                        yield complete, able

    async def _take(
        self,
        settings: Settings,
        able: Capabilities,
        place: ObjectStore | None,
        source: Source,
    ) -> None:
        survey = await source.survey()
        async with able.sessions() as db:
            book = await open_book(
                db, self._name, last_feed=survey.last_feed, rehearsal=self._dry_run
            )
        arrival = Arrival(
            sessions=able.sessions,
            images=able.images,
            place=place,
            book=book,
            report=self._report,
            at_once=settings.image_workers,
            began=datetime.now(UTC),
        )
        counts = {kind.value: survey.counts.get(kind, 0) for kind in Kind}
        try:
            with counted(counts) as advance:
                await board.take(arrival, source, advance)
        finally:
            self._summarize()

    def _note(self, remark: Remark) -> None:
        if len(self._remarks[remark.kind]) < SHOWN:
            self._remarks[remark.kind].append(remark)
        if self._file is not None:
            told = {"kind": remark.kind, "id": remark.label, "degree": remark.degree}
            self._file.write(json.dumps(told | {"why": remark.why}) + "\n")

    def _summarize(self) -> None:
        report = self._report
        for kind, remarks in self._remarks.items():
            for remark in remarks:
                said = str(remark)
                # Another board's rows may hold anything, even what moves a terminal's cursor.
                out.print(said if said.isprintable() else ascii(said), markup=False)
            more = sum(report.said[kind, degree] for degree in Degree) - len(remarks)
            if more:
                where = f"{self._path} has all" if self._path else "--report FILE keeps all"
                out.print(f"… and {more:,} remarks more on {kind}; {where}.", markup=False)
        columns = (
            "What",
            "Taken",
            "Here already",
            "There twice",
            *(it.capitalize() for it in Degree),
        )
        table = Table(*columns, title="This would be taken:" if self._dry_run else None)
        for kind in Kind:
            counts = [counter[kind] for counter in (report.taken, report.known, report.twice)]
            counts += [report.said[kind, degree] for degree in Degree]
            table.add_row(kind.value, *(f"{count:,}" for count in counts))
        out.print(table)


async def move_out(settings: Settings, where: str) -> None:
    """Export the board; raises SettingsError, saying what a person can do."""
    async with open_parts(settings, share=True) as complete:
        # Hashes of passwords are for nobody else to read.
        os.umask(0o077)
        place = open_place(where, complete, make=True)
        async with open_engine(complete.direct, patience=None) as engine:
            counts = await board_export.survey(engine)
            try:
                with counted(counts) as advance:
                    told = await board_export.export(engine, board_place(complete), place, advance)
            except board_export.NotEmpty:
                raise SettingsError(f"{where} is not empty; name another folder.") from None
            except (BaseError, OSError) as error:
                raise SettingsError(f"{where}, or the bucket, cannot be used ({error}).") from error
    for name, file in told["files"].items():
        out.print(f"{file['records']:>10,}  {name}")
    out.print(f"{told['images']:>10,}  images/")
    for name in told["missing_images"]:
        out.print(f"{name} is not in the bucket.", markup=False)


async def _require_schema(settings: Settings) -> None:
    async with open_engine(settings.direct) as engine, engine.connect() as connection:
        if await connection.run_sync(migrations.current) != migrations.newest():
            raise SettingsError("The tables are not up to date; run `feedboard migrate` first.")


@asynccontextmanager
async def _alone(settings: Settings) -> AsyncGenerator[None]:
    """Have no other import under way at the same board; raises SettingsError if there is one."""
    async with (
        open_engine(settings.direct, patience=None) as engine,
        engine.connect() as connection,
        connection.begin(),
    ):
        # Of a transaction, so that it holds through a pooler, too.
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        if not await connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})")):
            raise SettingsError("Another import is under way; wait for its end.")
        yield


@contextmanager
def _said_to_a_person(name: str) -> Generator[None]:
    """Turn what may go wrong on the way into a sentence."""
    try:
        yield
    except BrokenRow as broken:
        raise SettingsError(f"Stopped, as --strict says. {broken}") from None
    except AnotherBoard:
        raise SettingsError(
            f"What was taken as {name!r} before is another board's; give this one a name with --as."
        ) from None
    except NoImages:
        raise SettingsError(
            "None of the first images is there: see that --images names the place where they lie, "
            f"or say `--images {_NONE}` to leave them behind."
        ) from None
    except NoExport as error:
        raise SettingsError(str(error)) from None
    except Unreadable as error:
        raise SettingsError(f"--database: the old database cannot be read ({error}).") from error
    except StorageUnavailable as error:
        raise SettingsError(
            f"S3_BUCKET: the image store is at fault ({error.__cause__ or error}); run this again, "
            "and it goes on from here."
        ) from error
    except BaseError as error:
        raise SettingsError(f"The old board's files cannot be read ({error}).") from error
    except asyncio.CancelledError:
        err.print("Stopped before the end; run this again, and it goes on from here.")
        raise


@contextmanager
def _written(path: Path) -> Generator[IO[str]]:
    try:
        # It names addresses.
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", 1)
    except OSError as error:
        raise SettingsError(f"--report: {path} cannot be written ({error.strerror}).") from error
    with file:
        yield file
