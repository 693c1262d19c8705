"""The `feedboard` command."""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import DBAPIError, OperationalError
from uvicorn.supervisors import Multiprocess

from app import logs
from app.embedded import DataDirInUse
from app.images_cli import images
from app.parts import open_parts
from app.protocol import OPTIONS, BoundedHead
from app.servers import EmbeddedFailed
from config.db import open_engine, session_factory
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
    _run(_serve, host=host, port=port, workers=workers)


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


async def _serve(settings: Settings) -> None:
    # Until all is loaded, of which nothing is garbage: looking for some takes a tenth of the start.
    gc.disable()
    from app.main import create_app, prepare, settle

    # Before anything else is started; it listens at once, so that no other process can have it.
    listening = _listen(settings)
    async with open_parts(settings) as complete:
        await prepare(complete)
        options = OPTIONS | {"loop": "uvloop"}
        BoundedHead.max_connections = settings.max_connections
        _allow_files(settings.max_connections)

        def ready() -> None:
            _say_where(settings, complete)

        if settings.workers == 1:
            config = uvicorn.Config(create_app(complete), **options)
            settle()
            await _Server(config, ready).serve(sockets=[listening])
        else:
            os.environ.update(_environment(complete))
            config = uvicorn.Config(
                "app.main:from_environment", factory=True, workers=settings.workers, **options
            )
            # Blocks the loop on purpose: nothing else runs in this process until it ends.
            _Workers(config, [listening], ready).run()


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._ready()


class _Workers(Multiprocess):
    """Says when all its processes are ready."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], ready: Callable[[], None]
    ) -> None:
        super().__init__(config, sockets)
        self._ready = ready

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(60, self.should_exit) for process in self.processes):
            self._ready()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"PORT: {settings.host}:{settings.port} cannot be listened on "
            f"({error.strerror or error}); stop what uses it, or set another PORT."
        ) from error
    listening.set_inheritable(True)
    return listening


def _allow_files(connections: int) -> None:
    """Raise the soft limit of open files, often 1024, to what the connections may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Besides those of clients: of the store, of the database, uploads on disk.
    wanted = 2 * connections + 1024
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as a worker process reads them."""
    values = {}
    for name, value in settings:
        if value is not None:
            secret = value.get_secret_value() if isinstance(value, SecretStr) else value
            values[name.upper()] = str(secret)
    return values


def _say_where(settings: Settings, complete: Settings) -> None:
    kept = [
        part
        for part, is_embedded in (
            ("PostgreSQL", settings.embeds_database),
            ("SeaweedFS (S3)", settings.embeds_store),
        )
        if is_embedded
    ]
    out.print(f"[bold]Feedboard is ready[/] at {complete.base_url}")
    out.print(f"  Swagger UI  {complete.base_url}/docs")
    if kept:
        out.print(f"  Embedded    {' and '.join(kept)}")
        out.print(f"  Data        {settings.data_dir.absolute()}")
    out.print("  Ctrl-C stops it.")


async def _migrate(settings: Settings) -> None:
    import migrations

    async with (
        open_parts(settings, share=True) as complete,
        open_engine(complete, patience=None) as engine,
    ):
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
