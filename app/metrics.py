"""Prometheus' figures, as each process counts them; `app.exposition` tells those of all.

Names and units are those of OpenTelemetry's conventions where it has some
(https://opentelemetry.io/docs/specs/semconv/), as Prometheus writes them.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import cache
from math import nan

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

from app.request_log import Sent
from config.db import DatabaseError, Sessions
from config.turns import Use
from services import reaper

# Seconds between looks at the pools, and at the ledger.
LOOK_EVERY = 1.0
COUNT_EVERY = 15.0
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_own = CollectorRegistry()

requests = Histogram(
    "http_server_request_duration_seconds",
    "From a request's head to the end of its answer.",
    ["http_request_method", "http_route", "http_response_status_code"],
    registry=_own,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)


def _gauge(name: str, help_: str, *labels: str, of: str = "livesum") -> Gauge:
    return Gauge(name, help_, labels, registry=_own, multiprocess_mode=of)  # type: ignore[arg-type]


_POOL = "db_client_connection_pool_name"
connections = _gauge(
    "db_client_connection_count", "Connections.", _POOL, "db_client_connection_state"
)
connections_max = _gauge("db_client_connection_max", "As many as there may be.", _POOL)
pending = _gauge("db_client_connection_pending_requests", "Who waits for a connection.", _POOL)
pictures = _gauge("feedboard_pictures", "Pictures that are cleaned, and that wait for it.", "state")
# Each process counts the same table.
images = _gauge("feedboard_images", "Rows of the ledger.", "state", of="livemostrecent")
lag = _gauge(
    "feedboard_reaper_lag_seconds",
    "How long the oldest image has been due to be deleted.",
    of="livemostrecent",
)
memory = _gauge("process_resident_memory_bytes", "Of a process.", of="liveall")
cpu = Counter("process_cpu_seconds", "Of all processes.", registry=_own)


def count(scope: Scope, sent: Sent, route: str | None, started: float, _: str) -> None:
    """Count a request that has ended, and `started` by time.perf_counter()."""
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    series = _series(method, route or "", sent.status or 0)
    series.observe(time.perf_counter() - started)


@cache  # They are few: an unknown path has no route.
def _series(method: str, route: str, status: int) -> Histogram:
    return requests.labels(method, route, str(status) if status else "")


async def look_forever(sessions: Sessions, pools: Mapping[str, Callable[[], Use]]) -> None:
    """Look at what is no event but a state, again and again, for the process's life."""
    process, used, counted = psutil.Process(), 0.0, -COUNT_EVERY
    while True:
        for name, pool in pools.items():
            _note(name, pool())
        memory.set(process.memory_info().rss)
        times = process.cpu_times()
        cpu.inc(times.user + times.system - used)
        used = times.user + times.system
        if time.monotonic() - counted >= COUNT_EVERY:
            counted = time.monotonic()
            await _count_images(sessions)
        await asyncio.sleep(LOOK_EVERY)


def _note(name: str, use: Use) -> None:
    if name == "pictures":
        pictures.labels("working").set(use.used)
        pictures.labels("waiting").set(use.waiting)
        return
    connections.labels(name, "used").set(use.used)
    connections.labels(name, "idle").set(use.idle)
    connections_max.labels(name).set(use.limit)
    pending.labels(name).set(use.waiting)


async def _count_images(sessions: Sessions) -> None:
    try:
        async with sessions() as db:
            backlog = await reaper.backlog(db)
    except DatabaseError:
        # Whoever reads them is to see that they are not known; the reaper has said why.
        lag.set(nan)
        return
    for state, rows in backlog.rows.items():
        images.labels(state).set(rows)
    lag.set(backlog.seconds)
