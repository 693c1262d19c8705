"""What memory the service takes while large photos come in, and while many of them go out.

Uploads: 8 clients at once, each posting one feed with ten photos of just under 10 MiB. Downloads:
200 connections, all open before the first asks, each for such a photo; what arrives is compared
with what was posted. It is done once by readers that take what comes, and once by slow ones with
small buffers. Each has a service of its own; the memory is that of its process alone (resident,
MiB), idle when ready, and at its peak since (VmHWM, which is reset before). PostgreSQL and the
store are other processes.

Run by `make bench`.
"""

import asyncio
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from bench.board import Board, Client, serving
from bench.pictures import memory, photo_within

MIB = 2**20
CLIENTS = 8
PHOTOS = 10
SCALE = 2.83  # 5660 x 4245 pixels, 24 million
READERS = 200
CHUNK = 64 * 1024
SLOW = 0.1  # seconds between a slow reader's chunks


def main() -> None:
    photo = photo_within(10 * MIB, 0, SCALE)
    print(f"a photo has {len(photo):,} bytes")
    with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
        with serving(Path(folder)) as board:
            urls = measure_uploads(board, photo)
        for pause in (0, SLOW):
            with serving(Path(folder)) as board:
                measure_downloads(board, [urlsplit(url).path for url in urls], photo, pause)


def measure_uploads(board: Board, photo: bytes) -> list[str]:
    idle = forget_peak(board)
    clients = [Client(board, f"client-{number}", [photo] * PHOTOS) for number in range(CLIENTS)]

    async def post_all() -> list[list[str]]:
        async with httpx.AsyncClient(timeout=300) as http:
            return await asyncio.gather(*(client.post(http) for client in clients))

    began = time.perf_counter()
    posted = asyncio.run(post_all())
    report(board, idle, f"{CLIENTS} x {PHOTOS} photos posted in {seconds_since(began)}")
    return posted[0]


def measure_downloads(board: Board, paths: list[str], photo: bytes, pause: float) -> None:
    idle = forget_peak(board)

    async def load_all() -> Counter[str]:
        connected = asyncio.Barrier(READERS)
        loads = (
            load(board, paths[number % len(paths)], photo, connected, pause)
            for number in range(READERS)
        )
        return Counter(await asyncio.gather(*loads))

    began = time.perf_counter()
    outcomes = ", ".join(f"{n} {outcome}" for outcome, n in asyncio.run(load_all()).items())
    speed = "slow downloads" if pause else "downloads"
    report(board, idle, f"{READERS} {speed} in {seconds_since(began)} ({outcomes})")


async def load(
    board: Board, path: str, photo: bytes, connected: asyncio.Barrier, pause: float
) -> str:
    """Load one photo; gives what came of it."""
    connection = socket.socket()
    if pause:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", board.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
    await connected.wait()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    status = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
    at, same = 0, True
    while chunk := await reader.read(CHUNK):
        same = same and chunk == photo[at : at + len(chunk)]
        at += len(chunk)
        await asyncio.sleep(pause)
    writer.close()
    if status != "200":
        return f"refused ({status})"
    return "whole" if same and at == len(photo) else "torn"


def forget_peak(board: Board) -> float:
    """Let the peak begin anew (proc(5), clear_refs); gives the memory as it is, in MiB."""
    Path(f"/proc/{board.pid}/clear_refs").write_text("5")
    return memory("VmRSS", board.pid)


def report(board: Board, idle: float, what: str) -> None:
    peak, after = memory("VmHWM", board.pid), memory("VmRSS", board.pid)
    print(
        f"{what}: idle {idle:.0f} MiB, peak {peak:.0f} ({peak - idle:.0f} more), after {after:.0f}",
        flush=True,
    )


def seconds_since(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


if __name__ == "__main__":
    main()
