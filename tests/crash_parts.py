"""What is killed and what is stopped: the service, its database, its object store."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from app import embedded
from tests.conftest import SECRET
from tests.test_cli import COMMAND, Board
from tests.test_embedded import standing_in

READY = 60.0  # Seconds that the service has to be ready after its start.
# What the service logs when the fault is its own.
OWN_FAULTS = (
    "unhandled error",
    "the reaper failed",
    "ends of sessions could not be followed",
    "Exception in ASGI application",
)


class Part:
    """An embedded server that can be killed, stopped, and started again where it was.

    It works in the folder `name`; `argument` is what its main process alone is called with.
    """

    def __init__(
        self,
        opening: Callable[[Path], AbstractAsyncContextManager[Any]],
        folder: Path,
        name: str,
        argument: str,
    ) -> None:
        self._opening, self._folder, self._argument = opening, folder, argument
        self._place = folder / name
        self._running: AbstractAsyncContextManager[Any] | None = None
        self.found: Any = None

    async def start(self) -> None:
        await self.stop()
        running = self._opening(self._folder)
        found = await running.__aenter__()
        self._running = running
        assert self.found in (None, found), "it came back somewhere else"
        self.found = found

    def kill(self, number: int) -> None:
        """Send a signal to its main process alone; what PostgreSQL forks has to notice."""
        for process in standing_in(self._place):
            with contextlib.suppress(psutil.Error):
                if self._argument in process.cmdline():
                    process.send_signal(number)

    @asynccontextmanager
    async def dead(self, number: int) -> AsyncGenerator[None]:
        """Kill it, and start it again where the block ends."""
        self.kill(number)
        yield
        await self.start()

    @asynccontextmanager
    async def hanging(self) -> AsyncGenerator[None]:
        """Let none of its processes move or speak for as long as the block runs."""
        try:
            self._halt()
            yield
        finally:
            for process in standing_in(self._place):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)

    def _halt(self) -> None:
        """Stop all its processes, also those that are forked meanwhile."""
        for _ in range(100):
            moving = [p for p in standing_in(self._place) if not _stands_still(p)]
            if not moving:
                return
            for process in moving:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGSTOP)
        raise AssertionError(f"they cannot be stopped: {moving}")

    async def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.__aexit__(None, None, None)


def database_in(folder: Path) -> Part:
    return Part(embedded.postgres, folder, "postgres", "-D")


def store_in(folder: Path) -> Part:
    return Part(embedded.object_store, folder, "seaweedfs", "mini")


@asynccontextmanager
async def own_parts(folder: Path) -> AsyncGenerator[tuple[Part, Part]]:
    """A database and a store that outlive the service, and can be stopped by themselves."""
    database, store = database_in(folder), store_in(folder)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(database.start())
            group.create_task(store.start())
        yield database, store
    finally:
        for part in (store, database):
            part.kill(signal.SIGKILL)  # quicker than asking
            await part.stop()


def _stands_still(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return True


class Service(Board):
    """`feedboard serve` on a port that nobody takes while it is down."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **settings)
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        self.workers, self.restore_days = 1, 7
        self.process: Any = None
        self._read = 0  # lines of the log
        # A grace that no run outlives: what was uploaded and acknowledged has to stay.
        self.environment |= {"PORT": str(self.port), "PUBLIC_URL": self.url, "IMAGE_GRACE": "86400"}
        # What killed requests leave waits for a day here, and is not to be the clients' quota.
        self.environment |= {"MAX_PENDING_IMAGES": "100000"}
        self.environment |= {"ACCESS_LOG": "false", "ACCESS_TOKEN_MINUTES": "1440"}
        self.environment |= {"RATE_LIMITS": "off"}

    def serve_with(self, workers: int, restore_days: int | None = None) -> None:
        """Let it have these from its next start on, and stop it if it has others."""
        before = self.workers, self.restore_days
        self.workers = workers
        self.restore_days = self.restore_days if restore_days is None else restore_days
        if self.process is not None and before != (self.workers, self.restore_days):
            self.stop()
            self.process = None

    def launch(self) -> None:
        now = {"WORKERS": str(self.workers), "RESTORE_DAYS": str(self.restore_days)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve"],
                cwd=self.folder,
                env=self.environment | now,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )

    async def start(self) -> None:
        """Launch it if it is not running, and wait until all of it is ready."""
        if self.process is None:
            self.launch()
        async with httpx.AsyncClient() as client, asyncio.timeout(READY):
            while not await self._is_ready(client):
                assert self.process.poll() is None, self.last_words()
                await asyncio.sleep(0.03)

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        if self.workers > 1 and len(self.worker_processes()) < self.workers:
            return False
        with contextlib.suppress(httpx.TransportError):
            return (await client.get(f"{self.url}/readyz")).status_code == 200
        return False

    def worker_processes(self) -> list[psutil.Process]:
        """With several workers: the processes that serve, in the order of their start."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "spawn_main" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def kill(self) -> None:
        """Kill what was started; workers have to notice that their parent is gone."""
        process, workers = self.process, self.worker_processes()
        self.process = None
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive, f"workers outlive their parent: {alive}"

    async def kill_a_worker(self, which: int) -> None:
        """Kill one worker alone, and wait until another has taken its place."""
        workers = self.worker_processes()
        assert len(workers) == self.workers, workers
        workers[which].kill()
        began = time.monotonic()
        while len(now := self.worker_processes()) < self.workers or workers[which] in now:
            assert time.monotonic() - began < READY, "no worker took its place"
            await asyncio.sleep(0.03)

    def close(self) -> None:
        """Stop it, and with it what is embedded; whatever went wrong, nothing is left."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        for process in standing_in(self.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def own_faults(self) -> list[str]:
        """What it has logged since the last time that no dying part explains."""
        lines = self.log.read_text(errors="replace").splitlines()
        lines, self._read = lines[self._read :], len(lines)
        return [line for line in lines if any(fault in line for fault in OWN_FAULTS)]

    def complaints(self) -> list[str]:
        """All that it has logged to be looked into; libvips speaks of images that are damaged."""
        lines = self.log.read_text(errors="replace").splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        quiet = [it for it in told if it["level"] == "info" or "VIPS" in it["event"]]
        return [str(it) for it in told if it not in quiet]

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])


def where(database_url: str, store: Part, store_url: str, bucket: str) -> dict[str, str]:
    """Settings of a service that finds its database and this store at these addresses."""
    return {
        "database_url": database_url,
        "secret_key": SECRET,
        "s3_bucket": bucket,
        "s3_endpoint_url": store_url,
        "s3_access_key": store.found.access_key,
        "s3_secret_key": store.found.secret_key,
    }


def service_in(folder: Path, external: dict[str, str]) -> Service:
    """A service with these settings, that works in this folder."""
    return Service(folder, **{name.upper(): value for name, value in external.items()})


def lasting_port() -> int:
    """A free port below those that the kernel hands out and above those that SeaweedFS takes.

    From the kernel's own, another connection would get it while the service is down.
    """
    for port in random.sample(range(30_300, 32_700), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")
