"""The same works on boards of other sizes, and by other numbers of connections."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import chart, table
from bench.contenders import FASTIFY, ROW, SERVICE
from bench.rounds import Figures, ready
from bench.works import WORKS, Work

SIZES = (1_000, 100_000, 1_000_000)
SWEEP = (1, 8, 32, 64, 256)
CONNECTIONS = 32
COMPARED = (SERVICE, ROW, FASTIFY)
_NAMES = ("read", "newest", "page-deep", "create")


async def show(
    feeds: int, sizes: Sequence[int], *, rounds: int, seconds: int, folder: Path | None
) -> None:
    """Print both tables, and draw them into a folder: boards of these sizes, and one of `feeds`."""
    works = [work for work in WORKS if work.name in _NAMES]
    by_size: dict[int, Figures] = {}
    for size in sizes:
        async with ready(works, feeds=size, seconds=seconds) as board:
            by_size[size] = await board.play(works, rounds=rounds, connections=CONNECTIONS)
    by_connections: dict[int, Figures] = {}
    async with ready(works, feeds=feeds, seconds=seconds) as board:
        for number in SWEEP:
            played = await board.play(works, rounds=rounds, connections=number)
            by_connections[number] = played
    for what, found in (("feeds", by_size), ("connections", by_connections)):
        head = ("work", "contender", *(f"{point:,} {what}" for point in found))
        print("\n" + table.text(head, list(_lines(works, found))), flush=True)
        if folder:
            title = f"Requests a second, by the number of {what}"
            chart.growth(folder / f"speed-{what}.svg", title, list(found), _drawn(works, found))


def _rate(figures: Figures, work: Work, contender: str) -> float:
    return statistics.median(it.rate for it in figures[work.name, contender])


def _lines(works: Sequence[Work], found: dict[int, Figures]) -> Iterator[list[str]]:
    for work in works:
        for name in COMPARED:
            rates = (_rate(figures, work, name) for figures in found.values())
            yield [work.name, name, *(f"{rate:,.0f}" for rate in rates)]


def _drawn(works: Sequence[Work], found: dict[int, Figures]) -> chart.Lines:
    return {
        f"{work.name}: {name}": [_rate(figures, work, name) for figures in found.values()]
        for work in works
        for name in (SERVICE, ROW)
    }
