"""A server process of our own: started, waited for, watched, ended, found again after a crash."""

import asyncio
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class EmbeddedFailed(Exception):
    """A server could not be started; the text says which, why, and where its log is."""


@dataclass(frozen=True)
class Server:
    """A server: `argument` tells its main process from those that it forks; times in seconds."""

    name: str
    program: str
    argument: str
    stop_signal: Signals
    start_time: float
    stop_time: float
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def processes(self) -> list[psutil.Process]:
        """Find all that run this program in this folder.

        The kernel says what a process runs and where; a recorded pid may be something else by now.
        """
        found = []
        for pid in psutil.pids():
            with suppress(psutil.Error, OSError):
                # Asked anew: psutil.process_iter() keeps what a process was before its exec.
                process = psutil.Process(pid)
                if Path(process.exe()).name != self.program:
                    continue
                # A container's process may have another folder by the same path.
                link = f"/proc/{process.pid}/cwd"
                stands_in = link if os.path.exists(link) else process.cwd()
                if os.path.samefile(stands_in, self.folder):
                    found.append(process)
        return found

    def end(self) -> None:
        """Ask the server to stop, and kill what is left of it after its stop time."""
        found = self.processes()
        for process in found:
            with suppress(psutil.Error):
                # PostgreSQL's workers rename themselves, and mean other things by its signals.
                if self.argument in process.cmdline():
                    process.send_signal(self.stop_signal)
        for process in (alive := _wait(found, self.stop_time)):
            with suppress(psutil.Error):
                process.kill()
        _wait(alive, self.stop_time)

    def failed(self, why: str) -> EmbeddedFailed:
        with suppress(OSError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
            why += ": " + " / ".join(lines[-3:])[-600:]
        return EmbeddedFailed(f"{self.name} could not be started: {why} (its log is {self.log}).")

    @contextmanager
    def explains(self) -> Generator[None]:
        """Turn what may go wrong on the way into EmbeddedFailed."""
        try:
            yield
        except (OSError, LookupError, ValueError, subprocess.SubprocessError) as error:
            raise EmbeddedFailed(f"{self.name} could not be started: {error}.") from error


@asynccontextmanager
async def running(
    server: Server, command: list[str], environment: dict[str, str], ready: Callable[[int], bool]
) -> AsyncGenerator[None]:
    """Run a server for as long as the block runs; `ready` is asked in a thread, with its pid."""
    process = watcher = None
    try:
        with server.explains():
            process = launch(server.log, command, server.folder, environment)
        deadline = time.monotonic() + server.start_time
        while not await asyncio.to_thread(ready, process.pid):
            if process.poll() is not None:
                raise server.failed("it stopped at once")
            if time.monotonic() > deadline:
                raise server.failed(f"it was not ready after {server.start_time:.0f} seconds")
            await asyncio.sleep(0.02)
        watcher = asyncio.create_task(_watch(server, process))
        yield
    finally:
        if watcher is not None:
            watcher.cancel()
        await uninterrupted(server.end)
        if process is not None:
            await uninterrupted(process.wait, server.stop_time)


def launch(
    log: Path, command: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that a Ctrl-C does not reach; root runs it as the owner of its folder."""
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.1"))
    owner = folder.stat() if os.geteuid() == 0 else None
    with open(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as output:
        return subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env={"PATH": os.defpath, "TZ": "UTC", "LC_ALL": "C", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            user=owner.st_uid if owner else None,
            group=owner.st_gid if owner else None,
            extra_groups=[] if owner else None,
        )


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end; return those that did not."""
    deadline = time.monotonic() + seconds
    while processes and time.monotonic() < deadline:
        time.sleep(0.01)
        processes = [process for process in processes if _is_alive(process)]
    return processes


def _is_alive(process: psutil.Process) -> bool:
    # A container may have nobody who collects the dead.
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


async def _watch(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Say so once if a server ends while it is needed."""
    while True:
        await asyncio.sleep(1)
        if process.poll() is not None:
            break
    logger.error("%s stopped by itself; restart feedboard. Its log is %s.", server.name, server.log)


async def uninterrupted(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread to its end, and be cancelled only then."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return work.result()


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read; after a crash it is there whole or not at all."""
    descriptor, new = tempfile.mkstemp(dir=path.parent)
    with open(descriptor, "w") as file:
        file.write(text)
    Path(new).replace(path)
