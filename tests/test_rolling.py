"""A rolling restart: behind a real proxy two services are replaced, and nobody notices."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import SECRET, bearer, own_folder, user_maker
from tests.crash_parts import Service, lasting_port

CADDY = str(Path(sys.executable).parent / "caddy")
# The proxy asks each 0.1 s, and gives up on who is not ready at once.
DRAIN = "1"
CLIENTS = 6


@asynccontextmanager
async def proxy(folder, services):
    """Caddy, which asks `/readyz` and tries nothing twice."""
    port = lasting_port()
    upstream = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{service.port}"} for service in services],
        "load_balancing": {"selection_policy": {"policy": "round_robin"}, "retries": 0},
        "health_checks": {"active": {"uri": "/readyz", "interval": "100ms", "timeout": "2s"}},
    }
    server = {"listen": [f"127.0.0.1:{port}"], "routes": [{"handle": [upstream]}]}
    server["automatic_https"] = {"disable": True}
    config = {"admin": {"disabled": True}, "apps": {"http": {"servers": {"board": server}}}}
    file = folder / "caddy.json"
    file.write_text(json.dumps(config))
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            [CADDY, "run", "--config", str(file)],
            env={"HOME": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(20):
                while not await _is_ready(client):
                    assert process.poll() is None, (folder / "caddy.log").read_text()
                    await asyncio.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait(10)


async def _is_ready(client):
    with contextlib.suppress(httpx.TransportError):
        return (await client.get("/readyz")).status_code == 200
    return False


async def stop(service):
    """As a supervisor does; it has to end by itself, and well."""
    process, service.process = service.process, None
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 40) == 0, service.last_words()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_rolling_restart_fails_no_request(make_database, store, workers):
    given = {"database_url": await make_database(), "secret_key": SECRET} | store
    environment = {name.upper(): str(value) for name, value in given.items()}
    async with AsyncExitStack() as stack:
        services = []
        for _ in range(2):
            folder = stack.enter_context(own_folder())
            services.append(Service(folder, **environment, DRAIN_SECONDS=DRAIN))
            services[-1].serve_with(workers)
            stack.callback(services[-1].close)
        await asyncio.gather(*(service.start() for service in services))
        folder = stack.enter_context(own_folder())
        client = await stack.enter_async_context(proxy(folder, services))
        people = [await user_maker(client)() for _ in range(CLIENTS)]
        answers, over, written = Counter(), asyncio.Event(), []

        async def visit(user):
            while not over.is_set():
                words = {"title": "T", "content": "C"}
                posted = await client.post("/api/feed/create", data=words, headers=bearer(user))
                answers[posted.status_code] += 1
                if posted.status_code == 200:
                    written.append(posted.json()["id"])
                for path in ("/api/feed/list", f"/api/feed/read/{written[-1]}"):
                    answers[(await client.get(path)).status_code] += 1

        async with asyncio.TaskGroup() as group:
            for user in people:
                group.create_task(visit(user))
            await asyncio.sleep(0.5)
            for service in services:
                await stop(service)
                await service.start()
                await asyncio.sleep(0.5)
            over.set()

        assert set(answers) == {200}, answers
        assert answers[200] > 100
        there = await client.get("/api/feed/list?limit=1&total=true")
        assert int(there.headers["x-total-count"]) == len(written) == len(set(written))


async def test_who_drains_serves_says_so_and_keeps_no_connection(live_app, live_client):
    """What a proxy sees of it, while it is still asked."""
    before = await live_client.get("/readyz")
    live_app.state.draining = True
    draining = await live_client.get("/readyz")
    listed = await live_client.get("/api/feed/list")

    assert [it.status_code for it in (before, draining, listed)] == [200, 503, 200]
    assert draining.json()["detail"] == "The service is being stopped."
