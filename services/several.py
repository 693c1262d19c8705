"""Doing the same for several things, a few at a time."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def each(things: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do it for all; when it fails for one, the others end, and what that raised is raised."""
    limiter, failed = anyio.CapacityLimiter(at_once), None

    async def limited(thing: T) -> None:
        async with limiter:
            await work(thing)

    try:
        async with anyio.create_task_group() as group:
            for thing in things:
                group.start_soon(limited, thing)
    except* Exception as failures:
        failed = failures.exceptions[0]
    # Raised out here: in there, Python before 3.11.4 would make a group of it again.
    if failed is not None:
        raise failed
