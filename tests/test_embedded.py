"""The embedded database and object store, as real processes."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import aioboto3
import psutil
import pytest
from botocore.exceptions import ClientError
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.embedded import (
    DataDirInUse,
    ObjectStore,
    hold,
    object_store,
    postgres,
)

SERVE = """
import asyncio, dataclasses, json, signal, sys
from pathlib import Path
from app.embedded import hold, object_store, postgres

# A shell starts what it runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main(data_dir):
    with hold(data_dir):
        async with postgres(data_dir) as url, object_store(data_dir) as store:
            print(json.dumps([url, dataclasses.asdict(store)]), flush=True)
            await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""
HOLD = """
import sys, time
from pathlib import Path
from app.embedded import hold

with hold(Path(sys.argv[1])):
    print("{}", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def child(script: str, data_dir: Path) -> Generator[tuple[subprocess.Popen[bytes], Any]]:
    """Another Feedboard process that is ready, and what it said then."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        except BaseException:
            # A test that failed leaves no parts behind either.
            process.kill()
            for left in standing_in(data_dir):
                left.kill()
            raise
        finally:
            process.kill()


def standing_in(data_dir: Path) -> list[psutil.Process]:
    """All processes that work in a folder of DATA_DIR."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(data_dir.resolve()):
                found.append(process)
    return found


def socket_folder(url: str) -> Path:
    return Path(str(make_url(url).query["host"]))


def sockets_in_tmp(data_dir: Path) -> list[Path]:
    """Those that SeaweedFS makes for its inner servers."""
    ports = json.loads((data_dir / "seaweedfs-ports.json").read_text())
    return [
        Path(f"/tmp/seaweedfs-{name}-grpc-{port + 10_000}.sock") for name, port in ports.items()
    ]


async def query(url: str, *statements: str) -> Any:
    """The last statement's one value."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def client(store: ObjectStore, **other: str) -> AsyncGenerator[Any]:
    session = aioboto3.Session(
        aws_access_key_id=other.get("access_key", store.access_key),
        aws_secret_access_key=other.get("secret_key", store.secret_key),
        region_name="us-east-1",
    )
    async with session.client("s3", endpoint_url=store.endpoint_url) as s3:
        yield s3


async def write(url: str, store: ObjectStore) -> None:
    await query(url, "CREATE TABLE notes (note text)", "INSERT INTO notes VALUES ('kept')")
    async with client(store) as s3:
        await s3.create_bucket(Bucket="notes")
        await s3.put_object(Bucket="notes", Key="note", Body=b"kept" * 10_000)


async def is_kept(url: str, store: ObjectStore) -> bool:
    async with client(store) as s3:
        answer = await s3.get_object(Bucket="notes", Key="note")
        body = await answer["Body"].read()
    return bool(await query(url, "SELECT note FROM notes") == "kept" and body == b"kept" * 10_000)


@pytest.fixture
def folder() -> Generator[Path]:
    """Not pytest's own, which is for one user: for root, PostgreSQL is run by another one."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


@pytest.fixture(scope="module")
def data_dir() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve() / "data"


@pytest.fixture(scope="module")
async def url(data_dir: Path) -> AsyncGenerator[str]:
    with hold(data_dir):
        async with postgres(data_dir) as url:
            yield url


@pytest.fixture(scope="module")
async def store(data_dir: Path, url: str) -> AsyncGenerator[ObjectStore]:
    async with object_store(data_dir) as store:
        yield store


async def test_the_database_and_the_store_can_be_used(url: str, store: ObjectStore) -> None:
    await write(url, store)

    assert await is_kept(url, store)


async def test_a_request_without_a_key_is_refused(store: ObjectStore) -> None:
    for method, body in (("GET", None), ("PUT", b"mine"), ("DELETE", None)):
        request = urllib.request.Request(
            f"{store.endpoint_url}/notes/note", data=body, method=method
        )
        with pytest.raises(urllib.error.HTTPError, match="403"):
            await asyncio.to_thread(urllib.request.urlopen, request)


@pytest.mark.parametrize("other", [{"secret_key": "wrong"}, {"access_key": "wrong"}])
async def test_a_request_with_a_wrong_key_is_refused(
    store: ObjectStore, other: dict[str, str]
) -> None:
    async with client(store, **other) as s3:
        with pytest.raises(ClientError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
            await s3.put_object(Bucket="notes", Key="note", Body=b"mine")


async def test_the_stores_inner_servers_give_and_take_nothing_without_a_token(
    data_dir: Path, store: ObjectStore
) -> None:
    ports = json.loads((data_dir / "seaweedfs-ports.json").read_text())

    for method in ("GET", "PUT"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{ports['filer']}/buckets/notes/note", data=b"mine", method=method
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await asyncio.to_thread(urllib.request.urlopen, request)


async def test_nothing_listens_where_the_network_could_reach_it(
    data_dir: Path, url: str, store: ObjectStore
) -> None:
    heard: dict[str, set[str]] = {}
    for process in standing_in(data_dir):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN or not connection.raddr:
                heard.setdefault(process.name(), set()).add(connection.laddr.ip)

    assert heard == {"weed": {"127.0.0.1"}}


async def test_other_users_of_the_machine_reach_neither_the_socket_nor_the_files(
    data_dir: Path, url: str, store: ObjectStore
) -> None:
    sockets = socket_folder(url)

    assert (sockets / ".s.PGSQL.5432").is_socket()
    for private in (sockets, data_dir / "postgres", data_dir / "seaweedfs"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    for private in data_dir.iterdir():
        assert private.is_dir() or stat.S_IMODE(private.stat().st_mode) == 0o600


async def test_a_second_process_is_refused_the_folder_until_the_first_is_gone(
    folder: Path,
) -> None:
    data_dir = folder / "data"
    with child(HOLD, data_dir) as (first, _):
        with (
            pytest.raises(
                DataDirInUse, match=re.escape(f"{data_dir} is in use by process {first.pid}; ")
            ),
            hold(data_dir),
        ):
            pass
        first.kill()
        first.wait()

        with hold(data_dir):
            assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


async def test_a_folder_that_cannot_be_made_is_refused_with_a_sentence(folder: Path) -> None:
    (folder / "data").write_text("not a folder")

    with pytest.raises(match="cannot be used"), hold(folder / "data"):
        pass


async def test_what_was_written_is_there_after_a_restart_and_nothing_ran_between(
    folder: Path,
) -> None:
    data_dir = folder / ("a, \"b\" & 100% 'c' " + "too long for a socket " * 5)
    with hold(data_dir):
        async with postgres(data_dir) as url, object_store(data_dir) as store:
            await write(url, store)
            outside = [socket_folder(url), *sockets_in_tmp(data_dir)]
            assert stat.S_IMODE(outside[0].stat().st_mode) == 0o700
        assert standing_in(data_dir) == []
        assert not any(path.exists() for path in outside)

        async with postgres(data_dir) as url, object_store(data_dir) as again:
            assert await is_kept(url, again)
        assert again == store


async def test_the_next_start_ends_what_a_killed_parent_left_and_only_that(
    folder: Path,
) -> None:
    data_dir = folder / "data"
    with child(SERVE, data_dir) as (parent, (url, store)):
        await write(url, ObjectStore(**store))
        parent.kill()
        parent.wait()
    left = standing_in(data_dir)
    assert {process.name() for process in left} == {"postgres", "weed"}

    with bystanders(folder, data_dir) as others, hold(data_dir):
        async with postgres(data_dir) as url, object_store(data_dir) as store:
            assert await is_kept(url, store)
            assert not set(left) & set(standing_in(data_dir))
            assert all(other.poll() is None for other in others)


@contextlib.contextmanager
def bystanders(elsewhere: Path, data_dir: Path) -> Generator[list[subprocess.Popen[bytes]]]:
    """Processes with the same names in another folder, and one with another name in the same."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    for name in ("weed", "postgres"):
        shutil.copy(sleep, elsewhere / name)
    others = [
        subprocess.Popen([elsewhere / "weed", "60"], cwd=elsewhere),
        subprocess.Popen([elsewhere / "postgres", "60"], cwd=elsewhere),
        subprocess.Popen([sleep, "60"], cwd=data_dir / "seaweedfs"),
    ]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


async def test_data_outlives_the_servers_own_violent_end(folder: Path) -> None:
    with contextlib.suppress(ClientError):
        async with postgres(folder) as url, object_store(folder) as store:
            await write(url, store)
            # Not PostgreSQL's workers, which have no arguments: they outlive it for a while.
            for process in [process for process in standing_in(folder) if process.cmdline()[1:]]:
                process.kill()

    async with postgres(folder) as url, object_store(folder) as store:
        assert await is_kept(url, store)


async def test_a_pid_that_now_belongs_to_another_process_does_not_keep_the_database_down(
    folder: Path,
) -> None:
    async with postgres(folder):
        record = (folder / "postgres" / "postmaster.pid").read_text()
    owner = (folder / "postgres").stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner) as bystander:
        lines = [str(bystander.pid), *record.splitlines()[1:]]
        (folder / "postgres" / "postmaster.pid").write_text("\n".join(lines))

        async with postgres(folder) as url:
            assert await query(url, "SELECT 1") == 1
        assert bystander.poll() is None
        bystander.kill()


async def test_a_port_that_was_taken_meanwhile_is_replaced(folder: Path) -> None:
    chosen = dict(
        zip(("master", "volume", "filer", "s3", "admin"), range(19_100, 19_105), strict=True)
    )
    (folder / "seaweedfs-ports.json").write_text(json.dumps(chosen))
    # It stands in nobody's way on 127.0.0.1, but SeaweedFS refuses a port that any address uses.
    with socket.create_server(("127.0.0.2", chosen["s3"])):
        async with object_store(folder) as store:
            assert store.endpoint_url != f"http://127.0.0.1:{chosen['s3']}"


async def test_a_database_that_cannot_start_says_why_and_leaves_nothing_behind(
    folder: Path,
) -> None:
    async with postgres(folder):
        pass
    (folder / "postgres" / "global" / "pg_control").write_bytes(b"damaged")

    with pytest.raises(match=r"PostgreSQL .*pg_control.*postgres\.log"):
        await asyncio.wait_for(enter(postgres(folder)), 10)
    assert standing_in(folder) == []


async def test_a_store_that_cannot_start_says_why_and_leaves_nothing_behind(
    folder: Path,
) -> None:
    (folder / "seaweedfs").mkdir()
    (folder / "seaweedfs" / "filerldb2").write_text("damaged")

    with pytest.raises(match=r"SeaweedFS .*filerldb2.*seaweedfs\.log"):
        await asyncio.wait_for(enter(object_store(folder)), 10)
    assert standing_in(folder) == []


async def enter(context: contextlib.AbstractAsyncContextManager[Any]) -> None:
    async with context:
        await asyncio.Event().wait()


@pytest.mark.parametrize("seconds", [0, 0.02, 0.2, 0.7, 1.8])
async def test_a_cancelled_start_or_run_leaves_nothing_behind(folder: Path, seconds: float) -> None:
    tasks = [asyncio.create_task(enter(part(folder))) for part in (postgres, object_store)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(error) for error in ended] == [asyncio.CancelledError] * 2
    assert standing_in(folder) == []


async def test_ctrl_c_reaches_the_parent_alone_which_then_ends_the_parts(folder: Path) -> None:
    with child(SERVE, folder) as (parent, _):
        parts = standing_in(folder)
        assert parts
        assert parent.pid not in {os.getsid(process.pid) for process in parts}

        os.killpg(parent.pid, signal.SIGINT)
        parent.wait(10)
    assert standing_in(folder) == []
    assert "database system is shut down" in (folder / "postgres.log").read_text()


async def test_a_part_that_dies_is_told_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with postgres(folder):
        for process in standing_in(folder):
            process.kill()
        async with asyncio.timeout(5):
            while "PostgreSQL stopped by itself" not in caplog.text:
                await asyncio.sleep(0.1)
