"""A backup brought back into an instance that has nothing in it, or looked through for damage.

Objects come first, and the database last, in one transaction: so an instance has all of it or is
still empty, and a restore that was interrupted can be run again.
"""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import ObjectStore
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import Table

import migrations
from config.dumps import DumpFailed, Programs
from config.settings import SettingsError
from models import metadata
from models.image import Image, ImageState
from services.backups import layout
from services.backups.copying import Damaged, Reading, Watch, copy, read, told
from services.backups.layout import LISTED, Entry, Manifest
from services.several import batches, each
from services.store import CACHE_CONTROL, INCOMING, SHOWN

_VERSION = "alembic_version"
# What a missing or damaged file of a backup raises, whatever its place.
_Broken = (Damaged, DumpFailed, BaseError, OSError)


async def verify(
    place: ObjectStore, programs: Programs, name: str | None, watch: Watch
) -> AsyncGenerator[str]:
    """Read all of a backup; gives a sentence for each thing that is wrong. Raises SettingsError."""
    try:
        manifest = await layout.choose(place, name)
    except Damaged as error:
        yield f"{error}."
        return
    watch.expect(manifest.objects, manifest.size)
    named: set[str] = set()
    whole = True

    async def one(entry: Entry) -> str | None:
        watch.advance(1, entry.size)
        return await _fault(place, entry)

    for file in manifest.lists:
        try:
            listed = await layout.listed(place, manifest.name, file)
        except _Broken as error:
            yield _sentence(layout.path_of(manifest.name, file.name), error)
            whole = False
            continue
        named.update(entry.key for entry in listed)
        for fault in await each(one, listed):
            if fault is not None:
                yield fault
    async for fault in _faults_of_dump(place, programs, manifest, named if whole else None):
        yield fault


async def _fault(place: ObjectStore, entry: Entry) -> str | None:
    """What is wrong with an object of a backup."""
    if entry.sha256 is None:
        return f"{entry.path} was missing in the bucket already when the backup was made."
    try:
        found = await read(place, entry.path)
    except _Broken as error:
        return _sentence(entry.path, error)
    if (found.size, found.sha256) != (entry.size, entry.sha256):
        return f"{entry.path} is damaged."
    return None


async def _faults_of_dump(
    place: ObjectStore, programs: Programs, manifest: Manifest, named: set[str] | None
) -> AsyncGenerator[str]:
    path = layout.path_of(manifest.name, manifest.dump.name)
    try:
        async with _fetched(place, manifest) as dump:
            await programs.check(dump)
            if named is not None and named != await _keys(programs, dump):
                yield f"{path} and the lists beside it do not name the same objects."
    except _Broken as error:
        yield _sentence(path, error)


def _sentence(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} is missing."
    if isinstance(error, Damaged):
        return f"{error}."
    return f"{path} cannot be read ({told(error)})."


async def _keys(programs: Programs, dump: Path) -> set[str]:
    """The objects that a dump names, out of its rows of the table of images."""
    keys, columns, rest = set(), None, b""
    async with aclosing(programs.rows(dump, Image.__tablename__)) as pieces:
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"COPY "):
                    listed = line[line.index(b"(") + 1 : line.index(b")")].decode()
                    columns = [column.strip(' "') for column in listed.split(",")]
                elif line == b"\\.":
                    columns = None
                elif columns is not None:
                    row = dict(zip(columns, line.decode().split("\t"), strict=True))
                    pending = row["state"] == ImageState.PENDING and row["stored"] == "t"
                    if pending or row["state"] == ImageState.ATTACHED:
                        keys.add(row["key"])
    return keys


@asynccontextmanager
async def _fetched(place: ObjectStore, manifest: Manifest) -> AsyncGenerator[Path]:
    """Lend a dump as a file on disk, once it is known to be whole; raises Damaged."""
    path = layout.path_of(manifest.name, manifest.dump.name)
    with tempfile.NamedTemporaryFile(prefix="feedboard-", suffix=".dump") as file:
        reading = await Reading(place, path).open()
        async for piece in reading.pieces(manifest.dump.sha256):
            file.write(piece)
        file.flush()
        yield Path(file.name)


class Restore:
    """One restore: out of a place, into a database and a bucket with nothing in them."""

    def __init__(
        self, engine: AsyncEngine, programs: Programs, bucket: ObjectStore, place: ObjectStore
    ) -> None:
        self._engine, self._programs = engine, programs
        self._bucket, self._place = bucket, place
        # What an earlier restore of the same backup has put there.
        self._there: dict[str, int] = {}

    async def run(self, name: str | None, watch: Watch) -> Manifest:
        """Bring a backup back; raises SettingsError if something is in the way.

        Also Damaged, DumpFailed, `DatabaseError` and `PlaceError`; the database is empty then.
        """
        manifest = await layout.choose(self._place, name)
        if manifest.revision > migrations.newest():
            raise SettingsError(
                f"The backup is of a newer Feedboard ({manifest.feedboard}); install that one."
            )
        watch.expect(manifest.objects, manifest.size)
        async with self._engine.connect() as connection:
            tables = await connection.run_sync(_require_empty)
        await self._require_own(manifest)
        async with _fetched(self._place, manifest) as dump:
            await self._programs.check(dump)
            await self._copy_all(manifest, watch)
            drop = [f"DROP TABLE public.{', public.'.join(tables)}"] if tables else []
            await self._programs.load(dump, before=[*_still_empty(tables), *drop], after=_TIDY)
        await migrations.upgrade(self._engine)
        return manifest

    async def _require_own(self, manifest: Manifest) -> None:
        """See that the bucket has nothing but objects of this backup in it."""
        self._there = await layout.sizes(self._bucket, SHOWN, INCOMING)
        strangers = set(self._there)
        async for entry in layout.entries(self._place, manifest):
            strangers.discard(entry.key)
        if strangers:
            raise SettingsError(
                f"S3_BUCKET: the bucket has {len(strangers):,} objects in it that this backup does "
                f"not name, such as {min(strangers)}; restore into an empty one, or set "
                "S3_KEY_PREFIX to a folder that is."
            )

    async def _copy_all(self, manifest: Manifest, watch: Watch) -> None:
        """Copy all objects; raises Damaged, naming each that is missing or damaged."""

        async def one(entry: Entry) -> str | None:
            watch.advance(1, entry.size)
            return await self._copied(entry)

        faults: list[str] = []
        async for batch in batches(layout.entries(self._place, manifest), LISTED):
            faults += filter(None, await each(one, batch))
        if faults:
            raise Damaged("\n".join([*faults, "The database was not touched"]))

    async def _copied(self, entry: Entry) -> str | None:
        """See that an object is in the bucket; gives what is wrong with it in the backup."""
        if entry.sha256 is None:
            return None  # as it was on the board
        if self._there.get(entry.key) == entry.size:
            there = await read(self._bucket, entry.key)
            if there.sha256 == entry.sha256:
                return None
        try:
            await copy(
                self._place,
                entry.path,
                self._bucket,
                entry.key,
                sha256=entry.sha256,
                attributes={"Content-Type": entry.type, "Cache-Control": CACHE_CONTROL},
            )
        except (Damaged, FileNotFoundError) as error:
            return _sentence(entry.path, error)
        return None


def _require_empty(connection: Connection) -> list[str]:
    """The board's tables, which have to be empty; raises SettingsError if they are not."""
    there = set(inspect(connection).get_table_names(schema="public"))
    ours = [table for table in metadata.sorted_tables if table.name in there]
    if any(
        connection.execute(select(text("1")).select_from(table).limit(1)).first() for table in ours
    ):
        raise SettingsError(
            "DATABASE_URL: the database has a board in it already; restore into an empty one."
        )
    if strangers := there - {table.name for table in ours} - {_VERSION}:
        raise SettingsError(
            f"DATABASE_URL: the database has tables in it that are not a board's "
            f"({', '.join(sorted(strangers))}); restore into an empty one."
        )
    return [_name(table) for table in reversed(ours)] + [_VERSION] * (_VERSION in there)


def _name(table: Table) -> str:
    return f'"{table.name}"'


def _still_empty(tables: list[str]) -> list[str]:
    """What fails if somebody has signed up meanwhile, as all rows hang on users."""
    if '"users"' not in tables:
        return []
    return [
        "LOCK TABLE public.users IN ACCESS EXCLUSIVE MODE",
        "DO $$ BEGIN IF EXISTS (SELECT FROM public.users) THEN "
        "RAISE 'somebody has signed up; stop the service first'; END IF; END $$",
    ]


# What was to be deleted has no object here; what waited for a feed, or was on its way, waits for
# its hour once more, and is then the reaper's.
_TIDY = (
    "DELETE FROM public.images WHERE state = 'condemned' AND reap_dt <= now()",
    "UPDATE public.images SET reap_dt = greatest(reap_dt, now() + interval '1 hour') "
    "WHERE state IN ('pending', 'incoming')",
)
