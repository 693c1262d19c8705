"""Feeds posted with three photos of 300 kB by 8 clients at once, against the floor of that work.

The floor is a process that does the same for each feed and nothing else: libvips checks, strips
and shrinks the photos (`services.pictures.clean`), and the service's own S3 client puts the twelve
objects that come of it into the same store, eight at a time. It has no HTTP, no form to parse, no
database. It runs with one thread for libvips, and with as many as the service has. All three run in
turn; printed are medians, and the medians of ours by the floor's of the same round.

Run by `make bench`. Everything shares the machine's cores: the service, PostgreSQL, the store, and
the clients, whose own share of the time is printed.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import uvloop

from app.parts import open_parts
from bench.board import Board, Client, serving
from bench.pictures import photo_within
from config.s3 import open_s3
from config.settings import Settings
from services.pictures import Limits, Picture, clean
from services.store import CACHE_CONTROL
from services.variants import Variant

ROUNDS = 7
CLIENTS = 8
FEEDS = 2  # that each client posts in a round
PHOTOS = 3
PHOTO_BYTES = 300_000
SCALE = 1.024  # 2048 x 1536 pixels
PUTS = 8
FLOORS = (2, 1)  # threads for libvips; the service has two (IMAGE_WORKERS)

Post = Callable[[int], Awaitable[object]]


def main() -> None:
    match sys.argv[1:]:
        case ["floor", threads, folder]:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                print(runner.run(floor(int(threads), Path(folder))))
        case _:
            with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
                for number in range(PHOTOS):
                    photo = photo_within(PHOTO_BYTES, number, SCALE)
                    (Path(folder) / f"{number}.jpg").write_bytes(photo)
                with serving(Path(folder)) as board:
                    compare(board, Path(folder))


def compare(board: Board, folder: Path) -> None:
    clients = [Client(board, f"client-{n}", photos_in(folder)) for n in range(CLIENTS)]
    sides: dict[str, list[float]] = {"service": []}
    shares = []
    for _ in range(ROUNDS):
        spent, began = time.process_time(), time.perf_counter()
        sides["service"].append(asyncio.run(service(clients)))
        shares.append((time.process_time() - spent) / (time.perf_counter() - began))
        for threads in FLOORS:
            command = [sys.executable, "-m", "bench.uploads", "floor", str(threads), str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
            sides.setdefault(f"floor, {threads} thread(s)", []).append(float(done.stdout))
    for side, taken in sides.items():
        pairs = zip(sides["service"], taken, strict=True)
        print(
            f"{side:<20} {middle([seconds * 1000 for seconds in taken])} ms a feed;   "
            f"service / this: {middle([ours / theirs for ours, theirs in pairs], '.2f')}"
        )
    print(f"the clients' share    {middle(shares, '.1%')} of a core while the service ran")


def middle(figures: list[float], style: str = ".0f") -> str:
    least, most = min(figures), max(figures)
    return f"{statistics.median(figures):{style}} ({least:{style}} to {most:{style}})"


def photos_in(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


async def service(clients: list[Client]) -> float:
    async with httpx.AsyncClient(timeout=60) as http:
        return await seconds_a_feed(lambda number: clients[number].post(http))


async def floor(threads: int, folder: Path) -> float:
    photos, limits = photos_in(folder), Limits(2**30, 10**9)
    loop, turns = asyncio.get_running_loop(), asyncio.Semaphore(PUTS)
    settings = Settings(_env_file=None, data_dir=folder / "data")
    async with open_parts(settings, share=True) as complete, open_s3(complete) as s3:
        with ThreadPoolExecutor(threads) as pool:

            async def put(key: str, file: Picture | Variant) -> None:
                async with turns:
                    await s3.put_object(
                        Bucket=complete.s3_bucket or "",
                        Key=key,
                        Body=file.file.read(),
                        ContentType=file.content_type,
                        CacheControl=CACHE_CONTROL,
                    )

            async def post(number: int) -> None:
                jobs = [
                    loop.run_in_executor(pool, clean, BytesIO(photo), "photo.jpg", limits)
                    for photo in photos
                ]
                pictures = [await job for job in jobs]
                files: list[Picture | Variant] = [*pictures]
                for picture in pictures:
                    files += picture.variants
                keys = [f"floor/{number}-{n}-{time.time_ns()}" for n in range(len(files))]
                await asyncio.gather(*map(put, keys, files))
                for picture in pictures:
                    picture.close()

            return await seconds_a_feed(post)


async def seconds_a_feed(post: Post) -> float:
    """Let each client post one feed after the other, all clients at once; warm up before."""

    async def client(number: int) -> None:
        for _ in range(FEEDS):
            await post(number)

    await asyncio.gather(*map(post, range(CLIENTS)))
    began = time.perf_counter()
    await asyncio.gather(*map(client, range(CLIENTS)))
    return (time.perf_counter() - began) / (CLIENTS * FEEDS)


if __name__ == "__main__":
    main()
