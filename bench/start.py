"""How long `feedboard serve` takes to be ready on embedded parts, and what memory each part holds.

Run by `make bench`. Seconds are from the command to the first 200 of `/readyz`; memory is resident
(RSS, MiB) once ready, so pages that PostgreSQL's processes share count in each of them.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from bench.board import serving

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
    began = time.perf_counter()
    with serving(folder) as board:
        return time.perf_counter() - began, _memory(board.pid)


def _memory(pid: int) -> dict[str, float]:
    names = defaultdict(lambda: "service", postgres="postgres", weed="seaweedfs")
    held: dict[str, float] = defaultdict(float)
    service = psutil.Process(pid)
    for process in [service, *service.children(recursive=True)]:
        held[names[process.name()]] += process.memory_info().rss / 2**20
    return held


if __name__ == "__main__":
    main()
