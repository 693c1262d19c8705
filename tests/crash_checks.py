"""What must be true when nothing is down: all that was promised is there, and no more."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.capabilities import open_capabilities
from config.db import open_engine, session_factory
from config.s3 import S3Client, open_s3
from config.settings import Settings
from models.base import NOW
from models.feed import Feed
from models.image import Image, ImageState
from services.reaper import reap
from tests import pictures
from tests.conftest import Json, keys_in
from tests.crash_clients import Client, Situation
from tests.crash_facts import Community, rows
from tests.crash_memory import Digests, Seen, digest_of, urls_of

QUIET = 30.0  # Seconds in which the database has to end what clients no longer wait for.
AN_HOUR_AGO = NOW - timedelta(hours=1)
# What a connection does that is neither idle nor ours.
BUSY = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
    AND pid <> pg_backend_pid() AND state <> 'idle'
"""


class Inventory:
    """Takes stock of a board: over HTTP, in its table, and in its bucket."""

    def __init__(self, situation: Situation, url: str, settings: Callable[[], Settings]) -> None:
        self._url, self._settings, self._situation = url, settings, situation
        self._http, self._counts = situation.http, situation.counts
        self._decoded: set[str] = set()

    async def take(self, clients: Sequence[Client]) -> None:
        """Hold what is there against what the clients remember, and the bucket against both."""
        async with self._storage() as (db, s3):
            await _quiet(db)
            feeds = {feed["id"]: feed async for feed in self._listed("/api/feed/list")}
            own = [
                {image["id"]: image async for image in self._listed("/api/image/mine", client)}
                for client in clients
            ]
            hidden = [
                await self._hidden(db, client, list(images.values()))
                for client, images in zip(clients, own, strict=True)
            ]
            kept = {i: feed for of_client in hidden for i, feed in of_client.items()}
            shown, away = _images(feeds), _images(kept)
            listed = [image for images in own for image in images.values()]
            digests = await self._loaded([*shown, *(i for i in listed if i["feed_id"] not in kept)])
            digests |= await self._kept(s3, away)
            for client, images, to_restore in zip(clients, own, hidden, strict=True):
                pending = {i: image for i, image in images.items() if image["feed_id"] is None}
                await self._settle(client, Seen(feeds, to_restore, pending, digests))
            promised = {i: post for client in clients for i, post in client.feeds.items()}
            assert feeds.keys() == promised.keys(), "a feed is lost, or there is one too many"
            for feed_id, post in promised.items():
                assert post.found(feeds[feed_id], digests), f"{post} is {feeds[feed_id]}"
            _same_feeds(feeds | kept, listed)
            await self._compare(db, s3, {url for i in (*shown, *away) for url in urls_of(i)})
            await self._take_facts(db, clients, feeds, set(kept))
        self._counts["feeds checked"] += len(feeds)
        self._counts["hidden feeds checked"] += len(kept)

    async def _take_facts(
        self, db: AsyncSession, clients: Sequence[Client], feeds: dict[int, Json], hidden: set[int]
    ) -> None:
        """Hold counts against rows, and both against what the clients remember."""
        paths = [f"/api/comment/feed/{feed_id}" for feed_id in feeds]
        comments = [comment for path in paths async for comment in self._listed(path)]
        answers = [await self._http.get(f"/api/user/{client.id}") for client in clients]
        profiles = [answer.json() for answer in answers]
        there = Community(feeds, hidden, comments, profiles, await rows(db))
        there.check_counts()
        checked = sum(there.settle(client.id, client.facts) for client in clients)
        known = self._situation.comments
        for number in [number for number, of in known.items() if of not in feeds.keys() | hidden]:
            del known[number]
        self._counts["comments checked"] += len(comments)
        self._counts["likes, follows and comments checked"] += checked

    async def _settle(self, client: Client, seen: Seen) -> None:
        """Hold what is seen of a client against what it remembers."""
        client.settle(seen)
        assert seen.pending.keys() == client.pending.keys(), "an upload is lost, or one too many"
        for number, image in client.pending.items():
            there = seen.pending[number]
            assert image.found(there, seen.digests), f"{image} is {there}"
        assert seen.hidden.keys() == client.hidden.keys(), "what was deleted cannot be restored"
        for feed_id, post in client.hidden.items():
            there = seen.hidden[feed_id]
            assert post.found(there, seen.digests), f"hidden {post} is {there}"
        self._counts["pending images checked"] += len(client.pending)
        for feed_id in (*client.deleted, *client.hidden):
            answer = await self._http.get(f"/api/feed/read/{feed_id}")
            assert answer.status_code == 404, f"deleted feed {feed_id}: {answer.text}"
        self._counts["deleted feeds looked for"] += len(client.deleted)
        client.deleted.clear()

    async def _hidden(
        self, db: AsyncSession, client: Client, images: Sequence[Json]
    ) -> dict[int, Json]:
        """The feeds that a client can restore, as they would be shown."""
        async with db.begin():
            places = dict((await db.execute(select(Image.id, Image.position))).all())
        hidden = {}
        async for feed in self._listed("/api/mypage/deleted", client):
            assert feed["kind"] == "feed", f"{feed} was not deleted"
            own = [image for image in images if image["feed_id"] == feed["id"]]
            own.sort(key=lambda image: places[image["id"]])
            hidden[feed["id"]] = feed | {"images": own, "image_urls": [i["url"] for i in own]}
        return hidden

    async def _listed(self, path: str, client: Client | None = None) -> AsyncIterator[Json]:
        headers = client.headers if client else {}
        page = await self._http.get(path, params={"limit": 100}, headers=headers)
        while True:
            assert page.status_code == 200, page.text
            for each in page.json():
                yield each
            if "next" not in page.links:
                return
            page = await self._http.get(page.links["next"]["url"], headers=headers)

    async def _loaded(self, images: Sequence[Json]) -> Digests:
        """Load each image and its variants; where nothing lies there is no digest."""
        urls = {url for image in images for url in urls_of(image)}
        digests = zip(urls, await asyncio.gather(*map(self._load, urls)), strict=True)
        return {url: digest for url, digest in digests if digest}

    async def _kept(self, s3: S3Client, images: Sequence[Json]) -> Digests:
        """What is in the bucket for images of feeds to restore, and is not served meanwhile."""
        kept = {}
        for url in (url for image in images for url in urls_of(image)):
            assert (await self._http.get(url)).status_code == 404, f"{url} is of a deleted feed"
            key, bucket = url.removeprefix(f"{self._url}/"), self._settings().s3_bucket
            found = await s3.get_object(Bucket=bucket or "", Key=key)
            kept[url] = digest_of(await found["Body"].read())
        return kept

    async def _load(self, url: str) -> str | None:
        """Load an image; what was decoded once need not be again."""
        answer = await self._http.get(url)
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, f"{url}: {answer.status_code} {answer.text[:300]}"
        self._counts["images loaded"] += 1
        digest = digest_of(answer.content)
        if digest not in self._decoded:
            pictures.decode(answer.content)
            self._decoded.add(digest)
        return digest

    async def _compare(self, db: AsyncSession, s3: S3Client, urls: set[str]) -> None:
        """Bucket ⊆ rows, and what is attached is what feeds show, and is there."""
        # Before the bucket: the reaper may be at work, and takes the object first.
        rows = await _rows(db)
        objects = await keys_in(s3, self._settings())
        attached = {key for key, state in rows.items() if state == ImageState.ATTACHED}
        assert attached == {url.removeprefix(f"{self._url}/") for url in urls}
        assert attached <= objects, f"objects are missing: {attached - objects}"
        assert objects <= rows.keys(), f"objects without rows: {objects - rows.keys()}"
        self._counts["objects compared"] += len(objects)
        self._counts["left-overs seen"] += len(objects - attached)
        # Their time has passed, and must not matter: the service's reaper is told so early.
        await _time_passes(db, ImageState.ATTACHED)

    async def purged(self) -> None:
        """Wait until the service has removed what cannot be restored any more."""
        over = select(func.count()).where(Feed.deleted_dt.is_not(None))
        async with self._storage() as (db, _), asyncio.timeout(QUIET):
            while True:
                async with db.begin():
                    if not await db.scalar(over):
                        return
                await asyncio.sleep(0.05)

    async def collect(self, clients: Sequence[Client]) -> None:
        """Let the grace pass, reap, and find in the bucket what feeds show and nothing else.

        Grace and delays outlast any upload that may be under way, and none is: so all left-overs
        may be due at once.
        """
        settings = self._settings()
        async with open_capabilities(settings) as able, self._storage() as (db, s3):
            before = await keys_in(s3, settings)
            await _time_passes(db, *ImageState)
            async with asyncio.timeout(QUIET):
                # The service reaps too; what it has claimed is due again at once.
                while any(state != ImageState.ATTACHED for state in (await _rows(db)).values()):
                    await reap(db, able.images)
                    await _time_passes(db, ImageState.CONDEMNED)
            attached, after = set(await _rows(db)), await keys_in(s3, settings)
        assert after == attached, (after - attached, attached - after)
        for client in clients:
            client.pending.clear()
        self._counts["objects at the end"] += len(after)
        self._counts["objects reaped at the end"] += len(before - after)

    @asynccontextmanager
    async def _storage(self) -> AsyncGenerator[tuple[AsyncSession, S3Client]]:
        settings = self._settings()
        async with (
            open_s3(settings) as s3,
            open_engine(settings) as engine,
            session_factory(engine)() as db,
        ):
            yield db, s3


def _images(feeds: dict[int, Json]) -> list[Json]:
    return [image for feed in feeds.values() for image in feed["images"]]


def _same_feeds(feeds: dict[int, Json], own: Sequence[Json]) -> None:
    """Both lists say of each image which feed shows it."""
    posted = {image["id"]: feed_id for feed_id, feed in feeds.items() for image in feed["images"]}
    assert posted == {image["id"]: image["feed_id"] for image in own if image["feed_id"]}


async def _quiet(db: AsyncSession) -> None:
    """Wait until the database has ended what was asked of it; nothing may stay open in it."""
    async with asyncio.timeout(QUIET):
        while True:
            async with db.begin():
                if not await db.scalar(text(BUSY)):
                    return
            await asyncio.sleep(0.05)


async def _rows(db: AsyncSession) -> dict[str, ImageState]:
    async with db.begin():
        return dict((await db.execute(select(Image.key, Image.state))).all())


async def _time_passes(db: AsyncSession, *states: ImageState) -> None:
    async with db.begin():
        due = update(Image).where(Image.state.in_(states)).values(reap_dt=AN_HOUR_AGO)
        await db.execute(due)
