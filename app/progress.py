"""Bars that show how far a command has come, where somebody sees them."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def counted(
    totals: Mapping[str, int], *, silent: bool = False
) -> Generator[Callable[[str, int], None]]:
    """Show a bar for each thing that there is any of; lends what is told of each, how many more."""
    with _shown(MofNCompleteColumn(), silent=silent) as progress:
        tasks = {name: progress.add_task(name, total=n) for name, n in totals.items() if n}

        def advance(name: str, number: int) -> None:
            if name in tasks:
                progress.advance(tasks[name], number)

        yield advance


class Bar:
    """A `services.backups.copying.Watch` on the terminal: objects, and bytes."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None, done=0, of="?")
        self._done = 0

    def expect(self, objects: int, size: int) -> None:
        self._progress.update(self._task, total=size, of=f"{objects:,}")

    def advance(self, objects: int, size: int) -> None:
        self._done += objects
        self._progress.update(self._task, advance=size, done=self._done)


@contextmanager
def bar(what: str) -> Generator[Bar]:
    """Show how many objects are copied, and how many bytes."""
    objects = TextColumn("{task.fields[done]:,}/{task.fields[of]} objects")
    with _shown(objects, DownloadColumn(binary_units=True), TransferSpeedColumn()) as progress:
        yield Bar(progress, what)


def _shown(*columns: ProgressColumn, silent: bool = False) -> Progress:
    # Standard output may go into a file, and has to get there as it is.
    console = Console(stderr=True, highlight=False)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=silent or not console.is_terminal,
        redirect_stdout=False,
        transient=True,
    )
