"""Whatever goes wrong around the service, clients are told so in words, it heals by itself, and
nothing that was acknowledged is lost.

A real service, PostgreSQL and SeaweedFS under traffic, and wires between them that fail in ways of
their own. A few faults here, briefly; `FEEDBOARD_CHAOS=2,15` (`make chaos`) tries each for so many
seconds, and prints what docs/reliability.md says.
"""

import os
import signal
import time

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.chaos import HEAD, Fault, Row, suffer
from tests.chaos_house import SLOW_DOWN, failing, opened
from tests.chaos_overload import MIB, Crowd, quantile
from tests.conftest import own_folder
from tests.crash_clients import CUT, DATABASE_DOWN, STORE_DOWN
from tests.crash_parts import READY, service_in, where

SECONDS = [float(each) for each in os.environ.get("FEEDBOARD_CHAOS", "").split(",") if each]
LONG = bool(SECONDS)
SEED = int(os.environ.get("FEEDBOARD_CHAOS_SEED", time.time_ns() % 1_000_000))
# Seconds in which all is well again. A statement that hangs is given up after 30, and a connection
# is made anew in 5; an image is put for 45; and a slow machine may need some more.
DATABASE, STORE, SLACK = 30.0 + 5, 45.0, 10.0
_OF_DATABASE, _OF_STORE = ((DATABASE_DOWN,), DATABASE + SLACK), ((STORE_DOWN,), STORE + SLACK)
FAULTS = [
    Fault("PostgreSQL restarts", lambda it: it.restarted(it.database), *_OF_DATABASE),
    Fault("PostgreSQL has no connections", lambda it: it.no_connections(), *_OF_DATABASE),
    Fault("PostgreSQL is 0.3 s away", lambda it: failing(it.to_database, delay=0.3), (), SLACK),
    Fault(
        "1 of 20 messages to PostgreSQL resets the connection",
        lambda it: failing(it.to_database, resets=0.05),
        *_OF_DATABASE,
    ),
    Fault(
        "the store answers SlowDown", lambda it: failing(it.to_store, refusal=SLOW_DOWN), *_OF_STORE
    ),
    Fault(
        "1 of 10 messages to the store resets the connection",
        lambda it: failing(it.to_store, resets=0.1),
        *_OF_STORE,
    ),
    Fault("one of two workers is killed", lambda it: it.worker_killed(), (CUT,), READY),
]
# These take longer, or are done to it by test_crashes.py, too.
LONG_FAULTS = [
    Fault("PostgreSQL is stopped", lambda it: it.database.dead(signal.SIGINT), *_OF_DATABASE),
    Fault("PostgreSQL hangs", lambda it: it.database.hanging(), *_OF_DATABASE),
    Fault(
        "PostgreSQL's host is gone without a word",
        lambda it: failing(it.to_database, black_hole=True),
        *_OF_DATABASE,
    ),
    Fault("the store restarts", lambda it: it.restarted(it.store), *_OF_STORE),
    Fault("the store is stopped", lambda it: it.store.dead(signal.SIGTERM), *_OF_STORE),
    Fault("the store hangs", lambda it: it.store.hanging(), *_OF_STORE),
    Fault("the store is 0.3 s away", lambda it: failing(it.to_store, delay=0.3), (), SLACK),
    Fault(
        "the store's host is gone without a word",
        lambda it: failing(it.to_store, black_hole=True),
        *_OF_STORE,
    ),
    Fault("the service is killed, with two workers", lambda it: it.killed(), (CUT,), READY),
]


@pytest.fixture(scope="module")
async def house():
    async with opened(SEED) as house:
        yield house
    print(f"\n(seed {SEED}){HEAD}")
    for row in house.rows.values():
        print(row)


@pytest.mark.parametrize(
    "fault", [*FAULTS, *LONG_FAULTS] if LONG else FAULTS, ids=lambda fault: fault.name
)
async def test_clients_are_told_it_heals_and_nothing_is_lost(house, fault):
    row = house.rows.setdefault(fault.name, Row(fault.name))
    await house.serve_with(2 if CUT in fault.problems else 1)
    for seconds in SECONDS or [0.7]:
        await suffer(house, fault, seconds, row)
    if LONG:
        await house.scene.end()


@pytest.fixture
async def crowd(house):
    """A board of its own, without wires, and those who crowd it."""
    connection = await asyncpg.connect(**house.place())
    await connection.execute("CREATE DATABASE crowded")
    await connection.close()
    url = make_url(house.database.found).set(database="crowded")
    store_url = house.store.found.endpoint_url
    external = where(url.render_as_string(hide_password=False), house.store, store_url, "crowded")
    with own_folder() as folder:
        crowd = Crowd(service_in(folder, external))
        try:
            await crowd.service.start()
            await crowd.begin()
            yield crowd
        finally:
            await crowd.http.aclose()
            crowd.service.close()


async def test_of_ten_times_the_load_it_sheds_what_is_too_much_and_recovers_at_once(crowd):
    able = await crowd.load(seconds=4 if LONG else 2, rate=None, lines=32)
    before = crowd.memory()
    seconds, lines = (10, 1900) if LONG else (4, 500)
    rate = able["told"]["done"] / (4 if LONG else 2)
    async with crowd.watched() as seen:
        report = await crowd.load(seconds=seconds, rate=10 * rate, lines=lines)
    began = time.monotonic()
    after = [await crowd.ask_once(n) for n in range(100)]
    recovered = time.monotonic() - began

    told, took = report["told"], report["took"]
    print(f"\nIt can do {rate:.0f} a second; of ten times that:")
    for what, count in told.items():
        times = sorted(took.get(what, [0.0]))
        half, most = quantile(times, 0.5), quantile(times, 0.99)
        print(f"{count:>7,} {what}: {half:.2f} s, 99 of 100 in {most:.2f} s")
    print(f"health in {max(seen.health):.2f} s at most; {seen.memory / MIB:.0f} MiB at most,")
    print(f"{before / MIB:.0f} before; the next 100 in {recovered:.2f} s, {max(after):.2f} at most")

    # Nobody is cut off, nothing is a fault of ours, and it sheds.
    assert all(what == "done" or "/problems/" in what or "not sent" in what for what in told), told
    assert told["/problems/overloaded"] > 0
    assert quantile(sorted(took["/problems/overloaded"]), 0.5) < SLACK
    assert max(took["done"]) < DATABASE
    assert max(seen.health) < SLACK
    assert seen.memory - before < 256 * MIB
    assert await crowd.lost(report["written"]) == []
    checked = crowd.service.run("images", "fsck")
    assert checked.returncode == 0, checked.stdout
