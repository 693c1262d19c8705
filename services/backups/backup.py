"""A backup while the service runs: the database as one snapshot shows it, and the objects that it
names (`holds` says why these stay)."""

import hashlib
import json
import os
import tempfile
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from importlib.metadata import version
from typing import IO

import structlog
from anyio import to_thread
from obstore.store import LocalStore, ObjectStore
from sqlalchemy import and_, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

import migrations
from config.dumps import Programs
from config.settings import SettingsError
from models.image import Image, ImageState
from services.backups import layout
from services.backups.copying import Damaged, Watch, copy, read, told
from services.backups.layout import (
    DUMP,
    LIST,
    LISTED,
    MANIFEST,
    SHOWN_OBJECTS,
    Entry,
    File,
    Manifest,
)
from services.holds import Hold, hold
from services.several import batches, each

log = structlog.get_logger()

# Of a dump, which may become larger than ten thousand of any smaller ones (S3 API, "Multipart
# upload limits": 320 GB).
_PART = 32 * 1024 * 1024
# What has an object: the rest is on its way, or will go.
KEPT = or_(
    Image.state == ImageState.ATTACHED, and_(Image.state == ImageState.PENDING, Image.stored)
)
_OBJECTS = select(Image.key, Image.content_type, Image.bytes).where(KEPT).order_by(Image.key)
_TOTAL = select(func.count(), func.coalesce(func.sum(Image.bytes), 0)).where(KEPT)


class Backup:
    """One backup: of a database and a bucket, into a place."""

    def __init__(
        self, engine: AsyncEngine, programs: Programs, bucket: ObjectStore, place: ObjectStore
    ) -> None:
        self._engine, self._programs = engine, programs
        self._bucket, self._place = bucket, place
        self._create_dt = datetime.now(UTC)
        self.name = f"{self._create_dt:%Y%m%dT%H%M%SZ}"
        # Objects that were not there.
        self.copied = 0
        # Of objects in the place: the size, and the checksum where it is known.
        self._there: dict[str, tuple[int, bytes | None]] = {}

    async def make(self, watch: Watch, *, keep: int | None = None) -> Manifest:
        """Write the backup; then forget those that were not finished, and all but `keep`.

        Raises SettingsError, Damaged, DumpFailed, `DatabaseError` and `PlaceError`; the next one
        goes on where this one was.
        """
        async with hold(self._engine) as held:
            if self.name in await layout.names(self._place):
                raise SettingsError(f"There is a backup {self.name} already; try again.")
            await self._look_around()
            with tempfile.TemporaryFile("w+") as wanted:
                revision, dump = await self._dump(wanted, watch)
                wanted.seek(0)
                lists, totals = await self._copy_all(wanted, held, watch)
            manifest = Manifest(
                name=self.name,
                create_dt=self._create_dt,
                feedboard=version("feedboard"),
                revision=revision,
                dump=dump,
                lists=lists,
                **totals,
            )
            if isinstance(self._place, LocalStore):
                # A rename says nothing of whether the bytes have arrived.
                await to_thread.run_sync(os.sync)
            await held.confirm()
            await layout.put(self._place, self.name, MANIFEST, manifest.sealed())
            await thin_out(self._place, keep=keep)
        return manifest

    async def _look_around(self) -> None:
        """Learn what is in the place, and what is known of it.

        For a million objects that takes 350 MB.
        """
        there = await layout.sizes(self._place, SHOWN_OBJECTS)
        self._there = {path: (size, None) for path, size in there.items()}
        newest, since = await layout.newest(self._place), await layout.names(self._place)
        for name in since if newest is None else since[since.index(newest) :]:
            try:
                async for entry in layout.copied_before(self._place, name):
                    size, _ = self._there.get(entry.path, (None, None))
                    if entry.sha256 and size == entry.size:
                        self._there[entry.path] = size, bytes.fromhex(entry.sha256)
            except Damaged as error:
                # What it names is read instead, to be summed up anew.
                log.warning("a list of an earlier backup cannot be read", error=str(error))

    async def _dump(self, wanted: IO[str], watch: Watch) -> tuple[str, File]:
        """Dump the database, and write down the objects that it names; gives its revision."""
        async with self._engine.connect() as connection:
            await connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            async with connection.begin():
                # It waits for pg_dump.
                await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                snapshot = await connection.scalar(select(func.pg_export_snapshot()))
                revision = await connection.run_sync(migrations.current)
                if revision is None:
                    raise SettingsError("The database has no board in it; nothing was backed up.")
                watch.expect(*(await connection.execute(_TOTAL)).one())
                await _write_down(connection, wanted)
                return revision, await self._put_dump(str(snapshot))

    async def _put_dump(self, snapshot: str) -> File:
        size, digest = 0, hashlib.sha256()

        async def summed_up() -> AsyncGenerator[bytes]:
            nonlocal size
            async with aclosing(self._programs.dump(snapshot)) as dumping:
                async for piece in dumping:
                    size += len(piece)
                    digest.update(piece)
                    yield piece

        path = layout.path_of(self.name, DUMP)
        async with aclosing(summed_up()) as dump:
            await self._place.put_async(path, dump, chunk_size=_PART, max_concurrency=2)
        return File(name=DUMP, size=size, sha256=digest.hexdigest())

    async def _copy_all(
        self, wanted: IO[str], held: Hold, watch: Watch
    ) -> tuple[tuple[File, ...], dict[str, int]]:
        """Copy what is wanted and not there; gives the lists, and what they add up to."""
        lists: list[File] = []
        totals = {"objects": 0, "size": 0, "missing": 0}

        async def one(entry: Entry) -> Entry:
            copied = await self._copied(entry)
            watch.advance(1, entry.size)
            return copied

        async for batch in batches(_entries(wanted), LISTED):
            copied = await each(one, batch)
            await held.confirm()
            text = b"".join(json.dumps(entry).encode() + b"\n" for entry in copied)
            file = LIST.format(len(lists) + 1)
            lists.append(await layout.put(self._place, self.name, file, text))
            totals["objects"] += len(copied)
            totals["size"] += sum(entry.size for entry in copied if entry.sha256)
            totals["missing"] += sum(entry.sha256 is None for entry in copied)
        return tuple(lists), totals

    async def _copied(self, entry: Entry) -> Entry:
        """See that an object is in the place, whole; gives it with its checksum."""
        size, known = self._there.get(entry.path, (None, None))
        if size is not None and known is not None:
            return entry._replace(size=size, sha256=known.hex())
        if size == entry.size:
            # Whole, as places write whole objects or none; but nobody lived to note its checksum.
            return entry._replace(sha256=(await read(self._place, entry.path)).sha256)
        try:
            found, _ = await copy(self._bucket, entry.key, self._place, entry.path)
        except FileNotFoundError:
            log.error("an image is missing in the bucket", key=entry.key)
            return entry
        self.copied += 1
        return entry._replace(size=found.size, sha256=found.sha256)


async def _write_down(connection: AsyncConnection, wanted: IO[str]) -> None:
    async with connection.stream(_OBJECTS) as rows:
        async for row in rows:
            wanted.write(json.dumps([*row, None]) + "\n")


async def _entries(lines: Iterable[str]) -> AsyncGenerator[Entry]:
    for line in lines:
        yield Entry(*json.loads(line))


async def thin_out(place: ObjectStore, *, keep: int | None = None) -> None:
    """Forget backups that were not finished; with `keep`, also all but the newest so many.

    Then no object is left that none of these names. Raises Damaged, and deletes no object, if one
    that is kept does not say what it names.
    """
    there = await layout.names(place)
    finished = [name for name in there if await layout.is_finished(place, name)]
    kept = finished if keep is None else finished[-keep:]
    for name in there:
        if name not in kept:
            # The manifest first: what is half deleted is no backup.
            files = await layout.sizes(place, layout.path_of(name, ""))
            for path in sorted(files, key=lambda path: not path.endswith(MANIFEST)):
                await place.delete_async(path)
    if keep is None:
        return
    unnamed = set(await layout.sizes(place, SHOWN_OBJECTS))
    for name in kept:
        try:
            async for entry in layout.entries(place, await layout.manifest(place, name)):
                unnamed.discard(entry.path)
        except (Damaged, FileNotFoundError) as error:
            raise Damaged(
                f"No image was deleted from this place, as nobody knows what backup {name} names; "
                f"if it cannot be mended, delete its folder ({told(error)})"
            ) from error
    paths = sorted(unnamed)
    for start in range(0, len(paths), LISTED):
        await place.delete_async(paths[start : start + LISTED])
