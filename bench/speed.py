"""How fast the service is, beside what Python can do at most and what one would pick instead.

Run by `make bench`. All contenders serve the same board (`bench.data`) from one PostgreSQL, in
turn, one at a time, and what counts are the ratios within each round. With two cores or more, the
server that is asked has the first one, PostgreSQL and wrk the second. docs/benchmarks.md explains.
"""

import argparse
import asyncio
from pathlib import Path

from bench import chart, growth, table
from bench.contenders import JSON, ROW
from bench.load import require_wrk
from bench.rounds import Figures, ready
from bench.works import WORKS, Work


def main() -> None:
    asked = _arguments()
    require_wrk()
    works = [work for work in WORKS if work.name in asked.works]
    figures = asyncio.run(_measure(asked, works))
    print("\n" + table.text(table.HEAD, list(table.rows(works, figures))))
    print("\n" + table.text(table.EACH_HEAD, list(table.each(works, figures))), flush=True)
    if asked.charts:
        _draw(asked.charts, works, figures)
    if asked.growth:
        # As many points as rounds; they are for the shape, and shorter.
        rounds, seconds = min(asked.rounds, 3), min(asked.seconds, 2)
        grown = growth.show(
            asked.feeds, asked.sizes, rounds=rounds, seconds=seconds, folder=asked.charts
        )
        asyncio.run(grown)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    names = [work.name for work in WORKS]
    add = parser.add_argument
    add("--feeds", type=int, default=100_000)
    add("--rounds", type=int, default=5)
    add("--seconds", type=int, default=4, help="that each measurement takes")
    add("--connections", type=int, default=growth.CONNECTIONS)
    add("--works", type=lambda text: text.split(","), default=names, help=",".join(names))
    add("--access-log", action="store_true", help="measure the service with its log on, too")
    add("--growth", action="store_true", help="at other sizes and numbers of connections, too")
    add("--sizes", type=_numbers, default=growth.SIZES, help="of the boards, then, by commas")
    add("--charts", type=Path, help="a folder for pictures of the figures")
    asked = parser.parse_args()
    if unknown := set(asked.works) - set(names):
        parser.error(f"no work is called {', '.join(unknown)}; there are {', '.join(names)}")
    return asked


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


async def _measure(asked: argparse.Namespace, works: list[Work]) -> Figures:
    async with ready(
        works, feeds=asked.feeds, seconds=asked.seconds, access_log=asked.access_log
    ) as board:
        return await board.play(works, rounds=asked.rounds, connections=asked.connections)


def _draw(folder: Path, works: list[Work], figures: Figures) -> None:
    """Beside what does the same work: a ratio to another work says nothing of speed."""
    lines: dict[str, list[float | None]] = {}
    compared = [work for work in works if (work.name, ROW) in figures]
    for work in compared:
        raw = "L" if (work.name, JSON) in figures else "Lrow"
        for line, reference in (("beside raw Python", raw), ("beside Fastify", "Fastify")):
            found = table.ratio(figures, work.name, reference)
            lines.setdefault(line, []).append(found.median if found else None)
    names = [work.name for work in compared]
    chart.ratios(folder / "speed.svg", "Throughput, in multiples of the references'", names, lines)


if __name__ == "__main__":
    main()
