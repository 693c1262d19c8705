"""The `feedboard` command."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import DBAPIError, OperationalError

from app import backup_cli, logs
from app.board_moves_cli import export, imports
from app.embedded import DataDirInUse
from app.images_cli import images
from app.parts import open_parts
from app.servers import EmbeddedFailed
from config.db import open_engine, require_bounds, session_factory
from config.settings import Settings, SettingsError

app = typer.Typer(
    help="Feedboard: a feed/board backend. With nothing configured it runs on a PostgreSQL and an "
    "S3 store of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
users = typer.Typer(help="Accounts.", no_args_is_help=True)
app.add_typer(users, name="user")
app.add_typer(images, name="images")
app.add_typer(imports, name="import")
app.command()(export)
backup_cli.add_to(app)
# What is said goes to standard output; log lines and errors go to standard error.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve (WORKERS).")] = None,
) -> None:
    """Run the service until Ctrl-C or SIGTERM; apply migrations first."""
    from app.serving import serve

    _run(serve, host=host, port=port, workers=workers)


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    _run(_migrate)


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each thing that was looked at.")
    ] = False,
) -> None:
    """Look at all that the service stands on, and say what to do; also while it runs.

    Exit code 0: it can run, whatever could be better. 1: something has to be mended first.
    """
    from app.doctor import Doctor

    _run(Doctor(as_json=as_json).run)


@users.command("create")
def create_user(
    email: Annotated[str, typer.Option(prompt=True, help="E-mail address; what one logs in with.")],
    nickname: Annotated[str, typer.Option(prompt=True, help="Shown beside posts.")],
    password: Annotated[
        str,
        typer.Option(
            prompt=True,
            hide_input=True,
            confirmation_prompt=True,
            help="Better typed at the prompt than given here.",
        ),
    ],
    admin: Annotated[
        bool, typer.Option("--admin", help="One who may delete what others wrote.")
    ] = False,
) -> None:
    """Open an account."""
    account = {"email": email, "nickname": nickname, "password": password}
    _run(lambda settings: _create_user(settings, account, is_admin=admin))


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=1, max=50, help="Users to sign up.")] = 5,
    posts: Annotated[int, typer.Option(min=1, max=10_000, help="Posts to write.")] = 40,
) -> None:
    """Fill the board with users, posts and generated pictures; also while the service runs."""
    from app.demo import fill

    _run(lambda settings: fill(settings, users=users, posts=posts))


def _run(work: Callable[[Settings], Awaitable[None]], **overrides: Any) -> None:
    """Run a command on the settings; whatever a person can mend ends in a sentence and exit 1."""
    try:
        settings = Settings.load(**overrides)
        logs.configure(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signalled(work(settings)))
    except asyncio.CancelledError:
        out.print("Stopped.")
    except (SettingsError, DataDirInUse, EmbeddedFailed) as error:
        _fail(str(error))
    except DBAPIError as error:
        why = "cannot be reached" if isinstance(error, OperationalError) else "cannot be used"
        _fail(f"DATABASE_URL: the database {why} ({error.orig or error}).")


async def _until_signalled(work: Awaitable[None]) -> None:
    """Do the work; the first SIGINT or SIGTERM cancels it, so that everything opened is closed."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    signalled = False

    def cancel(number: int, frame: object) -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            loop.call_soon_threadsafe(task.cancel)

    # Not loop.add_signal_handler: uvicorn puts its own handlers over these for as long as it
    # serves, and afterwards raises the signal once more for them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, cancel)
    await task


def _fail(sentence: str) -> None:
    err.print(f"[red]error:[/] {escape(sentence)}")
    raise typer.Exit(1)


async def _migrate(settings: Settings) -> None:
    import migrations

    async with (
        open_parts(settings, share=True) as complete,
        open_engine(complete.direct, patience=None) as engine,
    ):
        await require_bounds(engine, patience=None)
        changed = await migrations.upgrade(engine)
    out.print("The schema is up to date now." if changed else "The schema was up to date.")


async def _create_user(settings: Settings, given: dict[str, str], *, is_admin: bool) -> None:
    from models.user import Signup
    from services import auth
    from services.errors import EmailTaken, InvalidInput, NicknameTaken
    from services.passwords import Passwords

    try:
        account = Signup.model_validate(given)
    except ValidationError as error:
        raise SettingsError(
            "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        ) from None
    async with (
        open_parts(settings, share=True) as complete,
        open_engine(complete) as engine,
        session_factory(engine)() as db,
    ):
        try:
            user = await auth.signup(
                db,
                Passwords(1),
                email=account.email,
                password=given["password"],
                nickname=account.nickname,
                is_admin=is_admin,
                verified=True,  # by whoever may run this command
            )
        except (EmailTaken, NicknameTaken, InvalidInput) as error:
            raise SettingsError(error.detail) from None
    out.print(f"Created {'administrator' if is_admin else 'user'} {user.id}, {user.email}.")


if __name__ == "__main__":
    sys.exit(app())
