"""One hot feed: how many likes a second it takes from 32 clients, while it is being read.

Each client has an account and a kept connection, and likes and unlikes in turn, so that every
request changes the one row; four readers load the feed again and again. In the end the feed's count
has to be the number of its likes.

Run by `make bench`; WORKERS in the environment is the service's. Everything shares the machine's
cores: the service, PostgreSQL, and the clients, whose own share of the time is printed.
"""

import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import httpx
import psutil
import uvloop

from bench.board import Board, log_in, serving

ROUNDS = 5
SECONDS = 5  # that a round takes
CLIENTS = 32
READERS = 4
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder,
        serving(Path(folder)) as board,
    ):
        tokens = [log_in(board, f"client-{number}") for number in range(CLIENTS)]
        feed_id = post(board, tokens[0])
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = [runner.run(one_round(board, tokens, feed_id)) for _ in range(ROUNDS)]
        print(f"median of the rounds: {statistics.median(figures):.0f} likes/s")
        check(board, feed_id)


def post(board: Board, token: str) -> int:
    answer = httpx.post(
        f"{board.url}/api/feed/create",
        data={"title": "Two days in Jeonju", "content": "Bibimbap, and a walk."},
        headers={"Authorization": f"Bearer {token}"},
    )
    feed_id: int = answer.raise_for_status().json()["id"]
    return feed_id


async def one_round(board: Board, tokens: list[str], feed_id: int) -> float:
    """Like and read at once, all the time; gives the likes a second."""
    like, read = f"/api/like/feed/{feed_id}", f"/api/feed/read/{feed_id}"
    liking = [
        cycle([request("PUT", like, token), request("DELETE", like, token)]) for token in tokens
    ]
    reading = [cycle([request("GET", read)]) for _ in range(READERS)]
    spent, began, cores = time.process_time(), time.perf_counter(), psutil.cpu_times()
    taken = await asyncio.gather(
        *(load(board.port, requests, began + SECONDS) for requests in liking + reading)
    )
    seconds, ours = time.perf_counter() - began, time.process_time() - spent
    idle = psutil.cpu_times().idle - cores.idle
    likes = sorted(1000 * each for client in taken[:CLIENTS] for each in client)
    reads = [1000 * each for client in taken[CLIENTS:] for each in client]
    print(
        f"{len(likes) / seconds:5.0f} likes/s, median {statistics.median(likes):5.1f} ms, "
        f"p99 {likes[len(likes) * 99 // 100]:5.1f} ms;   "
        f"{len(reads) / seconds:4.0f} reads/s, median {statistics.median(reads):4.1f} ms;   "
        f"clients' share {ours / seconds:.0%} of a core, idle {idle / seconds:.0%}"
    )
    return len(likes) / seconds


def request(method: str, path: str, token: str | None = None) -> bytes:
    """Written once, so that the load costs little beside what it is for."""
    signed = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{signed}\r\n".encode()


async def load(port: int, requests: Iterator[bytes], until: float) -> list[float]:
    """Send one request after the other over one connection; gives the seconds that each took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = []
    while (began := time.perf_counter()) < until:
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if not head.startswith(b"HTTP/1.1 200 "):
            sys.exit((head + body).decode())
        taken.append(time.perf_counter() - began)
    writer.close()
    return taken


def check(board: Board, feed_id: int) -> None:
    count = httpx.get(f"{board.url}/api/feed/read/{feed_id}").json()["like_count"]
    rows = len(httpx.get(f"{board.url}/api/like/feed/{feed_id}?limit=100").json())
    print(f"the feed counts {count} likes and has {rows}")
    if count != rows:
        sys.exit("they differ")


if __name__ == "__main__":
    main()
