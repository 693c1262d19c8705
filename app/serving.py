"""Serving: one process or several, from the socket to the last answer."""

import gc
import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import uvicorn
from pydantic import SecretStr
from rich.console import Console
from uvicorn.supervisors import Multiprocess

from app.exposition import exposed
from app.parts import open_parts
from app.protocol import OPTIONS, BoundedHead
from config.settings import Settings, SettingsError

# New connections that a turn of the event loop takes, at most.
DOORS = 32
out = Console(highlight=False, soft_wrap=True)


async def serve(settings: Settings) -> None:
    """Serve until told to stop; what is missing is started, and migrations are applied."""
    # Until all is loaded, of which nothing is garbage: looking for some takes a tenth of the start.
    gc.disable()
    from app.capabilities import prepare

    # Before anything else is started; it listens at once, so that no other process can have it.
    listening = _listen(settings)
    with exposed(settings):
        async with open_parts(settings) as complete:
            await prepare(complete)
            BoundedHead.max_connections = settings.max_connections
            _allow_files(settings.max_connections)
            await _run(complete, listening, partial(_say_where, settings, complete))


async def _run(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    from app.main import create_app, drain, settle

    options = OPTIONS | {"loop": "uvloop"}
    if settings.workers == 1:
        served = create_app(settings)
        settle()
        stopping = _Stopping(settings.drain_seconds, partial(drain, served))
        server = _Server(uvicorn.Config(served, **options), ready, stopping)
        await server.serve(sockets=_doors(listening))
    else:
        os.environ.update(_environment(settings))
        config = uvicorn.Config(
            "app.main:from_environment", factory=True, workers=settings.workers, **options
        )
        # Blocks the loop on purpose: nothing else runs in this process until it ends.
        _Workers(config, _doors(listening), ready, settings.drain_seconds).run()


@dataclass
class _Stopping:
    """What is to be seen of us for some seconds before we stop."""

    seconds: float
    drain: Callable[[], None]
    since: float | None = None

    def go_on(self) -> bool:
        """Begin, if it has not begun; whether it has been seen for long enough."""
        if self.since is None:
            self.since = time.monotonic()
            self.drain()
        return time.monotonic() >= self.since + self.seconds


class _Server(uvicorn.Server):
    """Says when it is ready, and drains before it stops; a second Ctrl-C stops it at once."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stopping: _Stopping
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        told = await super().on_tick(counter)
        return told and (self._stopping.go_on() or self.force_exit)


class _Workers(Multiprocess):
    """Says when all its processes are ready, and has them drain before they stop, as a server."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        ready: Callable[[], None],
        seconds: float,
    ) -> None:
        super().__init__(config, sockets)
        self._ready = ready
        self._stopping = _Stopping(seconds, self._drain)

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(60, self.should_exit) for process in self.processes):
            self._ready()

    def terminate_all(self) -> None:
        while not (self._stopping.go_on() or self.signal_queue):
            time.sleep(0.1)
        super().terminate_all()

    def _drain(self) -> None:
        from app.main import DRAIN

        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, DRAIN)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"PORT: {settings.host}:{settings.port} cannot be listened on "
            f"({error.strerror or error}); stop what uses it, or set another PORT."
        ) from error
    return listening


def _doors(listening: socket.socket) -> list[socket.socket]:
    """The socket several times: the loop (libuv) takes one new connection from each a turn.

    Else, under load, when turns are long, newcomers wait for seconds, health checks among them.
    """
    doors = [listening, *(listening.dup() for _ in range(DOORS - 1))]
    for door in doors:
        door.set_inheritable(True)
    return doors


def _allow_files(connections: int) -> None:
    """Raise the soft limit of open files, often 1024, to what the connections may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Besides those of clients: of the store, of the database, uploads on disk.
    wanted = 2 * connections + 1024
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as a worker process reads them."""
    values = {}
    for name, value in settings:
        if value is not None:
            secret = value.get_secret_value() if isinstance(value, SecretStr) else value
            values[name.upper()] = str(secret)
    return values


def _say_where(settings: Settings, complete: Settings) -> None:
    kept = [
        part
        for part, is_embedded in (
            ("PostgreSQL", settings.embeds_database),
            ("SeaweedFS (S3)", settings.embeds_store),
        )
        if is_embedded
    ]
    out.print(f"[bold]Feedboard is ready[/] at {complete.base_url}")
    out.print(f"  Swagger UI  {complete.base_url}/docs")
    if kept:
        out.print(f"  Embedded    {' and '.join(kept)}")
        out.print(f"  Data        {settings.data_dir.absolute()}")
    out.print("  Ctrl-C stops it.")
