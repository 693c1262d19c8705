"""Whatever dies or hangs, nothing that was acknowledged is lost, and nothing is left behind.

A real service on a real PostgreSQL and SeaweedFS, under traffic. A few rounds here;
`FEEDBOARD_CRASHES=200` (`make crashes`) is the long form, and prints its counts.
"""

import asyncio
import json
import os
import random
import signal
import time
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise

import pytest

from tests.conftest import make_settings, own_folder
from tests.crash_clients import CUT, DATABASE_DOWN, STORE_DOWN
from tests.crash_parts import Service, own_parts, service_in, where
from tests.crashes import Scene

LONG = int(os.environ.get("FEEDBOARD_CRASHES", "0"))
# What the dice say; when requests meet a signal remains the machine's business.
SEED = int(os.environ.get("FEEDBOARD_CRASHES_SEED", time.time_ns() % 1_000_000))
# What is killed: a service that is one process, one of its two workers, a parent of two workers.
SERVICE, WORKER, PARENT = "the service", "a worker", "the service with two workers"
VICTIMS = random.Random(SEED).choices([SERVICE, WORKER, PARENT], [6, 2, 2], k=LONG)
VICTIMS = VICTIMS or [WORKER, PARENT]
OUTAGES = LONG // 10 or 1
EMBEDDED_KILLS = LONG // 10
# A part: the problem that clients meet without it, its name in /readyz, and in the report.
DATABASE = DATABASE_DOWN, "database", "the database"
STORE = STORE_DOWN, "bucket", "the object store"
KILLS, STOPS = "kills", "stops"
BEYOND_PATIENCE = 65.0  # seconds: longer than the service waits for anything


@pytest.fixture(scope="module")
async def parts():
    """A database and a store that outlive the service, and can be killed by themselves."""
    with own_folder() as folder:
        async with own_parts(folder) as parts:
            yield parts


@pytest.fixture(scope="module")
async def scene(parts):
    database, store = parts
    external = where(database.found, store, store.found.endpoint_url, "crashes")
    with own_folder() as folder:
        service = service_in(folder, external)
        service.serve_with(workers(VICTIMS[0]))
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


def workers(victim):
    return 1 if victim == SERVICE else 2


def dice(scene, short):
    """Whether deleted feeds can be restored for a while; the short form has both once."""
    return scene.random.random() < 0.5 if LONG else short


async def kill(scene, victim, following):
    """SIGKILL under traffic; now and then once more while it starts."""
    service = scene.service
    await scene.let_restore(dice(scene, victim != PARENT))
    async with scene.traffic():
        await scene.some_time(0.05, 1.2)
        scene.expects(CUT)
        scene.counts[f"kills of {victim}"] += 1
        if victim == WORKER:
            await service.kill_a_worker(scene.random.randrange(2))
            await scene.recovered()
        else:
            service.kill()
    service.serve_with(workers(following))
    if LONG and service.process is None and scene.random.random() < 0.1:
        service.launch()
        await scene.some_time(0, 1.5)
        service.kill()
        scene.counts["kills while starting"] += 1
    await service.start()
    await scene.check()


async def outage(scene, trouble, kind, down, seconds):
    """A part is down under traffic for some time; in the long form the service dies too, at times.

    `down` is the part's own: dead, or hanging.
    """
    problem, name, title = trouble
    await scene.let_restore(dice(scene, trouble == DATABASE))
    async with scene.traffic():
        await scene.some_time(0.1, 0.8)
        scene.expects(problem)
        scene.counts[f"{kind} of {title}"] += 1
        async with down:
            await asyncio.sleep(seconds)
            if kind == KILLS or seconds > 3:
                await says_what_is_down(scene, name)
            if dies_too := LONG and scene.random.random() < 0.25:
                scene.expects(CUT)
                scene.service.kill()
                scene.counts[f"kills of the service during {kind}"] += 1
        if dies_too:
            await scene.service.start()
        await scene.recovered()
    await scene.check()


async def outages(scene, part, trouble, signals):
    chance = scene.random
    for _ in range(OUTAGES):
        dead = part.dead(chance.choice(signals))
        await outage(scene, trouble, KILLS, dead, chance.uniform(0.1, 3 if LONG else 1))
    several = [chance.uniform(0.5, 8) for _ in range(OUTAGES)]
    for seconds in [*several, BEYOND_PATIENCE] if LONG else [0.7]:
        scene.counts["stops longer than every patience"] += seconds >= BEYOND_PATIENCE
        await outage(scene, trouble, STOPS, part.hanging(), seconds)
    await scene.end()


async def says_what_is_down(scene, name):
    ready = await scene.http.get("/readyz")
    assert (ready.status_code, name in ready.text) == (503, True), ready.text
    assert (await scene.http.get("/healthz")).status_code == 200


async def test_no_kill_of_the_service_loses_an_acknowledged_write_or_leaves_an_object(scene):
    with counted(scene, "The service is killed"):
        for victim, following in pairwise([*VICTIMS, SERVICE]):
            await kill(scene, victim, following)
        await scene.end()


async def test_no_end_of_the_object_store_loses_an_image_or_leaves_one(scene, parts):
    signals = [signal.SIGKILL, signal.SIGTERM]
    with counted(scene, "The object store is killed, and hangs"):
        await outages(scene, parts[1], STORE, signals)


async def test_no_end_of_the_database_loses_an_acknowledged_write_or_leaves_an_object(scene, parts):
    signals = [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT]
    with counted(scene, "The database is killed, and hangs"):
        await outages(scene, parts[0], DATABASE, signals)


@pytest.mark.skipif(not LONG, reason="test_cli.py kills one such service; `make crashes` many")
async def test_a_killed_service_that_brought_its_own_parts_finds_them_whole_again():
    with own_folder() as folder:
        notice = folder / "data" / "running.json"

        def found():
            return make_settings(**json.loads(notice.read_text()))

        async with playing(Scene(Service(folder), found, SEED)) as scene:
            with counted(scene, "The service is killed, its parts are embedded"):
                for _ in range(EMBEDDED_KILLS):
                    await kill(scene, SERVICE, SERVICE)
                await scene.end()
