"""What `feedboard images move` does and says."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.filesize import decimal

from app.backing_up import explained
from app.parts import open_parts
from app.progress import bar
from config.db import open_engine, session_factory
from config.places import board_place, other_board
from config.s3 import open_s3, require_bucket
from config.settings import Settings, SettingsError
from services.backups.copying import Watch
from services.backups.moving import Move, Pass

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


async def relocate(settings: Settings, to: str | None, from_: str | None, *, follow: bool) -> None:
    """Copy to or from another bucket; raises SettingsError, and typer.Exit(1) if any are missing.

    With `follow`, it goes on until it is cancelled.
    """
    where = to or from_
    if where is None or (to and from_):
        raise SettingsError("Name one bucket: --to s3://bucket, or --from s3://bucket.")
    async with open_parts(settings, share=True) as board:
        other = other_board(where, board)
        if _identity(other) == _identity(board):
            raise SettingsError(f"{where} is the board's own bucket already.")
        source, target = (board, other) if to else (other, board)
        async with _moving(board, source, target) as (move, watch):
            found = await move.settle(watch)
            _say(found)
            if to:
                how = _how_to_go_over(board, other, embedded=settings.embeds_store)
                out.print(how, markup=False)
            if follow:
                found = await _follow(move, watch)
    if found.missing:
        raise typer.Exit(1)


@asynccontextmanager
async def _moving(
    board: Settings, source: Settings, target: Settings
) -> AsyncGenerator[tuple[Move, Watch]]:
    async with open_s3(target) as s3:
        await require_bucket(s3, target)
    async with open_engine(board) as engine, session_factory(engine)() as db:
        with explained(), bar("Copying") as watch:
            move = Move(db, board_place(source), board_place(target))
            await move.begin(watch)
            yield move, watch


async def _follow(move: Move, watch: Watch) -> Pass:
    """Copy what comes until Ctrl-C, and then once more; gives how it is at the end."""
    try:
        while True:
            began = time.monotonic()
            _say(await move.settle(watch), only_news=True)
            # A large table is not read again and again without a pause.
            await asyncio.sleep(max(1.0, time.monotonic() - began))
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
    found = await move.settle(watch)
    _say(found)
    return found


def _say(found: Pass, *, only_news: bool = False) -> None:
    if only_news and not (found.copied or found.deleted):
        return
    said = f"{found.copied:,} objects ({decimal(found.bytes)}) were copied"
    said += f", {found.deleted:,} deleted again" if found.deleted else ""
    out.print(f"{said}; all others were there." if not found.missing else f"{said}.")
    if found.missing:
        err.print(
            f"{len(found.missing):,} are in neither bucket, such as {min(found.missing)}; "
            "`feedboard images fsck` names them all.",
            markup=False,
        )


def _identity(settings: Settings) -> tuple[str | None, ...]:
    return settings.s3_endpoint_url, settings.s3_bucket, settings.s3_key_prefix


_STORE = "s3_endpoint_url", "s3_region", "s3_access_key", "s3_secret_key"
_PLACE = "s3_bucket", "s3_key_prefix"


def _how_to_go_over(old: Settings, new: Settings, *, embedded: bool) -> str:
    """What to set, and what to run."""
    lines = ["To go over, set", *_assigned("", old, new, *_PLACE, *_STORE)]
    public = [name for name in ("s3_public_url", "s3_upload_url") if getattr(old, name)]
    lines += [f"  {name.upper()}=(where clients reach the new bucket)" for name in public]
    if embedded:
        lines += ["The embedded store does not run any more with these: stop the service, run this"]
        lines += ["command once more, set them, and start it again."]
        return "\n".join(lines)
    if back := _assigned("OTHER_", new, old, *_STORE):
        lines += ["and, for the way from the old bucket,", *back]
    folder = f"/{old.s3_key_prefix}" if old.s3_key_prefix else ""
    lines += ["Restart the service; then fetch what was uploaded until it had stopped:"]
    lines += [f"  feedboard images move --from s3://{old.s3_bucket}{folder}"]
    return "\n".join(lines)


def _assigned(prefix: str, before: Settings, after: Settings, *names: str) -> list[str]:
    """The settings that differ, as they are to be afterwards; but no secret."""
    other = "" if prefix else "OTHER_"

    def shown(name: str) -> str:
        value = getattr(after, name)
        if isinstance(value, SecretStr):
            return f"(what {other}{name.upper()} is now)"
        return value or ""

    differ = [name for name in names if getattr(after, name) != getattr(before, name)]
    return [f"  {prefix}{name.upper()}={shown(name)}" for name in differ]
