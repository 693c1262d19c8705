"""How long `feedboard serve` takes to be ready on embedded parts, and what memory each part holds.

Run by `make bench`. Seconds are from the command to the first 200 of `/readyz`; memory is resident
(RSS, MiB) once ready, so pages that PostgreSQL's processes share count in each of them.
"""

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import httpx
import psutil

WARM_STARTS = 7


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
        first, _ = measure(Path(folder))
        warm = [measure(Path(folder)) for _ in range(WARM_STARTS)]
    seconds = [taken for taken, _ in warm]
    print(f"first start  {first:.2f} s")
    print(
        f"warm start   {statistics.median(seconds):.2f} s "
        f"(median of {WARM_STARTS}, {min(seconds):.2f} to {max(seconds):.2f})"
    )
    for part in warm[0][1]:
        held = statistics.median(memory[part] for _, memory in warm)
        print(f"{part:<12} {held:.0f} MiB")


def measure(folder: Path) -> tuple[float, dict[str, float]]:
    """Start, wait until ready, stop; gives the seconds and each part's memory in MiB."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "feedboard"), "serve"]
    environment = os.environ | {"DATA_DIR": str(folder / "data"), "PORT": str(port)}
    began = time.perf_counter()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    while True:
        if process.poll() is not None or time.perf_counter() - began > 60:
            sys.exit((folder / "log").read_text())
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200:
                break
        time.sleep(0.01)
    taken = time.perf_counter() - began
    memory = _memory(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    return taken, memory


def _memory(pid: int) -> dict[str, float]:
    names = defaultdict(lambda: "service", postgres="postgres", weed="seaweedfs")
    held: dict[str, float] = defaultdict(float)
    service = psutil.Process(pid)
    for process in [service, *service.children(recursive=True)]:
        held[names[process.name()]] += process.memory_info().rss / 2**20
    return held


if __name__ == "__main__":
    main()
