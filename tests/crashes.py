"""A board that is killed at any moment, and clients that remember what they were promised."""

import asyncio
import contextlib
import hashlib
import random
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.main import open_capabilities
from config.s3 import open_s3
from config.settings import Settings
from models.base import NOW
from models.image import Image, ImageState
from services.reaper import reap
from services.store import ImageStore
from tests import pictures
from tests.conftest import Json, bearer, files, keys_in, user_maker
from tests.test_cli import COMMAND, Board
from tests.test_embedded import standing_in

CLIENTS = 5
HANG = 60.0  # Seconds after which an answer that has not come is held to come never.
RECOVERY = 30.0  # Seconds that the service has to work again once its parts do.
# What a client may meet, beside success, while something is down.
CUT = "the connection is refused or cut"
STORE_DOWN = "/problems/storage-unavailable"
DATABASE_DOWN = "/problems/database-unavailable"
# What is counted, in the order of the report.
COUNTED = """
    rounds
    kills while starting
    kills of the service during an outage
    requests sent
    requests refused or cut
    requests answered 503
    writes sent
    writes acknowledged
    writes of unknown outcome
    - of these done
    - of these not done
    feeds checked
    deleted feeds looked for
    images loaded
    objects compared
    left-overs seen
    objects at the end
    objects reaped at the end
    ms of the slowest answer
    ms of the slowest recovery
"""
# What the service logs when the fault is its own.
OWN_FAULTS = ("unhandled error", "the reaper failed", "Exception in ASGI application")


class Part:
    """An embedded server that can be killed, and started again where it was."""

    def __init__(
        self,
        opening: Callable[[Path], AbstractAsyncContextManager[Any]],
        folder: Path,
        argument: str,
    ) -> None:
        self._opening, self._folder, self._argument = opening, folder, argument
        self._running: AbstractAsyncContextManager[Any] | None = None
        self.found: Any = None

    async def start(self) -> None:
        await self.stop()
        running = self._opening(self._folder)
        found = await running.__aenter__()
        self._running = running
        assert self.found in (None, found), "it came back somewhere else"
        self.found = found

    def kill(self, number: int) -> None:
        """Send a signal to its main process alone; what PostgreSQL forks has to notice."""
        for process in standing_in(self._folder):
            with contextlib.suppress(psutil.Error):
                if self._argument in process.cmdline():
                    process.send_signal(number)

    async def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.__aexit__(None, None, None)


class Service(Board):
    """`feedboard serve` on a port that nobody takes while it is down."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **settings)
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment |= {"PORT": str(self.port), "PUBLIC_URL": self.url, "IMAGE_GRACE": "60"}
        self.environment |= {"ACCESS_LOG": "false", "ACCESS_TOKEN_MINUTES": "1440"}

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve"],
                cwd=self.folder,
                env=self.environment,
                stderr=log,
                stdout=log,
                start_new_session=True,
            )

    async def start(self) -> None:
        """Launch it if it is not running, and wait until it is ready."""
        if self.process is None:
            self.launch()
        async with httpx.AsyncClient() as client, asyncio.timeout(HANG):
            while not await self._is_ready(client):
                assert self.process.poll() is None, self.last_words()
                await asyncio.sleep(0.03)

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await client.get(f"{self.url}/readyz")).status_code == 200
        return False

    def kill(self) -> None:
        process, self.process = self.process, None
        process.kill()
        process.wait()

    def close(self) -> None:
        """Stop it, and with it what is embedded; whatever went wrong, nothing is left."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        for process in standing_in(self.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def own_faults(self) -> list[str]:
        """What it logged that no dying part explains."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if any(fault in line for fault in OWN_FAULTS)]

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])


def lasting_port() -> int:
    """A free port below those that the kernel hands out and above those that SeaweedFS takes.

    From the kernel's own, another connection would get it while the service is down.
    """
    for port in random.sample(range(30_300, 32_700), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@dataclass(frozen=True)
class Shown:
    """An image that a feed must show: what its bytes are, and its URL, once that is known."""

    digest: str
    url: str | None = None


@dataclass(frozen=True)
class Post:
    """What a feed must look like."""

    title: str
    content: str
    images: tuple[Shown, ...]

    def found(self, feed: Json | None, digests: dict[str, str] | None = None) -> Self | None:
        """This post with the feed's URLs, if that is what the feed is.

        `digests`, of the images that lie at the URLs, must be right too, where given.
        """
        if feed is None or (feed["title"], feed["content"]) != (self.title, self.content):
            return None
        if len(feed["image_urls"]) != len(self.images):
            return None
        pairs = list(zip(self.images, feed["image_urls"], strict=True))
        if not all(image.url in (None, url) for image, url in pairs):
            return None
        if digests and not all(digests[url] == image.digest for image, url in pairs):
            return None
        return replace(self, images=tuple(replace(image, url=url) for image, url in pairs))


@dataclass(frozen=True)
class Change:
    """A write: what was, and what is to be; None is no feed at all."""

    feed_id: int | None
    before: Post | None
    after: Post | None


class Client:
    """Somebody who sends one request after another, and keeps what was promised.

    Nobody else changes these feeds, so it is known what they must look like.
    """

    def __init__(self, scene: "Scene", account: Json, name: str) -> None:
        self.scene, self.name = scene, name
        self.headers = bearer(account)
        self.random = random.Random(f"{scene.seed} {self.name}")
        self.feeds: dict[int, Post] = {}
        self.deleted: list[int] = []
        self.doubts: list[Change] = []
        self._posts = 0

    async def work(self) -> None:
        """Write and read until the traffic ends; with many feeds, delete more than is written."""
        acts = [self.create, self.change, self.delete, self.read, self.look, self.browse]
        while not self.scene.ending:
            weights = [4, 4, 2, 1, 1, 1] if len(self.feeds) < 7 else [2, 4, 6, 1, 1, 1]
            if len(self.feeds) < 2:
                weights = [4, 0, 0, 0, 0, 1]
            await self.random.choices(acts, weights)[0]()

    async def create(self, *, least: int = 0) -> bool | None:
        words, chosen = self._words(), self._choose(least, 3)
        change = Change(None, None, Post(**words, images=tuple(map(Shown, chosen))))
        return await self._write(change, "POST", "/api/feed/create", words, images=chosen)

    async def change(self) -> None:
        feed_id, before = self._take()
        words, chosen = self._words(), self._choose(0, 2)
        kept = tuple(image for image in before.images if self.random.random() < 0.6)[:8]
        after = Post(**words, images=kept + tuple(map(Shown, chosen)))
        form = words | {"target_image_urls": [i.url for i in before.images if i not in kept]}
        path = f"/api/feed/update/{feed_id}"
        await self._write(Change(feed_id, before, after), "PATCH", path, form, new_images=chosen)

    async def delete(self) -> None:
        feed_id, before = self._take()
        path = f"/api/feed/delete/{feed_id}"
        await self._write(Change(feed_id, before, None), "DELETE", path)

    async def read(self) -> None:
        feed_id, post = self.random.choice(list(self.feeds.items()))
        _, answer = await self._send("GET", f"/api/feed/read/{feed_id}")
        if answer and not post.found(answer.json()):
            self.scene.faults.append(f"{post} is shown as {answer.text}")

    async def look(self) -> None:
        images = [image for post in self.feeds.values() for image in post.images]
        if images:
            image = self.random.choice(images)
            _, answer = await self._send("GET", image.url)
            if answer and digest_of(answer.content) != image.digest:
                self.scene.faults.append(f"{image} has other bytes")

    async def browse(self) -> None:
        await self._send("GET", "/api/feed/list")

    def _words(self) -> Json:
        self._posts += 1
        content = " ".join(["한글 & words."] * self.random.randint(1, 9))
        return {"title": f"Post {self._posts} of {self.name}", "content": content}

    def _choose(self, least: int, most: int) -> list[str]:
        return self.random.choices(list(self.scene.album), k=self.random.randint(least, most))

    def _take(self) -> tuple[int, Post]:
        feed_id = self.random.choice(list(self.feeds))
        return feed_id, self.feeds.pop(feed_id)

    async def _write(
        self,
        change: Change,
        method: str,
        path: str,
        form: Json | None = None,
        **chosen: list[str],
    ) -> bool | None:
        """Send a change, and remember what came of it; None is not known."""
        album = self.scene.album
        uploads = [f for name, ds in chosen.items() for f in files(name, *(album[d] for d in ds))]
        body = {"data": form, "files": uploads or None} if form else {}
        done, answer = await self._send(method, path, **body)
        self.scene.counts["writes sent"] += 1
        if done:
            self.scene.counts["writes acknowledged"] += 1
            self._keep(change, answer.json())
        elif done is None:
            self.scene.counts["writes of unknown outcome"] += 1
            self.doubts.append(change)
        elif change.before:
            self.feeds[change.feed_id] = change.before
        return done

    def _keep(self, change: Change, feed: Json) -> None:
        if change.after is None:
            self.deleted.append(change.feed_id)
        elif post := change.after.found(feed):
            self.feeds[feed["id"]] = post
        else:
            self.scene.faults.append(f"{change.after} was acknowledged as {feed}")

    async def _send(
        self, method: str, path: str, **body: Any
    ) -> tuple[bool | None, httpx.Response | None]:
        """Whether it was done (None: who knows), and the answer if it was.

        What else comes is a fault, unless what is down explains it.
        """
        scene, began = self.scene, time.monotonic()
        scene.counts["requests sent"] += 1
        try:
            answer = await scene.http.request(method, path, headers=self.headers, **body)
        except httpx.TransportError as error:
            # An image that is on its way when the store ends can only be cut off.
            explained = CUT in scene.trouble or (STORE_DOWN in scene.trouble and "/images/" in path)
            if not explained or isinstance(error, httpx.TimeoutException):
                scene.faults.append(f"{method} {path}: {error!r}")
            scene.counts["requests refused or cut"] += 1
            await asyncio.sleep(0.1)
            return False if isinstance(error, httpx.ConnectError) else None, None
        finally:
            scene.slowest("answer", began)
        if answer.status_code == 200:
            return True, answer
        kind = None
        if answer.headers.get("content-type") == "application/problem+json":
            kind = answer.json()["type"]
        if answer.status_code != 503 or kind not in scene.trouble:
            scene.faults.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        scene.counts["requests answered 503"] += 1
        await asyncio.sleep(0.1)
        # Without its store the service promises that nothing was changed; a database may have
        # gone between its commit and its answer.
        return False if kind == STORE_DOWN else None, None

    def settle(self, feeds: dict[int, Json], digests: dict[str, str]) -> None:
        """See how what was in doubt turned out; half of a change is neither outcome."""
        by_title = {feed["title"]: feed for feed in feeds.values()}
        for change in self.doubts:
            feed = feeds.get(change.feed_id)
            if change.before is None:
                feed = by_title.get(change.after.title)
            outcomes = {
                name: post.found(feed, digests) if post else feed is None
                for name, post in (("done", change.after), ("not done", change.before))
            }
            (outcome,) = [name for name, is_so in outcomes.items() if is_so] or ["half done"]
            assert outcome != "half done", f"{change} is {feed}"
            self.scene.counts[f"- of these {outcome}"] += 1
            if feed:
                self.feeds[feed["id"]] = outcomes[outcome]
        self.doubts.clear()


class Scene:
    """A board, its clients, and what must be true of them."""

    def __init__(self, service: Service, settings: Callable[[], Settings], seed: int) -> None:
        self.service = service
        self.settings = settings
        self.seed = seed
        self.random = random.Random(seed)
        limits = httpx.Limits(max_connections=2 * CLIENTS, keepalive_expiry=2)
        self.http = httpx.AsyncClient(base_url=service.url, timeout=HANG, limits=limits)
        self.clients: list[Client] = []
        self.album: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.trouble: set[str] = set()
        self.faults: list[str] = []
        self.ending = False
        self._decoded: set[str] = set()

    async def begin(self) -> None:
        """Start the service, log its clients in, and learn what is kept of each picture."""
        await self.service.start()
        account = await user_maker(self.http)()
        self.clients = [Client(self, account, f"client {n}") for n in range(CLIENTS)]
        originals = album()
        posted = await self.http.post(
            "/api/feed/create",
            data={"title": "All", "content": "Pictures"},
            files=files("images", *originals),
            headers=self.clients[0].headers,
        )
        feed = posted.json()
        for url, original in zip(feed["image_urls"], originals, strict=True):
            kept = (await self.http.get(url)).content
            assert pictures.difference(pictures.decode(original), pictures.decode(kept)) < 5
            self.album[digest_of(kept)] = original
        post = Post("All", "Pictures", tuple(map(Shown, self.album)))
        self.clients[0].feeds[feed["id"]] = post.found(feed)

    @asynccontextmanager
    async def traffic(self) -> AsyncGenerator[None]:
        """Let all clients work for as long as the block runs, and get their last answers."""
        self.ending = False
        tasks = [asyncio.create_task(client.work()) for client in self.clients]
        try:
            yield
        finally:
            self.ending = True
            await asyncio.gather(*tasks)

    async def some_time(self, least: float, most: float) -> None:
        await asyncio.sleep(self.random.uniform(least, most))

    async def recovered(self) -> None:
        """Wait until an image can be posted again; nothing is restarted for it."""
        began = time.monotonic()
        async with asyncio.timeout(RECOVERY):
            while not await self.clients[0].create(least=1):
                pass
        self.slowest("recovery", began)

    def slowest(self, what: str, began: float) -> None:
        took, what = round((time.monotonic() - began) * 1000), f"ms of the slowest {what}"
        self.counts[what] = max(took, self.counts[what])

    async def audit(self) -> None:
        """With nothing down and nobody writing: all that was promised is there, and no more."""
        self.trouble = set()
        feeds = {feed["id"]: feed async for feed in self._listed()}
        images = [image for feed in feeds.values() for image in feed["images"]]
        urls = [each["url"] for image in images for each in (image, *image["variants"])]
        digests = dict(zip(urls, await asyncio.gather(*map(self._load, urls)), strict=True))
        promised: dict[int, Post] = {}
        for client in self.clients:
            client.settle(feeds, digests)
            promised |= client.feeds
            for feed_id in client.deleted:
                answer = await self.http.get(f"/api/feed/read/{feed_id}")
                assert answer.status_code == 404, f"deleted feed {feed_id}: {answer.text}"
            self.counts["deleted feeds looked for"] += len(client.deleted)
            client.deleted.clear()
        assert feeds.keys() == promised.keys(), "a feed is lost, or there is one too many"
        for feed_id, post in promised.items():
            assert post.found(feeds[feed_id], digests), f"{post} is {feeds[feed_id]}"
        await self._compare(urls)
        self.counts["feeds checked"] += len(feeds)
        self.counts["rounds"] += 1
        faults = self.faults + self.service.own_faults()
        assert not faults, "\n".join(faults[:20])

    async def _listed(self) -> AsyncIterator[Json]:
        page = await self.http.get("/api/feed/list", params={"limit": 100})
        while True:
            assert page.status_code == 200, page.text
            for feed in page.json():
                yield feed
            if "next" not in page.links:
                return
            page = await self.http.get(page.links["next"]["url"])

    async def _load(self, url: str) -> str:
        """Load an image; what was decoded once need not be again."""
        answer = await self.http.get(url)
        assert answer.status_code == 200, f"{url}: {answer.status_code} {answer.text[:300]}"
        self.counts["images loaded"] += 1
        digest = digest_of(answer.content)
        if digest not in self._decoded:
            pictures.decode(answer.content)
            self._decoded.add(digest)
        return digest

    async def _compare(self, urls: list[str]) -> None:
        """Bucket ⊆ rows, and what is attached is what feeds show, and is there."""
        settings = self.settings()
        async with open_capabilities(settings) as able, able.sessions() as db:
            # Before the bucket: the reaper may be at work, and takes the object first.
            rows = await _rows(db)
            objects = await _objects(settings)
        attached = {key for key, state in rows.items() if state == ImageState.ATTACHED}
        assert attached == {url.removeprefix(f"{self.service.url}/") for url in urls}
        assert attached <= objects, f"objects are missing: {attached - objects}"
        assert objects <= rows.keys(), f"objects without rows: {objects - rows.keys()}"
        self.counts["objects compared"] += len(objects)
        self.counts["left-overs seen"] += len(objects - attached)

    async def collect(self) -> None:
        """Let the grace pass, reap, and find in the bucket what feeds show and nothing else.

        Grace and delays outlast any upload that may be under way, and none is: so all left-overs
        may be due at once.
        """
        settings = self.settings()
        async with open_capabilities(settings) as able, able.sessions() as db:
            before = await _objects(settings)
            due = update(Image).where(Image.state != ImageState.ATTACHED)
            async with db.begin():
                await db.execute(
                    due.values(state=ImageState.CONDEMNED, reap_dt=NOW - timedelta(hours=1))
                )
            attached = await _reaped(db, able.images)
        after = await _objects(settings)
        assert after == attached, (after - attached, attached - after)
        self.counts["objects at the end"] += len(after)
        self.counts["objects reaped at the end"] += len(before - after)

    def report(self, name: str) -> None:
        """Print what was done."""
        print(f"\n{name} (seed {self.seed})")
        for what in map(str.strip, COUNTED.strip().splitlines()):
            print(f"{self.counts[what]:>9,} {what}")


async def _rows(db: AsyncSession) -> dict[str, ImageState]:
    async with db.begin():
        return dict((await db.execute(select(Image.key, Image.state))).all())


async def _objects(settings: Settings) -> set[str]:
    async with open_s3(settings) as s3:
        return await keys_in(s3, settings)


async def _reaped(db: AsyncSession, images: ImageStore) -> set[str]:
    """Reap until attached rows alone are left (the service reaps too); gives their keys."""
    async with asyncio.timeout(RECOVERY):
        while True:
            await reap(db, images)
            rows = await _rows(db)
            if all(state == ImageState.ATTACHED for state in rows.values()):
                return set(rows)
            await asyncio.sleep(0.05)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def album() -> list[bytes]:
    """Small pictures of every format, with and without what is cleaned away."""
    return [
        pictures.jpeg(pictures.photo(800, 600)),
        pictures.camera_jpeg(),
        pictures.annotated_png(),
        pictures.png(pictures.photo(200, 150, seed=2)),
        pictures.annotated_gif(pictures.frames(3)),
        pictures.annotated_webp(pictures.photo(seed=3)),
        pictures.avif(pictures.photo(seed=4)),
    ]
