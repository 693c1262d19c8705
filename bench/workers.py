"""Two workers against one, on all cores of the machine, with PostgreSQL and the load on them too.

Run by `make bench`. Both serve the same board in turn (`bench.data`), and what counts are the
ratios within each round: no work may be slower, nor take more of the processor.
"""

import argparse
import asyncio
import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from bench import table
from bench.contenders import SERVICE, TWO
from bench.growth import CONNECTIONS
from bench.load import require_wrk
from bench.rounds import Figures, ready
from bench.works import WORKS, Work

SLOWER = 1.0
CPU = 1.1
HEAD = ("work", "one, requests/s", "two", "two / one", "target", "", "CPU", "target", "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--feeds", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="that each measurement takes")
    asked = parser.parse_args()
    require_wrk()
    works = [dataclasses.replace(work, by=(SERVICE, TWO)) for work in WORKS]
    figures = asyncio.run(_measure(works, asked))
    print("\n" + table.text(HEAD, list(_lines(works, figures))))


async def _measure(works: Sequence[Work], asked: argparse.Namespace) -> Figures:
    async with ready(works, feeds=asked.feeds, seconds=asked.seconds, pinned=False) as board:
        return await board.play(works, rounds=asked.rounds, connections=CONNECTIONS)


def _lines(works: Sequence[Work], figures: Figures) -> Iterator[list[str]]:
    for work in works:
        one, two = figures[work.name, SERVICE], figures[work.name, TWO]
        rates = [[it.rate for it in figures_] for figures_ in (one, two)]
        faster = table.Ratio.of(rates[1], rates[0])
        dearer = table.Ratio.of([it.cpu for it in two], [it.cpu for it in one])
        yield [
            work.name,
            *(f"{statistics.median(each):,.0f}" for each in rates),
            str(faster),
            f">= {SLOWER:.2f}",
            "ok" if faster.median >= SLOWER else "MISSED",
            str(dearer),
            f"<= {CPU:.2f}",
            "ok" if dearer.median <= CPU else "MISSED",
        ]


if __name__ == "__main__":
    main()
