"""A real browser, and a `feedboard serve` process that it can reach."""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, async_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LEFT_OUT = (
    "Swagger UI was not tried in a browser, because there is no Chromium here. "
    "Install one (Debian: apt-get install chromium) and run this test again."
)
# Only the service itself can be reached, as on a machine with no internet access.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        required = os.environ.get("CI") or os.environ.get("FEEDBOARD_REQUIRE_BROWSER")
        (pytest.fail if required else pytest.skip)(LEFT_OUT)
    async with async_playwright() as playwright:
        arguments = [OFFLINE, *QUIET.split()]
        browser = await playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        await browser.close()


@asynccontextmanager
async def serving(folder: Path, settings: dict[str, Any]) -> AsyncGenerator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = settings | {"port": port, "data_dir": folder}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("feedboard"),
            "serve",
            cwd=folder,
            env=os.environ | {name.upper(): str(value) for name, value in given.items()},
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://localhost:{port}"
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=url) as client:
            while not await is_ready(client):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.1)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx.TransportError:
        return False
