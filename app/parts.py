"""The parts that a service stands on: those that the settings name, embedded ones for the rest."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from app import embedded
from app.servers import EmbeddedFailed, write_private
from config.settings import Settings

BUCKET = "feedboard"


@asynccontextmanager
async def open_parts(settings: Settings, *, share: bool = False) -> AsyncGenerator[Settings]:
    """Start what the settings leave to us, and lend settings in which nothing is left out.

    With `share`, parts that a running service has started are used as they are. Raises
    DataDirInUse and EmbeddedFailed.
    """
    if not (settings.embeds_database or settings.embeds_store):
        yield settings
        return
    notice = settings.data_dir / "running.json"
    async with AsyncExitStack() as stack:
        try:
            stack.enter_context(embedded.hold(settings.data_dir))
        except embedded.DataDirInUse:
            if not share or not notice.exists():
                raise
            yield settings.replace(**json.loads(notice.read_text()))
            return
        found = await _start(stack, settings)
        write_private(notice, json.dumps(found))
        stack.callback(notice.unlink, missing_ok=True)
        yield settings.replace(**found)


async def _start(stack: AsyncExitStack, settings: Settings) -> dict[str, Any]:
    """Start both parts at once; gives what they add to the settings."""
    found: dict[str, Any] = {}

    async def start_database() -> None:
        found["database_url"] = await stack.enter_async_context(
            embedded.postgres(settings.data_dir)
        )
        if settings.secret_key is None:
            found["secret_key"] = _kept_secret(settings.data_dir / "secret-key")

    async def start_store() -> None:
        store = await stack.enter_async_context(embedded.object_store(settings.data_dir))
        found.update(
            s3_bucket=BUCKET,
            s3_endpoint_url=store.endpoint_url,
            s3_access_key=store.access_key,
            s3_secret_key=store.secret_key,
        )

    failed = None
    try:
        async with asyncio.TaskGroup() as group:
            if settings.embeds_database:
                group.create_task(start_database())
            if settings.embeds_store:
                group.create_task(start_store())
    except* EmbeddedFailed as failures:
        failed = failures.exceptions[0]
    # Raised out here: in there, Python before 3.11.4 would make a group of it again.
    if failed is not None:
        raise failed
    return found


def _kept_secret(file: Path) -> str:
    """The secret in this file, which is written at the first call and readable to us alone."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(48))
    return file.read_text()
