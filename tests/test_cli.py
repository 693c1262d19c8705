"""The `feedboard` command as a person and a supervisor use it: real processes, real signals."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy.engine import make_url

from config.settings import Settings
from tests.conftest import PASSWORD, SECRET, own_folder, to_anybody
from tests.pictures import annotated_png

COMMAND = [str(Path(sys.executable).parent / "feedboard")]
PNG = annotated_png()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Board:
    """`feedboard` in a folder of its own, with nothing configured but what the test says."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        names = {name.upper() for name in Settings.model_fields}
        self.environment = {k: v for k, v in os.environ.items() if k not in names}
        self.environment |= {"PORT": str(self.port)} | settings

    @classmethod
    def on(cls, folder, settings, **more):
        """On a database and a bucket that are there: nothing is embedded."""
        secret = settings.s3_secret_key
        return cls(
            folder,
            DATABASE_URL=settings.database_url,
            SECRET_KEY=SECRET,
            S3_BUCKET=settings.s3_bucket,
            S3_ENDPOINT_URL=settings.s3_endpoint_url or "",
            S3_ACCESS_KEY=settings.s3_access_key or "",
            S3_SECRET_KEY=secret.get_secret_value() if secret else "",
            S3_REGION=settings.s3_region,
            **more,
        )

    def run(self, *arguments, **environment):
        return subprocess.run(
            COMMAND + list(arguments),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self):
        self.log = self.folder / "serve.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve"],
                cwd=self.folder,
                env=self.environment,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        pytest.fail(f"not ready within a minute: {self.log.read_text()}")

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(40)

    def parts(self):
        """What runs on this board's data: the embedded parts, alive."""
        mine = str(self.folder)
        return {
            process.info["pid"]
            for process in psutil.process_iter(["pid", "cmdline", "status"])
            if process.info["status"] != psutil.STATUS_ZOMBIE
            and process.info["pid"] != self.process.pid
            and any(mine in word for word in process.info["cmdline"] or [])
        }

    def sign_up(self, email):
        account = {"email": email, "password": PASSWORD}
        httpx.post(f"{self.url}/api/auth/signup", json=account | {"nickname": email})
        return httpx.post(f"{self.url}/api/auth/login", json=account).json()["access_token"]

    def post(self, token):
        return httpx.post(
            f"{self.url}/api/feed/create",
            data={"title": "T", "content": "C"},
            files={"images": ("a.png", PNG)},
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        ).json()


@pytest.fixture
def board():
    with own_folder() as folder:
        board = Board(folder)
        yield board
        if getattr(board, "process", None) and board.process.poll() is None:
            board.stop()


@pytest.fixture
def external(tmp_path, settings):
    """A board on the tests' own database and bucket: nothing is embedded."""
    board = Board.on(tmp_path, settings)
    yield board
    if getattr(board, "process", None) and board.process.poll() is None:
        board.stop()


def test_a_board_with_nothing_configured_lives_through_a_whole_story(board):
    """Start, write, be refused twice, be killed, recover with everything, stop without a trace."""
    board.start()
    said = board.log.read_text()
    assert f"Feedboard is ready at http://localhost:{board.port}" in said
    assert f"http://localhost:{board.port}/docs" in said
    assert "PostgreSQL and SeaweedFS (S3)" in said
    assert str(board.folder / "data") in said
    token = board.sign_up("ada@example.com")
    feed = board.post(token)

    same_port, same_data = board.run("serve"), board.run("serve", PORT=str(free_port()))
    assert (same_port.returncode, same_data.returncode) == (1, 1)
    assert re.search(r"PORT: .* cannot be listened on", same_port.stderr)
    assert re.search(r"data is in use by process \d+", same_data.stderr)

    board.process.kill()
    board.process.wait()
    assert board.parts(), "a killed parent leaves its parts running"
    left = board.parts()
    board.start()
    there = psutil.process_iter(["status"])
    assert not left & {process.pid for process in there if process.info["status"] != "zombie"}
    assert httpx.get(f"{board.url}/api/feed/read/{feed['id']}").json() == to_anybody(feed)
    image = httpx.get(feed["image_urls"][0].replace("localhost", "127.0.0.1"))
    assert image.content.startswith(b"\x89PNG")
    assert board.post(token)["id"] > feed["id"], "the token outlives the restart"

    assert board.stop(signal.SIGINT) == 0
    assert board.parts() == set()


def test_commands_work_beside_a_running_service(board):
    board.start()

    created = board.run(
        "user", "create", "--email=b@example.com", "--nickname=B", f"--password={PASSWORD}"
    )
    again = board.run(
        "user", "create", "--email=B@example.com", "--nickname=B", f"--password={PASSWORD}"
    )
    keeper = board.run(
        *("user", "create", "--admin", "--email=keeper@example.com", "--nickname=Keeper"),
        f"--password={PASSWORD}",
    )
    filled = board.run("demo", "--users=2", "--posts=3")

    assert created.returncode == 0, created.stderr
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert filled.returncode == 0, filled.stderr
    email, password = re.search(r"Log in as (\S+) / (\S+)", filled.stdout).groups()
    log_in = {"email": email, "password": password}
    assert httpx.post(f"{board.url}/api/auth/login", json=log_in).status_code == 200
    feeds = httpx.get(f"{board.url}/api/feed/list").json()
    assert len(feeds) == 3
    for url in feeds[0]["image_urls"]:
        assert httpx.get(url.replace("localhost", "127.0.0.1")).status_code == 200
    assert keeper.stdout.startswith("Created administrator ")
    log_in = {"email": "keeper@example.com", "password": PASSWORD}
    token = httpx.post(f"{board.url}/api/auth/login", json=log_in).json()["access_token"]
    kept = {"Authorization": f"Bearer {token}"}
    path = f"{board.url}/api/feed/delete/{feeds[0]['id']}"
    assert httpx.delete(path, headers=kept).status_code == 200


def test_several_workers_serve_one_board_and_stop_together(external):
    external.environment["WORKERS"] = "2"
    external.start()
    deadline = time.monotonic() + 20
    while "ready" not in external.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert "Embedded" not in external.log.read_text()
    workers = psutil.Process(external.process.pid).children(recursive=True)
    assert httpx.get(f"{external.url}/api/feed/list").status_code == 200
    assert external.stop() == 0
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    assert not (external.folder / "data").exists()


def test_workers_whose_parent_was_killed_do_not_keep_the_port(external):
    external.environment["WORKERS"] = "2"
    external.start()
    workers = psutil.Process(external.process.pid).children(recursive=True)
    external.process.kill()
    external.process.wait()

    assert psutil.wait_procs(workers, timeout=5)[1] == []
    external.start()
    assert external.stop() == 0


def test_headers_without_end_are_cut_off(external):
    external.start()
    with socket.create_connection(("127.0.0.1", external.port)) as connection:
        connection.settimeout(10)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 1_000_000)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{external.url}/healthz", headers={"X-A": "a" * 30_000}).status_code == 200


def test_a_request_in_flight_is_answered_before_the_service_stops(external):
    external.start()
    with socket.create_connection(("127.0.0.1", external.port)) as connection:
        body = json.dumps({"email": "x@example.com", "password": PASSWORD}).encode()
        connection.sendall(
            b"POST /api/auth/login HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        time.sleep(0.3)
        external.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    assert external.process.wait(30) == 0


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PORT": "many"}, "PORT is not valid"),
        ({"DATABASE_URL": "postgresql://u@127.0.0.1:1/none"}, "SECRET_KEY is missing"),
        (
            {"DATABASE_URL": "postgresql://u@127.0.0.1:1/none", "SECRET_KEY": SECRET},
            "DATABASE_URL: the database cannot be reached",
        ),
        ({"S3_ENDPOINT_URL": "http://127.0.0.1:1"}, "S3_BUCKET is missing"),
    ],
)
def test_what_a_person_can_mend_ends_in_a_sentence_and_leaves_nothing_running(
    board, environment, sentence
):
    failed = (
        board.run("serve", S3_BUCKET="b", **environment)
        if "DATABASE_URL" in environment
        else (board.run("serve", **environment))
    )

    assert failed.returncode == 1
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr
    board.process = subprocess.Popen(["true"])
    assert board.parts() == set()


def test_a_part_that_cannot_start_is_named_and_the_other_one_is_stopped(board):
    (board.folder / "data").mkdir()
    (board.folder / "data" / "postgres").write_text("not a folder")

    failed = board.run("serve")

    assert failed.returncode == 1
    assert "error: PostgreSQL could not be started" in failed.stderr
    assert "Traceback" not in failed.stderr
    board.process = subprocess.Popen(["true"])
    assert board.parts() == set()


def test_a_data_folder_that_cannot_be_written_is_named(board):
    (board.folder / "data").write_text("a file")

    failed = board.run("serve")

    assert failed.returncode == 1
    assert re.search(r"data cannot be used .*set DATA_DIR", failed.stderr)


def test_a_database_that_is_not_there_is_a_sentence(board, database_server):
    nowhere = make_url(database_server).set(database="feedboard_not_there")
    failed = board.run(
        "migrate",
        DATABASE_URL=nowhere.render_as_string(hide_password=False),
        SECRET_KEY=SECRET,
        S3_BUCKET="b",
    )

    assert failed.returncode == 1
    assert "DATABASE_URL: the database cannot be reached" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_help_lists_every_command():
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout

    commands = "serve", "migrate", "doctor", "user", "images", "demo", "backup", "restore"
    assert all(command in shown for command in commands)
