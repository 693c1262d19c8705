"""`feedboard import` and `feedboard export`: a board moves in, or out."""

from pathlib import Path
from typing import Annotated

import typer

imports = typer.Typer(
    help="Bring another board in: its users, feeds, comments, likes and follows.",
    no_args_is_help=True,
)

_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be taken, and write nothing.")
]
_Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first row of which something is lost.")
]
_Report = Annotated[
    Path | None,
    typer.Option(help="A file for all remarks, as JSON Lines; the terminal shows some of each."),
]


@imports.command()
def ancestor(
    database: Annotated[
        str, typer.Option(help="Its database, as postgresql://user:password@host/name.")
    ],
    images: Annotated[
        str,
        typer.Option(help="Where its images lie: a folder, or s3://bucket/folder; or none."),
    ],
    name: Annotated[
        str, typer.Option("--as", help="What to call it, if several boards are brought in.")
    ] = "ancestor",
    timezone: Annotated[str, typer.Option(help="That of its times which have none.")] = "UTC",
    dry_run: _DryRun = False,
    strict: _Strict = False,
    report: _Report = None,
) -> None:
    """Take in the board that Feedboard descends from, out of its database.

    What cannot be taken is named and passed over. Run it again to go on after a break, or to take
    what has come since: what was taken before is left as it is.
    """
    from app.board_moves import MoveIn
    from app.cli import _run

    move = MoveIn(name, dry_run=dry_run, strict=strict, report=report)
    _run(lambda settings: move.ancestor(settings, database, images=images, zone=timezone))


@imports.command()
def folder(
    where: Annotated[str, typer.Argument(help="A folder, or s3://bucket/folder.")],
    name: Annotated[
        str, typer.Option("--as", help="What to call it, if several boards are brought in.")
    ] = "folder",
    dry_run: _DryRun = False,
    strict: _Strict = False,
    report: _Report = None,
) -> None:
    """Take in what `feedboard export` has written, or another program in the same form.

    It can be run again, as the other one.
    """
    from app.board_moves import MoveIn
    from app.cli import _run

    move = MoveIn(name, dry_run=dry_run, strict=strict, report=report)
    _run(lambda settings: move.folder(settings, where))


def export(
    where: Annotated[str, typer.Argument(help="An empty folder, or s3://bucket/folder.")],
) -> None:
    """Write the whole board as JSON Lines and images; also while the service runs.

    Hashes of passwords are in it: keep it as you keep the database.
    """
    from app.board_moves import move_out
    from app.cli import _run

    _run(lambda settings: move_out(settings, where))
