"""`feedboard backup` and `feedboard restore`."""

from typing import Annotated

import typer

_PLACE = typer.Argument(help="A folder, or s3://bucket/folder (OTHER_S3_…, or the board's store).")


def backup(
    place: Annotated[str, _PLACE],
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Delete all backups in this place but the newest so many."),
    ] = None,
) -> None:
    """Back up the database and the images; also while the service runs.

    Images that are there already are not copied again. Exit code 1: it failed, and run again goes
    on where it was; or it was made, and says which images were missing on the board.
    """
    from app.backing_up import back_up
    from app.cli import _run  # which imports this module

    _run(lambda settings: back_up(settings, place, keep=keep))


def restore(
    place: Annotated[str, _PLACE],
    name: Annotated[
        str | None, typer.Option("--backup", help="Which one; the newest, if none is named.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only read all of it, and say what is broken.")
    ] = False,
) -> None:
    """Bring a backup back into an instance that has nothing in it; stop the service first.

    Exit code 1: it failed, and nothing is in the database; or something is broken.
    """
    from app.backing_up import bring_back, look_through
    from app.cli import _run  # which imports this module

    deed = look_through if verify else bring_back
    _run(lambda settings: deed(settings, place, name))


def add_to(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)
