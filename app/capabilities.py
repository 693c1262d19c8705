"""What the service works with: opened for the process's life, and lent to the routes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

from fastapi import FastAPI

import migrations
from app import telemetry
from app.fast_reads import Reads
from config.db import (
    FairPool,
    Sessions,
    open_connection,
    open_engine,
    reading,
    require_bounds,
    session_factory,
)
from config.readers import open_readers
from config.s3 import open_s3, require_bucket
from config.settings import Settings, SettingsError
from config.turns import Use
from services.attempts import LoginAttempts
from services.counters import Counters, open_counters
from services.export import Exports
from services.leaving import Eraser
from services.likes import Likes, open_likes
from services.mail import open_post
from services.passwords import Passwords
from services.pictures import Limits, open_cleaner
from services.postman import send_forever
from services.reaper import reap_forever
from services.revocations import Revocations
from services.store import ImageStore
from services.tokens import Tokens


async def prepare(settings: Settings) -> None:
    """Before anything is served: the newest schema, and a bucket to put images in.

    Raises SettingsError, naming what is wrong, and OperationalError without a database.
    """
    async with open_engine(settings.direct, patience=None) as engine, open_s3(settings) as s3:
        await require_bounds(engine, patience=None)
        await migrations.upgrade(engine)
        await require_bucket(s3, settings)


@dataclass(frozen=True)
class Capabilities:
    """What the services work with; one of each for the process's life."""

    sessions: Sessions
    reading: Sessions
    images: ImageStore
    passwords: Passwords
    tokens: Tokens
    revocations: Revocations
    likes: Likes
    counters: Counters
    attempts: LoginAttempts
    exports: Exports
    eraser: Eraser
    reads: Reads
    pools: Mapping[str, Callable[[], Use]]


def lend(app: FastAPI, able: Capabilities) -> None:
    """Put all capabilities where routes ask for them, by their names."""
    for each in fields(able):
        setattr(app.state, each.name, getattr(able, each.name))


@asynccontextmanager
async def open_capabilities(settings: Settings) -> AsyncGenerator[Capabilities]:
    """Open what the services need; close it in reverse order."""
    if settings.secret_key is None:
        raise SettingsError("SECRET_KEY is missing.")
    limits = Limits(bytes=settings.max_image_bytes, pixels=settings.max_image_pixels)
    async with (
        open_engine(settings) as engine,
        open_readers(settings) as readers,
        open_s3(settings) as s3,
        open_cleaner(limits, workers=settings.image_workers, widths=settings.widths) as cleaner,
        open_counters(settings.redis, "rates") as counters,
        # Apart, so that no flood of requests pushes failed log-ins out of memory.
        open_counters(settings.redis, "attempts") as attempts,
    ):
        sessions, tokens = session_factory(engine), Tokens(settings)
        images = ImageStore(s3, cleaner, settings)
        yield Capabilities(
            sessions=sessions,
            reading=reading(engine),
            images=images,
            passwords=Passwords(settings.password_workers),
            tokens=tokens,
            revocations=Revocations(sessions, tokens.seconds),
            likes=open_likes(sessions),
            counters=counters,
            attempts=LoginAttempts(None if settings.rates is None else attempts),
            exports=Exports(),
            eraser=Eraser(sessions, images),
            reads=Reads(readers, base_url=images.url(""), show_emails=settings.show_emails),
            pools={
                "all": cast(FairPool, engine.pool).use,
                "reads": readers.use,
                "pictures": cleaner.use,
            },
        )


@asynccontextmanager
async def lifespan(settings: Settings, app: FastAPI) -> AsyncGenerator[None]:
    """What an application has, and does by itself, for as long as it runs."""
    async with open_capabilities(settings) as able:
        lend(app, able)
        reaping = reap_forever(able.sessions, able.images, restorable=settings.restorable)
        sending = send_forever(able.sessions, open_post(settings))
        following = able.revocations.follow(
            partial(open_connection, settings.direct), hears=not settings.direct.database_pooler
        )
        erasing = able.eraser.erase_forever()
        works = [reaping, sending, following, erasing]
        if settings.metrics_port is not None:
            from app.metrics import look_forever  # which keeps figures as soon as it is loaded

            works.append(look_forever(able.sessions, able.pools))
        async with AsyncExitStack() as stack:
            for work in works:
                await stack.enter_async_context(_background(work))
            yield


@asynccontextmanager
async def _background(work: Any) -> AsyncGenerator[None]:
    with telemetry.unobserved():
        task = asyncio.create_task(work, name="background")
    try:
        yield
    finally:
        # Again and again: a driver that is cut off at the wrong moment may report a timeout, which
        # the work takes for the database's and goes on.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1)
        if not task.cancelled():
            task.result()
