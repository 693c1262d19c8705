"""What the service takes: the time to its first answer, and memory, before and after many uploads.

Run by `make bench`. PostgreSQL and SeaweedFS run already, as parts from outside; one worker. The
photos have 300 kB, and eight clients post one each in a feed, again and again.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from app.parts import open_parts
from bench import table
from bench.board import Board, Client
from bench.contenders import SERVICE, Contender, running
from bench.pictures import photo_within
from bench.shown import SCALE, SIZE
from config.settings import Settings

STARTS = 7
CLIENTS = 8
MB = 1_000_000
# Seconds; megabytes: resident, and on top of that after all uploads.
START, IDLE, GROWN = 1.2, 110, 20
HEAD = ("", "figure", "target", "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.footprint", description=__doc__)
    parser.add_argument("--uploads", type=int, default=2_000)
    asyncio.run(_measure(parser.parse_args().uploads))


async def _measure(uploads: int) -> None:
    with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
        own = Settings(
            _env_file=None, data_dir=Path(folder) / "data", database_url=None, s3_bucket=None
        )
        async with open_parts(own) as settings:
            starts = [_start(settings) for _ in range(STARTS + 1)][
                1:
            ]  # the first applies migrations
            with running(settings, [SERVICE], pinned=False) as contenders:
                service = contenders[SERVICE]
                await asyncio.sleep(2)
                idle = _resident(service)
                photo = photo_within(SIZE, 0, SCALE)
                board = Board(service.process.pid, service.port, service.url)
                clients = [Client(board, f"client-{n}", [photo]) for n in range(CLIENTS)]
                await asyncio.gather(*(_post(it, uploads // CLIENTS) for it in clients))
                await asyncio.sleep(2)
                after = _resident(service)
    print(table.text(HEAD, list(_lines(starts, idle, after - idle, uploads))))


def _start(settings: Settings) -> float:
    with running(settings, [SERVICE], pinned=False) as contenders:
        return contenders[SERVICE].started


def _resident(service: Contender) -> float:
    return float(service.process.memory_info().rss) / MB


async def _post(client: Client, times: int) -> None:
    async with httpx.AsyncClient(timeout=120) as http:
        for _ in range(times):
            await client.post(http)


def _lines(starts: list[float], idle: float, grown: float, uploads: int) -> Iterator[list[str]]:
    start = statistics.median(starts)
    figures = (
        (
            "start to first 200, median (least to most)",
            f"{start:.2f} s ({min(starts):.2f} to {max(starts):.2f})",
            f"<= {START} s",
            start <= START,
        ),
        ("resident, idle", f"{idle:.0f} MB", f"<= {IDLE} MB", idle <= IDLE),
        (f"more after {uploads:,} uploads", f"{grown:.0f} MB", f"<= {GROWN} MB", grown <= GROWN),
    )
    for what, figure, target, reached in figures:
        yield [what, figure, target, "ok" if reached else "MISSED"]


if __name__ == "__main__":
    main()
