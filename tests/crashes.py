"""A board under traffic, of which any part may die or hang at any moment."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import httpx

from config.settings import Settings
from tests import pictures
from tests.conftest import user_maker
from tests.crash_acts import ACTS, create, hide, restore, work
from tests.crash_checks import Inventory
from tests.crash_clients import HANG, Client, Request, Situation
from tests.crash_memory import Picture, digest_of, urls_of
from tests.crash_parts import Service

CLIENTS = 5
RECOVERY = 30.0  # Seconds that the service has to work again once its parts do.
# What is counted, in the order of the report; of writes, each kind comes behind "acknowledged".
COUNTED = """
    rounds
    kills of the service
    kills of a worker
    kills of the service with two workers
    kills while starting
    kills of the service during kills
    kills of the service during stops
    kills of the object store
    kills of the database
    stops of the object store
    stops of the database
    stops longer than every patience
    requests sent
    requests refused or cut
    requests answered 503
    writes sent
    writes acknowledged
    races lost
    writes of unknown outcome
    - of these done
    - of these not done
    feeds checked
    hidden feeds checked
    comments checked
    likes, follows and comments checked
    facts in doubt
    pending images checked
    deleted feeds looked for
    images loaded
    objects compared
    left-overs seen
    objects at the end
    objects reaped at the end
    ms of the slowest answer
    ms of the slowest recovery
"""


class Scene:
    """A board and its clients: the traffic, the trouble, and what is counted of both."""

    def __init__(self, service: Service, settings: Callable[[], Settings], seed: int) -> None:
        self.service, self.seed = service, seed
        self.random = random.Random(seed)
        limits = httpx.Limits(max_connections=4 * CLIENTS, keepalive_expiry=2)
        self.http = httpx.AsyncClient(base_url=service.url, timeout=HANG, limits=limits)
        self.situation = Situation(self.http, seed)
        self.counts = self.situation.counts
        self.clients: list[Client] = []
        self.inventory = Inventory(self.situation, service.url, settings)

    async def begin(self) -> None:
        """Start the service, log its clients in, and learn what is kept of each picture."""
        await self.service.start()
        sign_up = user_maker(self.http)
        accounts = await asyncio.gather(*(sign_up() for _ in range(CLIENTS)))
        self.situation.clients = self.clients = [
            Client(self.situation, account, f"client {n}") for n, account in enumerate(accounts)
        ]
        await asyncio.gather(*map(self._learn, album()))

    async def _learn(self, original: bytes) -> None:
        """Upload a picture, and see that it is kept as it should be; then forget it."""
        teacher, unknown = self.clients[0], Picture(original, ())
        request = Request("POST", "/api/image/upload", {}, files=("images", [unknown]))
        _, answer = await teacher.send(request)
        assert answer, self.situation.faults
        (image,) = answer.json()
        kept = [(await self.http.get(url)).content for url in urls_of(image)]
        decoded = pictures.decode(kept[0])
        assert pictures.difference(pictures.decode(original), decoded) < 5
        assert [pictures.decode(each).width for each in kept[1:]] == [
            variant["width"] for variant in image["variants"]
        ]
        self.situation.album.append(Picture(original, tuple(map(digest_of, kept))))
        await teacher.send(Request("DELETE", f"/api/image/{image['id']}"))

    @asynccontextmanager
    async def traffic(self) -> AsyncGenerator[None]:
        """Let all clients work for as long as the block runs, and get their last answers."""
        self.situation.ending = False
        tasks = [asyncio.create_task(work(client)) for client in self.clients]
        try:
            yield
        finally:
            self.situation.ending = True
            await asyncio.gather(*tasks)

    async def some_time(self, least: float, most: float) -> None:
        await asyncio.sleep(self.random.uniform(least, most))

    def expects(self, *trouble: str) -> None:
        """From now on, until all is checked, clients may meet this."""
        self.situation.trouble.update(trouble)

    async def recovered(self) -> None:
        """Wait until an image can be posted again; nothing is restarted for it."""
        began = time.monotonic()
        async with asyncio.timeout(RECOVERY):
            while not await create(self.clients[0], least=1):
                pass
        self.situation.slowest("recovery", began)

    async def let_restore(self, restorable: bool) -> None:
        """Serve so that what is deleted can be restored from now on, or no more.

        What was deleted before is over then, and goes; when this is called nothing is in doubt.
        Everybody has something to restore from the start, so that few rounds try it, too.
        """
        self.situation.restorable = restorable
        self.service.serve_with(self.service.workers, 7 if restorable else 0)
        await self.service.start()
        if restorable:
            await asyncio.gather(*(hide(it) for it in self.clients if not it.hidden))
            return
        for client in self.clients:
            client.deleted += client.hidden
            client.hidden.clear()
        await self.inventory.purged()

    async def end(self) -> None:
        """Restore all that can be restored, and find in the bucket what feeds show, no more."""
        for client in self.clients:
            while client.hidden:
                assert await restore(client), self.situation.faults
        await self.inventory.take(self.clients)
        await self.inventory.collect(self.clients)

    async def check(self) -> None:
        """With nothing down and nobody writing: all that was promised is there, and no more."""
        self.situation.trouble.clear()
        await self.inventory.take(self.clients)
        self.counts["rounds"] += 1
        faults = self.situation.faults + self.service.own_faults()
        self.situation.faults = []
        self.situation.answers.clear()
        assert not faults, "\n".join(faults[:20])

    def report(self, name: str) -> None:
        """Print what was done."""
        print(f"\n{name} (seed {self.seed})")
        for what in map(str.strip, COUNTED.strip().splitlines()):
            print(f"{self.counts[what]:>9,} {what}")
            if what == "writes acknowledged":
                for act in ACTS:
                    if count := self.counts[f"- {act.__name__}"]:
                        print(f"{count:>9,} - {act.__name__.replace('_', ' ')}")


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
