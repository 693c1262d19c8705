"""Faults under traffic: what clients are told meanwhile, and when all is well again."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.conftest import Json
from tests.crash_clients import Answered

if TYPE_CHECKING:
    from tests.chaos_house import House

# All is well when so many requests in a row succeed, of each kind at least one.
STREAK = 20
KINDS = (
    "GET /api/feed/list",
    "GET /api/feed/read/{feed_id}",
    "GET /images/{name}",
    "POST /api/feed/create",
    "POST /api/image/upload",
    "PUT /api/like/feed/{feed_id}",
    "POST /api/comment/create",
    "POST /api/auth/login",
)
# Seconds that a slow machine may need for them.
STREAKS_TIME = 30.0
HEAD = """
| fault | held | answers | longest answer | all well after | acknowledged | lost |
| --- | --- | --- | --: | --: | --: | --: |"""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong for as long as `on(house)` is entered.

    `problems` are what clients may meet beside success; `heals` are the seconds, once it is over,
    in which all has to be well.
    """

    name: str
    on: Callable[["House"], AbstractAsyncContextManager[None]]
    problems: tuple[str, ...]
    heals: float


@dataclass
class Row:
    """What came of a fault, all times together."""

    fault: str
    seconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    healed: float = 0.0
    acknowledged: int = 0
    lost: str = "?"  # until all has been looked for

    def add(self, seconds: float, answers: Sequence[Answered], healed: float, writes: int) -> None:
        self.seconds.append(seconds)
        self.answers.update(map(_told, answers))
        self.longest = max(self.longest, *(answer.took for answer in answers))
        self.healed = max(self.healed, healed)
        self.acknowledged += writes

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} {what}" for what, count in self.answers.most_common())
        held = " + ".join(f"{seconds:.0f}" for seconds in self.seconds)
        return (
            f"| {self.fault} | {held} s | {told} | {self.longest:.1f} s | {self.healed:.1f} s "
            f"| {self.acknowledged:,} | {self.lost} |"
        )


class Document:
    """What the service says of itself: which problems each route can give."""

    def __init__(self, document: Json) -> None:
        self._routes = [
            (method.upper(), path, re.compile(re.sub(r"{\w+}", "[^/]+", path)), operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]

    def route(self, answered: Answered) -> tuple[str, Json]:
        asked = answered.request
        path = urlsplit(asked.path).path
        return next(
            (f"{method} {template}", operation)
            for method, template, matches, operation in self._routes
            if method == asked.method and matches.fullmatch(path)
        )

    def has(self, answered: Answered) -> bool:
        """Whether an answer is a success, or a problem that its route says it can give."""
        if answered.status in (200, None):
            return True
        _, operation = self.route(answered)
        listed = operation["responses"].get(str(answered.status), {}).get("content", {})
        examples = listed.get("application/problem+json", {}).get("examples", {})
        return answered.problem in {it["value"]["type"] for it in examples.values()}


async def suffer(house: "House", fault: Fault, seconds: float, row: Row) -> None:
    """Let a fault be for some seconds, wait until all is well, and see that nothing is lost."""
    scene, document, answers = house.scene, house.document, house.scene.situation.answers
    scene.counts.clear()
    async with scene.traffic():
        await scene.some_time(0.3, 0.6)
        scene.expects(*fault.problems)
        async with fault.on(house):
            await asyncio.sleep(seconds)
        off = time.monotonic()
        async with asyncio.timeout(fault.heals + STREAKS_TIME):
            while not _is_enough(document, _well(answers, off)):
                await asyncio.sleep(0.05)
    # What was under way then has its answers, too.
    well = _well(answers, off)
    assert well, f"{fault.name}: it was not over when all had seemed well"
    healed = well[0].sent - off
    row.add(seconds, answers, healed, scene.counts["writes acknowledged"])
    unknown = [answer for answer in answers if not document.has(answer)]
    assert not unknown, f"{fault.name}: not in OpenAPI: {unknown[:10]}"
    row.lost = "?"
    await scene.check()
    row.lost = "0"
    assert healed < fault.heals, f"{fault.name}: {healed:.1f} s passed until all was well"


def _told(answer: Answered) -> str:
    if answer.status is None:
        return "cut"
    return "done" if answer.status == 200 else (answer.problem or str(answer.status))


def _well(answers: Sequence[Answered], since: float) -> list[Answered]:
    """Those sent after the last of which the service failed."""
    after = sorted((it for it in answers if it.sent >= since), key=lambda it: it.sent)
    failed = [n for n, it in enumerate(after) if it.status is None or it.status >= 500]
    return after[failed[-1] + 1 :] if failed else after


def _is_enough(document: Document, answers: Sequence[Answered]) -> bool:
    routes = {document.route(answer)[0] for answer in answers}
    return len(answers) >= STREAK and routes.issuperset(KINDS)
