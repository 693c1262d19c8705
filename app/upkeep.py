"""What `feedboard images` does and says: the reaper at once, and the table against the bucket."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.capabilities import open_capabilities
from app.parts import open_parts
from app.progress import counted
from config.s3 import S3Error, open_s3
from config.settings import Settings, SettingsError
from services import fsck as checking
from services.bucket import Bucket
from services.fsck import Finding, Kind, Tally
from services.reaper import reap as reap_batch
from services.store import ImageStore

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Opened:
    settings: Settings
    db: AsyncSession
    images: ImageStore
    bucket: Bucket


@asynccontextmanager
async def _open(settings: Settings) -> AsyncGenerator[_Opened]:
    """Both sides of the ledger; raises SettingsError where one of them fails."""
    async with (
        open_parts(settings, share=True) as complete,
        open_capabilities(complete) as able,
        open_s3(complete) as s3,
        able.sessions() as db,
    ):
        try:
            yield _Opened(complete, db, able.images, Bucket(s3, complete))
        except OperationalError:
            raise
        except SQLAlchemyError as error:
            raise SettingsError(
                f"DATABASE_URL: the table cannot be read ({getattr(error, 'orig', error)}); "
                "`feedboard migrate` brings it up to date."
            ) from error
        except S3Error as error:
            raise SettingsError(
                f"S3_BUCKET: the bucket {complete.s3_bucket!r} cannot be used ({error})."
            ) from error


async def reap(settings: Settings) -> None:
    """Collect round after round; raises typer.Exit(1) when a deletion was not confirmed."""
    gone = left = 0
    async with _open(settings) as opened:
        while True:
            collected, refused = await reap_batch(opened.db, opened.images)
            gone, left = gone + collected, left + refused
            if not collected:
                break  # all is collected, or the store is down
    out.print(f"{_many(gone, 'object is', 'objects are')} gone.")
    if left:
        err.print(
            f"The store did not confirm {_many(left, 'deletion', 'deletions')}; "
            "the service, or this command in a few minutes, tries again."
        )
        raise typer.Exit(1)


class Check:
    """One run of fsck: its options, what it says, and how it ends."""

    exit_code = 2

    def __init__(self, *, deep: bool, repair: bool, force: bool, as_json: bool) -> None:
        self._deep = deep
        self._repair = repair
        self._force = force
        self._as_json = as_json

    async def run(self, settings: Settings) -> None:
        """Compare, and mend if asked to; raises SettingsError when it cannot be done."""
        try:
            async with _open(settings) as opened:
                if self._repair and not self._force:
                    await self._refuse_strangers(opened)
                tally = await self._compare(opened)
        except asyncio.CancelledError:
            err.print("Stopped before the end.")
            return
        self._summarize(tally)
        self.exit_code = 1 if tally.left else 0

    async def _refuse_strangers(self, opened: _Opened) -> None:
        """Raise SettingsError if most objects are unknown here: that is another board's bucket."""
        tally, strangers = Tally(), 0
        async with self._progress(opened, "Looking") as advance:
            async for finding in checking.survey(opened.db, opened.bucket, tally, advance=advance):
                strangers += (
                    finding.kind is Kind.ORPHAN
                    and (finding.age or 0) >= opened.images.grace.total_seconds()
                )
        if strangers * 2 > tally.objects:
            raise SettingsError(
                f"{strangers} of {tally.objects} objects have no row: do DATABASE_URL and "
                "S3_BUCKET belong together? Nothing was changed; --force deletes them all the same."
            )

    async def _compare(self, opened: _Opened) -> Tally:
        tally = Tally()
        async with self._progress(opened, "Comparing") as advance:
            async for finding in checking.survey(
                opened.db, opened.bucket, tally, deep=self._deep, advance=advance
            ):
                mended = self._repair and await checking.mend(
                    opened.db, opened.images, opened.bucket, finding
                )
                tally.mended[finding.kind] += mended
                self._report(finding, mended)
        return tally

    @asynccontextmanager
    async def _progress(
        self, opened: _Opened, what: str
    ) -> AsyncGenerator[Callable[[int], object]]:
        """A bar with as many objects to come as there are rows."""
        rows = await checking.count(opened.db)
        with counted({what: rows}, silent=self._as_json) as advance:
            yield partial(advance, what)

    def _report(self, finding: Finding, mended: bool) -> None:
        if self._as_json:
            _say_json(asdict(finding) | {"mended": mended})
        else:
            said = _SENTENCES[finding.kind].format(**asdict(finding), shown_by=finding.shown_by)
            said += " Mended." if mended else ""
            # A key may be anything, even what moves a terminal's cursor.
            out.print(said if said.isprintable() else ascii(said), markup=False)

    def _summarize(self, tally: Tally) -> None:
        if self._as_json:
            counts: dict[str, Any] = {
                name: {kind.value: counter[kind] for kind in Kind}
                for name, counter in (("found", tally.found), ("mended", tally.mended))
            }
            compared = {"objects": tally.objects, "rows": tally.rows}
            _say_json({"kind": "summary", **compared, **counts, "left": tally.left})
            return
        compared_both = (
            f"{_many(tally.rows, 'row', 'rows')} and {_many(tally.objects, 'object', 'objects')}"
        )
        if not tally.found:
            out.print(f"{compared_both}: nothing is wrong.")
            return
        table = Table("What", "Found", "Mended", title=compared_both)
        for kind in Kind:
            if tally.found[kind]:
                table.add_row(kind.value, str(tally.found[kind]), str(tally.mended[kind]))
        out.print(table)


_SENTENCES = {
    Kind.LOST: "lost: {shown_by} shows {key}, which is not in the bucket.",
    Kind.STALE: "stale: {key} has a row that nobody needs, long due, and no object.",
    Kind.ORPHAN: "orphan: {key} has no row; the object is {age:.0f} s old.",
    Kind.WRONG_SIZE: "wrong-size: {key} ({shown_by}) has {found} bytes, not {expected}.",
    Kind.WRONG_TYPE: "wrong-type: {key} ({shown_by}) is {found}, not {expected}.",
}


def _say_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document))


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
