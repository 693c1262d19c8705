"""The application: what it serves, and what stands before that."""

import gc
import multiprocessing
import os
import signal
import threading
from functools import partial
from importlib.metadata import version
from multiprocessing.process import BaseProcess

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app import docs, etags, headers, logs, problems, rate_limits, telemetry
from app.capabilities import lifespan
from app.deadline import Deadline
from app.fast_reads import FastReads
from app.guard import BodyGuard
from app.hosts import KnownHosts
from app.pages import add_pages
from app.protocol import BoundedHead
from app.proxies import TrustedProxies
from app.request_log import Ended, RequestLog, observer
from app.shedding import shed
from config.settings import Settings
from routers import (
    accounts,
    auth,
    comments,
    deleted,
    feeds,
    follows,
    health,
    images,
    leaving,
    likes,
    profiles,
    sessions,
)
from routers import problems as problem_pages
from routers.dependencies import verified

KIB = 1024
# The order in which the API's pages show them.
TAGS = "Auth", "Feeds", "Images", "Comments", "Likes", "Follows", "Profiles", "My page", "Health"


class Feedboard(FastAPI):
    """FastAPI, and what stands before it."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.front(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The whole service as one ASGI application; nothing is opened before its lifespan begins."""
    if telemetry.wanted():
        telemetry.instrument()
    app = Feedboard(
        title="Feedboard",
        version=version("feedboard"),
        description="Posts with pictures: write, read, list, change and delete them.",
        lifespan=partial(lifespan, settings),
        telemetry=telemetry.CONFIG,
        docs_url=None,
        redoc_url=None,
        openapi_tags=[{"name": name} for name in TAGS],
        # Short operation ids, for the function names of generated clients.
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.draining = False
    problems.install(app)
    limits = None if settings.rates is None else rate_limits.Limits(settings.rates)
    ended = observer(settings)
    _add_middleware(app, settings, limits, ended)
    lane = partial(FastReads, state=app.state, settings=settings, limits=limits, ended=ended)
    in_front = settings.fast_reads and not telemetry.wanted()
    if settings.fast_reads and not in_front:
        # FastAPI's telemetry is around its middleware, and has to be around this, too.
        app.add_middleware(lane)
    plain = partial(FastAPI.__call__, app)
    app.front = shed(plain, lane if in_front else None, settings, ended)
    if settings.proxies:
        app.front = TrustedProxies(app.front, proxies=settings.proxies)
    # Of the routers that write; keeping one's account is left to those who are not verified, too.
    writing = [Depends(verified)] if settings.require_verified_email else []
    # They are tried one after the other: the busiest first.
    for router in (feeds.router, images.api):
        app.include_router(
            router,
            dependencies=writing,
            max_body_size=settings.max_body_bytes,
            # More files than a feed may have are still parsed, to be refused in words.
            form_limits={
                "max_files": 2 * settings.max_images + 10,
                "max_fields": 2 * settings.max_images + 10,
                "max_part_size": 512 * KIB,
            },
        )
    app.include_router(images.router, max_body_size=0)
    app.include_router(likes.router, max_body_size=64 * KIB, dependencies=writing)
    # All characters of a comment fit, also when JSON spells out each as two halves of a pair.
    app.include_router(comments.router, max_body_size=128 * KIB, dependencies=writing)
    app.include_router(auth.router, max_body_size=64 * KIB)
    app.include_router(accounts.router, max_body_size=64 * KIB)
    app.include_router(sessions.router, max_body_size=64 * KIB)
    app.include_router(deleted.router, max_body_size=0, dependencies=writing)
    app.include_router(follows.router, max_body_size=64 * KIB, dependencies=writing)
    app.include_router(profiles.router, max_body_size=64 * KIB, dependencies=writing)
    app.include_router(leaving.router, max_body_size=64 * KIB)
    app.include_router(health.router, max_body_size=0)
    app.include_router(problem_pages.router, max_body_size=0)
    docs.add(app)
    add_pages(app)
    return app


def from_environment() -> FastAPI:
    """What a worker process serves; its parent has put all settings into the environment."""
    settings = Settings.load()
    logs.configure(settings)
    BoundedHead.max_connections = settings.max_connections
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    app = create_app(settings)
    # By the parent, which alone is told to stop.
    signal.signal(DRAIN, lambda *_: drain(app))
    settle()
    return app


def drain(app: FastAPI) -> None:
    """Have proxies turn elsewhere, while everybody who still comes is served as before."""
    app.state.draining = BoundedHead.draining = True


# What a worker drains at.
DRAIN = signal.SIGUSR1


def settle() -> None:
    """Keep the garbage collector from what is there for good, and have it look less often.

    Else it goes through all modules and routes again and again, while every request waits.
    """
    # Without looking once more: nothing of what was loaded is garbage worth the tenth of a second.
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 50)


def _die_with(parent: BaseProcess) -> None:
    # A killed parent cannot stop its workers, which would keep the port from the next start.
    parent.join()
    os._exit(1)


def _add_middleware(
    app: FastAPI, settings: Settings, limits: rate_limits.Limits | None, ended: Ended | None
) -> None:
    # The last one added is the outermost.
    app.add_middleware(BodyGuard)
    app.add_middleware(problems.LastResort)
    if limits is not None:
        app.add_middleware(rate_limits.RateLimits, limits=limits)
    app.add_middleware(Deadline, seconds=settings.request_timeout)
    app.add_middleware(etags.ETags)
    if settings.hosts:
        app.add_middleware(KnownHosts, names=settings.hosts)
    app.add_middleware(CORSMiddleware, **headers.of_cors(settings))
    app.add_middleware(headers.SecurityHeaders, settings=settings)
    app.add_middleware(RequestLog, ended=ended)
