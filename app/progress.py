"""A bar that shows how many objects and bytes are done, where somebody sees it."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    """A `services.backups.copying.Watch` on the terminal."""

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
    """Show a bar for as long as the block runs; nothing if standard error is no terminal."""
    console = Console(stderr=True, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]:,}/{task.fields[of]} objects"),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,
        transient=True,
    ) as progress:
        yield Bar(progress, what)
