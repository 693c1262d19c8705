"""Doing the same for several things, some at a time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def each(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int = 8
) -> Sequence[R]:
    """The results of some work in the order of the items, so many of which are under way.

    When it fails for one, the others end, and what that raised is raised.
    """
    turns = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with turns:
            return await work(item)

    failed = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except* Exception as failures:
        failed = failures.exceptions[0]
    # Raised out here: in there, Python before 3.11.4 would make a group of it again.
    if failed is not None:
        raise failed
    return [task.result() for task in tasks]


async def batches(items: AsyncGenerator[T], size: int) -> AsyncGenerator[list[T]]:
    """Items in lists of this size; the last one may be shorter. They are closed with it."""
    batch: list[T] = []
    async with aclosing(items):
        async for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch
