"""What was measured, as a table: medians, ratios of paired rounds with their spread, targets."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.contenders import LOGGING, SERVICE
from bench.load import Measured
from bench.works import REFERENCES, Target, Work

# By work and contender, a figure for each round.
Rounds = Mapping[tuple[str, str], Sequence[Measured]]
TAIL = 5  # p99, as a multiple of p50


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, the least and the most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        each = [a / b for a, b in zip(ours, theirs, strict=True)]
        return cls(statistics.median(each), min(each), max(each))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def ratio(rounds: Rounds, work: str, against: str) -> Ratio | None:
    """How the service does beside a reference, or beside another work of its own."""
    ours = [it.rate for it in rounds[work, SERVICE]]
    if against in REFERENCES:
        found = [rounds[work, name] for name in REFERENCES[against] if (work, name) in rounds]
    else:
        found = [rounds[against, SERVICE]] if (against, SERVICE) in rounds else []
    if not found:
        return None
    best = [max(it.rate for it in contenders) for contenders in zip(*found, strict=True)]
    return Ratio.of(ours, best)


def rows(works: Sequence[Work], rounds: Rounds) -> Iterator[list[str]]:
    """A line for each target; what a work has only once stands in its first."""
    for work in works:
        ours = rounds[work.name, SERVICE]
        rate, p50, p99, cpu = (
            statistics.median(getattr(it, name) for it in ours)
            for name in ("rate", "p50", "p99", "cpu")
        )
        tail = Ratio.of([it.p99 for it in ours], [it.p50 for it in ours])
        said = [work.name, f"{rate:,.0f}", f"{cpu:.0f}", f"{p50:.1f} ms", f"{p99:.1f} ms"]
        for target in work.targets:
            yield [*said, *_judged(target, ratio(rounds, work.name, target.against))]
            said = [""] * len(said)
        within = "ok" if tail.median <= TAIL else "MISSED"
        yield [*said, "p99 / p50", str(tail), f"<= {TAIL:.2f}", within]
        if (work.name, LOGGING) in rounds:
            logging = [it.rate for it in rounds[work.name, LOGGING]]
            both = Ratio.of(logging, [it.rate for it in ours])
            yield [""] * 5 + ["with the access log", str(both), "", ""]


def _judged(target: Target, found: Ratio | None) -> list[str]:
    if found is None:
        return [target.against, "not measured", f">= {target.at_least:.2f}", ""]
    reached = "ok" if found.median >= target.at_least else "MISSED"
    return [target.against, str(found), f">= {target.at_least:.2f}", reached]


def each(works: Sequence[Work], rounds: Rounds) -> Iterator[list[str]]:
    """What each contender did by itself."""
    for work in works:
        for name in work.by:
            if measured := rounds.get((work.name, name)):
                figures = (
                    statistics.median(getattr(it, field) for it in measured)
                    for field in ("rate", "cpu", "p50", "p99")
                )
                rate, cpu, p50, p99 = figures
                yield [work.name, name, f"{rate:,.0f}", f"{cpu:.0f}", f"{p50:.1f}", f"{p99:.1f}"]


def text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand under each other."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    ruled = [head, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in ruled
    )


HEAD = ("work", "requests/s", "CPU µs", "p50", "p99", "beside", "ratio", "target", "")
EACH_HEAD = ("work", "contender", "requests/s", "CPU µs", "p50 ms", "p99 ms")
