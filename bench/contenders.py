"""Those that are compared, each in a process of its own: the service, and its references."""

import contextlib
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil

from bench.data import cache, dsn
from config.settings import Settings

# What clients are told that images lie under; the same for all.
PUBLIC_URL = "http://localhost:8000"
POOL = 10
SERVICE, LOGGING, TWO = "service", "service, log on", "service, two workers"
JSON, ROW, FASTIFY = "raw, json", "raw, row", "fastify"
# Asked directly for what the service passes on.
STORE = "store"
# Counted, and never reached.
_LIMITS = ",".join(
    f"{name}=1000000000/minute" for name in ("log-in", "sign-up", "write", "upload", "read")
)
_HERE = Path(__file__).parent
_ROOT = _HERE.parent
# Those that we may use; none are known where nothing can be pinned.
_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@dataclass(frozen=True)
class Contender:
    name: str
    port: int
    process: psutil.Process
    log: Path
    # Seconds from its start to its first answer.
    started: float = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """Seconds of processor time that it has taken so far, its workers with it."""
        each = (it.cpu_times() for it in (self.process, *self.process.children(recursive=True)))
        return sum(times.user + times.system for times in each)


def pin(place: int | None) -> None:
    """Keep this thread, and what is started from now on, to one of our cores; None: to none."""
    if len(_CORES) > 1:
        os.sched_setaffinity(0, _CORES if place is None else [_CORES[place]])


@contextmanager
def running(
    settings: Settings, names: Iterable[str], *, pinned: bool = True
) -> Generator[dict[str, Contender]]:
    """Start some of them on one board; pinned, they share a core, and all else has the other."""
    folder = cache() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        pin(0 if pinned else None)
        started = {name: stack.enter_context(_running(name, settings, folder)) for name in names}
        pin(1 if pinned else None)
        yield started


@contextmanager
def _running(name: str, settings: Settings, folder: Path) -> Generator[Contender]:
    if name == STORE:
        yield _store(settings, folder)
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, environment = _start(name, settings)
    environment |= {"PATH": os.environ["PATH"], "PORT": str(port), "PUBLIC_URL": PUBLIC_URL}
    log = folder / f"{name}.log"
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while not _answers(port):
            if process.poll() is not None or time.perf_counter() > began + 60:
                sys.exit(f"{name} did not start:\n{log.read_text()}")
            time.sleep(0.005)
        started = time.perf_counter() - began
        yield Contender(name, port, psutil.Process(process.pid), log, started)
    finally:
        process.terminate()
        process.wait(60)


def _store(settings: Settings, folder: Path) -> Contender:
    """SeaweedFS, which has been started with the board."""
    started = psutil.Process().children(recursive=True)
    process = next(it for it in started if it.name() == "weed")
    port = urlsplit(str(settings.s3_endpoint_url)).port or 0
    return Contender(STORE, port, process, folder / "store.log")


def _start(name: str, settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The command that runs a contender, and what is its own in its environment."""
    if name in (SERVICE, LOGGING, TWO):
        return _service(settings, log=name == LOGGING, workers=2 if name == TWO else 1)
    secret = settings.keys[0]
    shared = {"SECRET_KEY": secret, "POOL": str(POOL)}
    if name == FASTIFY:
        (sockets,) = parse_qs(urlsplit(dsn(settings)).query)["host"]
        socket_ = f"{sockets}/.s.PGSQL.5432"
        return ["node", str(install_fastify())], shared | {
            "SOCKET": socket_,
            "NODE_ENV": "production",
        }
    mode = "json" if name == JSON else "row"
    raw = {"MODE": mode, "DSN": dsn(settings), "PYTHONPATH": str(_ROOT)}
    return [sys.executable, "-m", "bench.peers.raw"], shared | raw


def _service(settings: Settings, *, log: bool, workers: int) -> tuple[list[str], dict[str, str]]:
    """All that is on by default is on; limits count, and are too high to refuse anything."""
    store_secret = settings.s3_secret_key
    environment = {
        "PYTHONPATH": str(_ROOT),
        "DATABASE_URL": str(settings.database_url),
        "DATABASE_POOL_SIZE": str(POOL),
        "SECRET_KEY": settings.keys[0],
        "S3_BUCKET": str(settings.s3_bucket),
        "S3_ENDPOINT_URL": str(settings.s3_endpoint_url),
        "S3_ACCESS_KEY": str(settings.s3_access_key),
        "S3_SECRET_KEY": store_secret.get_secret_value() if store_secret else "",
        "WORKERS": str(workers),
        "ACCESS_TOKEN_MINUTES": "1440",
        "RATE_LIMITS": _LIMITS,
        "MAX_PENDING_IMAGES": "100000",
        "ACCESS_LOG": str(log).lower(),
    }
    return [str(install_service()), "-m", "app.cli", "serve"], environment


def install_service() -> Path:
    """Put what the service needs, and no more, into the cache; gives the Python that has it."""
    wanted = [_ROOT / "requirements" / name for name in ("build.txt", "service.txt")]
    known = hashlib.sha256(b"".join(it.read_bytes() for it in wanted)).hexdigest()[:12]
    folder = cache() / f"service-{known}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print("installing what the service needs, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)  # noqa: S603
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-build-isolation"]
        for what in (
            *(["--require-hashes", "--requirement", file] for file in wanted),
            # For its version; which clone's code runs, PYTHONPATH says.
            ["--no-deps", "--editable", _ROOT],
        ):
            subprocess.run([*pip, *what], check=True)  # noqa: S603
        (folder / "installed").touch()
    return python


def install_fastify() -> Path:
    """Put Fastify and what it needs into the cache, once for each version; gives its program."""
    source = _HERE / "peers"
    wanted = (source / "package.json").read_bytes()
    folder = cache() / f"fastify-{hashlib.sha256(wanted).hexdigest()[:12]}"
    if not (folder / "installed").exists():
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("npm is missing: install Node.js 20 or newer with npm, to compare Fastify.")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "package.json", folder)
        options = ["--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run([npm, "install", *options], cwd=folder, check=True)  # noqa: S603
        (folder / "installed").touch()
    # Modules are looked for beside it.
    return Path(shutil.copy(source / "fastify.mjs", folder))


def _answers(port: int) -> bool:
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection,
    ):
        connection.request("GET", "/api/feed/list?limit=1")
        return connection.getresponse().status == HTTPStatus.OK
    return False
