"""`feedboard images`: collect what no feed shows, and compare the table with the bucket."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from config.settings import Settings

images = typer.Typer(help="Images: the table and the bucket.", no_args_is_help=True)


@images.command()
def reap() -> None:
    """Delete at once what is due: images that no feed shows and whose time has come.

    Exit code 1: something is left, as the store did not confirm that it is gone.
    """
    from app.upkeep import reap

    _run(reap)


@images.command()
def fsck(
    deep: Annotated[
        bool, typer.Option(help="Compare content types too; a request for each object.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(help="Mend what can be mended safely; nothing younger than IMAGE_GRACE goes."),
    ] = False,
    force: Annotated[
        bool, typer.Option(help="Repair even if most objects have no row in this database.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON document per line, the last one a summary.")
    ] = False,
) -> None:
    """Compare the table with the bucket; also while the service runs.

    Exit code 0: they agree, or do so now. 1: something is wrong. 2: it could not be found out.
    """
    from app.upkeep import Check

    check = Check(deep=deep, repair=repair, force=force, as_json=as_json)
    try:
        _run(check.run)
    except typer.Exit:
        raise typer.Exit(2) from None
    raise typer.Exit(check.exit_code)


@images.command()
def move(
    to: Annotated[str | None, typer.Option(help="Copy to this bucket: s3://bucket/folder.")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Copy from this bucket what the board's does not have yet."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is uploaded, until Ctrl-C.")
    ] = False,
) -> None:
    """Copy all images to another bucket (OTHER_S3_…), or from one; also while the service runs.

    It says how to go over. URLs stay as they are, and nothing is deleted here. Exit code 1: it
    failed, and run again goes on where it was; or images are missing in both buckets.
    """
    from app.relocation import relocate

    _run(lambda settings: relocate(settings, to, from_, follow=follow))


def _run(work: Callable[[Settings], Awaitable[None]]) -> None:
    from app.cli import _run  # which imports this module

    _run(work)
