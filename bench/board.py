"""A board to measure: `feedboard serve`, with its embedded parts, in a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

PASSWORD = "correct horse battery"  # noqa: S105
PIECE = 256 * 1024


@dataclass(frozen=True)
class Board:
    pid: int
    port: int
    url: str


@contextlib.contextmanager
def serving(folder: Path) -> Generator[Board]:
    """Start it on the data in a folder, wait until it is ready, and stop it after the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "feedboard"), "serve"]
    environment = os.environ | {
        "DATA_DIR": str(folder / "data"),
        "PORT": str(port),
        "RATE_LIMITS": "off",
        "ACCESS_LOG": "false",
    }
    began = time.perf_counter()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            if process.poll() is not None or time.perf_counter() - began > 60:
                sys.exit((folder / "log").read_text())
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                    break
            time.sleep(0.01)
        yield Board(process.pid, port, url)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def log_in(board: Board, name: str) -> str:
    """Open an account; gives its access token."""
    account = {"email": f"{name}@example.com", "password": PASSWORD}
    httpx.post(f"{board.url}/api/auth/signup", json=account | {"nickname": name})
    token: str = httpx.post(f"{board.url}/api/auth/login", json=account).json()["access_token"]
    return token


class Client:
    """Somebody with an account, who posts the same feed again and again."""

    def __init__(self, board: Board, name: str, photos: Sequence[bytes]) -> None:
        token = log_in(board, name)
        # Written once, so that the load costs little beside what it is for.
        self._request = httpx.Request(
            "POST",
            f"{board.url}/api/feed/create",
            headers={"Authorization": f"Bearer {token}"},
            data={"title": "Two days in Jeonju", "content": "Bibimbap, and a walk."},
            files=[("images", ("photo.jpg", photo)) for photo in photos],
        )
        self._body = self._request.read()

    async def post(self, http: httpx.AsyncClient) -> list[str]:
        """Post the feed, piece by piece; gives the URLs of its images."""
        request = httpx.Request(
            "POST", self._request.url, headers=self._request.headers, content=self._pieces()
        )
        answer = await http.send(request)
        answer.raise_for_status()
        urls: list[str] = answer.json()["image_urls"]
        return urls

    async def _pieces(self) -> AsyncGenerator[bytes]:
        for start in range(0, len(self._body), PIECE):
            yield self._body[start : start + PIECE]
