"""The whole service behind a socket, as `feedboard serve` runs it, in the test's own event loop."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext

import uvicorn

from app.capabilities import prepare
from app.main import create_app
from app.protocol import OPTIONS
from config.settings import Settings


@asynccontextmanager
async def served(settings: Settings) -> AsyncGenerator[str]:
    """Lend the URL of a free loopback port at which the service listens, its lifespan included."""
    await prepare(settings)
    config = uvicorn.Config(
        create_app(settings),
        port=0,
        **OPTIONS,
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # Ctrl-C is for pytest.
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the service does not start"
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
