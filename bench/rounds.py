"""Rounds: in each one, each contender does each work, one after the other."""

import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from bench import agree, data
from bench.contenders import LOGGING, SERVICE, Contender, pin, running
from bench.load import Measured, Requests, measure
from bench.shown import show
from bench.works import Asking, Work, log_in
from config.settings import Settings

# By work and contender, a figure for each round.
Figures = dict[tuple[str, str], list[Measured]]


class Ready:
    """A board of a size, and those who serve it."""

    def __init__(
        self, settings: Settings, contenders: dict[str, Contender], asking: Asking, seconds: int
    ) -> None:
        self._settings, self._contenders, self._asking = settings, contenders, asking
        self._seconds = seconds

    async def play(self, works: Sequence[Work], *, rounds: int, connections: int) -> Figures:
        """Measure; before the first round one that does not count fills caches and pools."""
        figures: Figures = {}
        with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
            asked = {
                (work.name, name): Requests(Path(folder), work.asked_of(name, self._asking))
                for work in works
                for name in self._turns(work, 0)
            }
            for number in range(rounds + 1):
                for work in works:
                    for name in self._turns(work, number):
                        measured = measure(
                            self._contenders[name],
                            asked[work.name, name],
                            connections=connections,
                            seconds=self._seconds,
                            start=7_919 * number,
                        )
                        if number:
                            figures.setdefault((work.name, name), []).append(measured)
                    if work.writes:
                        await clean(self._settings, self._asking.feeds)
                print(f"round {number} of {rounds} is over", flush=True)
        return figures

    def _turns(self, work: Work, number: int) -> list[str]:
        """Who does a work, each round another one first."""
        by = [name for name in work.by if name in self._contenders]
        return by[number % len(by) :] + by[: number % len(by)]


@asynccontextmanager
async def ready(
    works: Sequence[Work],
    *,
    feeds: int,
    seconds: int,
    access_log: bool = False,
    pinned: bool = True,
) -> AsyncGenerator[Ready]:
    """Start a board and all who serve it; ends with a sentence if their answers differ."""
    names = {name for work in works for name in work.by} | {SERVICE}
    names -= set() if access_log else {LOGGING}
    pin(1 if pinned else None)
    async with data.board(feeds) as settings:
        with running(settings, sorted(names), pinned=pinned) as contenders:
            tokens = log_in(contenders[SERVICE])
            agree.check(contenders, feeds, tokens[0])
            await clean(settings, feeds)
            shown = show(contenders[SERVICE], settings, tokens[0])
            yield Ready(settings, contenders, Asking(feeds, tokens, shown), seconds)


async def clean(settings: Settings, feeds: int) -> None:
    """Take away what was created: the newest feeds are the board's own again."""
    connection = await asyncpg.connect(data.dsn(settings))
    try:
        await data.clean(connection, feeds)
    finally:
        await connection.close()
