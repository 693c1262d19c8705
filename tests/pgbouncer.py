"""Debian's PgBouncer in transaction mode, before a PostgreSQL that the tests use."""

import asyncio
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from configparser import ConfigParser
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGTERM

import psutil
from filelock import FileLock
from sqlalchemy.engine import URL, make_url

from app.servers import Server, running
from tests.conftest import own_folder
from tests.crash_parts import lasting_port

_ROOT = Path(__file__).parent.parent
_BUILD, _DOCUMENTED = _ROOT / "build", _ROOT / "docs" / "scaling.md"
_WITHOUT = "PgBouncer is not installed, and cannot be fetched: apt-get install pgbouncer"


@asynccontextmanager
async def pgbouncer(
    database_url: str, *, connections: int = 3, port: int = 0, **options: str | int
) -> AsyncGenerator[str]:
    """Lend the URL by which the database is reached through a pooler with so few connections."""
    program, libraries = await asyncio.to_thread(_program)
    behind, port = make_url(database_url), port or lasting_port()
    with own_folder() as above:
        folder = above / "pgbouncer"
        folder.mkdir()
        options |= {"listen_port": port, "default_pool_size": connections}
        with (folder / "pgbouncer.ini").open("w") as file:
            _configuration(behind, options).write(file)
        # By SIGTERM it ends at once, whatever its clients are about.
        server = Server("PgBouncer", program.name, str(program), SIGTERM, 20, 5, folder)
        command = [str(program), "pgbouncer.ini"]
        async with running(server, command, libraries, lambda pid: _listens(pid, port)):
            url = URL.create(
                "postgresql+asyncpg", behind.username, None, "127.0.0.1", port, behind.database
            )
            yield url.render_as_string(hide_password=False)


def _configuration(behind: URL, options: dict[str, str | int]) -> ConfigParser:
    """The one of the documentation, in this place."""
    written = ConfigParser()
    written.read_string(re.findall(r"```ini\n(.*?)```", _DOCUMENTED.read_text(), re.DOTALL)[0])
    host = str(behind.query.get("host", behind.host))
    known = {"host": host, "port": behind.query.get("port", behind.port or 5432)}
    known |= {"user": behind.username, "password": behind.password}
    to = " ".join(f"{name}='{value}'" for name, value in known.items() if value is not None)
    own = options | {"listen_addr": "127.0.0.1", "unix_socket_dir": "", "auth_type": "any"}
    if os.geteuid() == 0:
        # It refuses to be root, and PostgreSQL's socket is its owner's alone.
        owner = Path(host).stat().st_uid if host.startswith("/") else pwd.getpwnam("nobody").pw_uid
        own["user"] = pwd.getpwuid(owner).pw_name
    written.read_dict({"databases": {"*": to}, "pgbouncer": own})
    return written


def _listens(pid: int, port: int) -> bool:
    with suppress(psutil.Error):
        found = psutil.Process(pid).net_connections("tcp")
        return any(it.status == psutil.CONN_LISTEN and it.laddr.port == port for it in found)
    return False


def _program() -> tuple[Path, dict[str, str]]:
    """The one that is installed, or else Debian's, kept in `build/`; and where its libraries are.

    Nobody has to be root for that.
    """
    # Debian has it where users' programs are not looked for.
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
    if found := shutil.which("pgbouncer", path=path):
        return Path(found), {}
    _BUILD.mkdir(exist_ok=True)
    kept = _BUILD / "pgbouncer"
    with FileLock(_BUILD / "pgbouncer.lock"):
        if not kept.exists():
            _fetch(kept)
    libraries = os.pathsep.join(map(str, kept.glob("usr/lib/*-linux-gnu*")))
    return kept / "usr/sbin/pgbouncer", {"LD_LIBRARY_PATH": libraries}


def _fetch(kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        folder = Path(name)
        (folder / "lists/partial").mkdir(parents=True)
        # With lists of our own: a machine's may be missing or old, and are root's to renew.
        own = [f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache"]
        apt = [part for it in (*own, "APT::Sandbox::User=root") for part in ("-o", it)]
        try:
            _run(folder, "apt-get", *apt, "update")
            needs = _run(folder, "apt-cache", *apt, "depends", "pgbouncer")
            # The C library is there, as Python needs it, too.
            libraries = set(re.findall(r"^ *Depends: (lib\S+)", needs, re.M)) - {"libc6"}
            _run(folder, "apt-get", *apt, "download", "pgbouncer", *libraries)
            for package in folder.glob("*.deb"):
                _run(folder, "dpkg-deb", "-x", package.name, "root")
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or error
            raise AssertionError(f"{_WITHOUT} ({said})") from error
        (folder / "root").rename(kept)


def _run(folder: Path, *command: str) -> str:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
