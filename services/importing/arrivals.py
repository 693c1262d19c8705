"""What arrives from another board: its rows, as any source gives them, and what is said of them."""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from models.imported import Kind


@dataclass
class Row:
    """A row of another board, not judged yet, under the name by which its owner finds it."""

    label: str
    fields: dict[str, Any]
    times: int = 1  # How often it is there.
    fault: str | None = None  # Why it cannot be taken, where its source knows that already.
    losses: list[str] = field(default_factory=list)  # What cannot be taken of it.


@dataclass(frozen=True)
class Survey:
    """How many rows there are of each `Kind`, and the greatest number that a feed has."""

    counts: Mapping[str, int]
    last_feed: int


class Source(Protocol):
    """A board that moves in, read as it is at one moment."""

    async def survey(self) -> Survey:
        """Look at all of it, before anything is taken."""

    def rows(self, kind: str) -> AsyncGenerator[Row]:
        """Its rows of one `Kind`; a comment comes before its replies."""


class Degree(StrEnum):
    """How much of a row is lost: all of it, something, or nothing, though it is not as it was."""

    SKIPPED = "skipped"
    LESSENED = "lessened"
    CHANGED = "changed"


@dataclass(frozen=True)
class Remark:
    """What became of a row that could not be taken as it was."""

    kind: Kind
    label: str
    degree: Degree
    why: str

    def __str__(self) -> str:
        return f"{self.kind} {self.label}: {self.why}."


# Images that are looked for in vain before it is held that they lie elsewhere.
_ENOUGH = 20


class NoImages(Exception):
    """Not one of the first images was found: they are not where they were said to be."""


class BrokenRow(Exception):
    """A row cannot be taken as it is, and nothing broken was to be passed over."""


class Report:
    """Counts what becomes of rows, and passes on what is to be said of some.

    When it is strict, it raises BrokenRow for the first one of which something is lost.
    """

    def __init__(self, tell: Callable[[Remark], None], *, strict: bool = False) -> None:
        self._tell = tell
        self._strict = strict
        self.taken: Counter[Kind] = Counter()
        # Taken by an earlier import, or here already without one.
        self.known: Counter[Kind] = Counter()
        self.twice: Counter[Kind] = Counter()
        self.said: Counter[tuple[Kind, Degree]] = Counter()
        self._images: Counter[bool] = Counter()

    def remark(self, kind: Kind, row: Row, degree: Degree, why: str) -> None:
        remark = Remark(kind, row.label, degree, why)
        self.said[kind, degree] += 1
        self._tell(remark)
        if self._strict and degree is not Degree.CHANGED:
            raise BrokenRow(str(remark))

    def look(self, *, found: bool) -> None:
        """Count an image that was found or not; raises NoImages when none ever is."""
        self._images[found] += 1
        if not self._images[True] and self._images[False] >= _ENOUGH:
            raise NoImages

    def skip(self, kind: Kind, row: Row, why: str) -> None:
        self.remark(kind, row, Degree.SKIPPED, why)
