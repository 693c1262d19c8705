"""Whatever dies, nothing that was acknowledged is lost, and nothing is left behind.

A real service on a real PostgreSQL and SeaweedFS, under traffic. A few rounds here;
`FEEDBOARD_CRASHES=200` (`make crashes`) is the long form, and prints its counts.
"""

import asyncio
import json
import os
import signal
import time
from contextlib import asynccontextmanager, contextmanager

import pytest

from app import embedded
from tests.conftest import SECRET, make_settings, own_folder
from tests.crashes import CUT, DATABASE_DOWN, STORE_DOWN, Part, Scene, Service

LONG = int(os.environ.get("FEEDBOARD_CRASHES", "0"))
# What the dice say; when requests meet a signal remains the machine's business.
SEED = int(os.environ.get("FEEDBOARD_CRASHES_SEED", time.time_ns() % 1_000_000))
KILLS = LONG or 3
OUTAGES = LONG // 10 or 1
EMBEDDED_KILLS = LONG // 10


@pytest.fixture(scope="module")
async def parts():
    """A database and a store that outlive the service, and can be killed by themselves."""
    with own_folder() as folder:
        database = Part(embedded.postgres, folder, "-D")
        store = Part(embedded.object_store, folder, "mini")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(database.start())
                group.create_task(store.start())
            yield database, store
        finally:
            for part in (store, database):
                part.kill(signal.SIGKILL)  # quicker than asking
                await part.stop()


@pytest.fixture(scope="module")
async def scene(parts):
    database, store = parts
    external = {
        "database_url": database.found,
        "secret_key": SECRET,
        "s3_bucket": "crashes",
        "s3_endpoint_url": store.found.endpoint_url,
        "s3_access_key": store.found.access_key,
        "s3_secret_key": store.found.secret_key,
    }
    with own_folder() as folder:
        service = Service(folder, **{name.upper(): value for name, value in external.items()})
        async with playing(Scene(service, lambda: make_settings(**external), SEED)) as scene:
            yield scene


@asynccontextmanager
async def playing(scene):
    try:
        await scene.begin()
        yield scene
    finally:
        await scene.http.aclose()
        scene.service.close()


@contextmanager
def counted(scene, name):
    """Counts of one test, printed also when it fails."""
    scene.counts.clear()
    try:
        yield
    finally:
        scene.report(name)


async def kill_and_restart(scene):
    """SIGKILL under traffic; now and then once more while it starts."""
    async with scene.traffic():
        await scene.some_time(0.05, 1.2)
        scene.trouble = {CUT}
        scene.service.kill()
    if scene.random.random() < 0.1:
        scene.service.launch()
        await scene.some_time(0, 1.5)
        scene.service.kill()
        scene.counts["kills while starting"] += 1
    await scene.service.start()
    await scene.audit()


async def outage(scene, part, problem, name, signals):
    """A part ends under traffic and comes back; in the long form the service too, at times."""
    async with scene.traffic():
        await scene.some_time(0.1, 0.8)
        scene.trouble = {problem}
        part.kill(scene.random.choice(signals))
        await scene.some_time(0.1, 1)
        await says_what_is_down(scene, name)
        await scene.some_time(0, 2)
        if dies_too := LONG and scene.random.random() < 0.2:
            scene.trouble.add(CUT)
            scene.service.kill()
            scene.counts["kills of the service during an outage"] += 1
        await part.start()
        if dies_too:
            await scene.service.start()
        await scene.recovered()
    await scene.audit()


async def says_what_is_down(scene, name):
    ready = await scene.http.get("/readyz")
    assert (ready.status_code, name in ready.text) == (503, True), ready.text
    assert (await scene.http.get("/healthz")).status_code == 200


async def test_no_kill_of_the_service_loses_an_acknowledged_write_or_leaves_an_object(scene):
    with counted(scene, "The service is killed"):
        for _ in range(KILLS):
            await kill_and_restart(scene)
        await scene.collect()


async def test_no_end_of_the_object_store_loses_an_image_or_leaves_one(scene, parts):
    signals = [signal.SIGKILL, signal.SIGTERM]
    with counted(scene, "The object store is killed"):
        for _ in range(OUTAGES):
            await outage(scene, parts[1], STORE_DOWN, "bucket", signals)
        await scene.collect()


async def test_no_end_of_the_database_loses_an_acknowledged_write_or_leaves_an_object(scene, parts):
    signals = [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT]
    with counted(scene, "The database is killed"):
        for _ in range(OUTAGES):
            await outage(scene, parts[0], DATABASE_DOWN, "database", signals)
        await scene.collect()


@pytest.mark.skipif(not LONG, reason="test_cli.py kills one such service; `make crashes` many")
async def test_a_killed_service_that_brought_its_own_parts_finds_them_whole_again():
    with own_folder() as folder:
        notice = folder / "data" / "running.json"

        def found():
            return make_settings(**json.loads(notice.read_text()))

        async with playing(Scene(Service(folder), found, SEED)) as scene:
            with counted(scene, "The service is killed, its parts are embedded"):
                for _ in range(EMBEDDED_KILLS):
                    await kill_and_restart(scene)
                await scene.collect()
