"""Batches: requests of the same moment, carried out together."""

import asyncio

import pytest

from services.batches import Batches


@pytest.fixture
def seen():
    return []


@pytest.fixture
def batches(seen):
    """Batches that double numbers, a turn of the loop for each batch; 13 is unlucky."""

    async def double(thing, numbers):
        seen.append((thing, list(numbers)))
        await asyncio.sleep(0)
        if 13 in numbers:
            raise ValueError("unlucky")
        return [ZeroDivisionError() if number == 0 else 2 * number for number in numbers]

    return Batches(double)


async def test_the_first_waits_for_nobody_and_the_others_gather_behind_it(batches, seen):
    first = asyncio.create_task(batches.ask("a", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(batches.ask("a", number)) for number in (2, 3, 4)]

    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert seen == [("a", [1]), ("a", [2, 3, 4])]


async def test_each_thing_has_batches_of_its_own(batches, seen):
    assert await asyncio.gather(batches.ask("a", 1), batches.ask("b", 2)) == [2, 4]
    assert seen == [("a", [1]), ("b", [2])]


async def test_an_error_is_the_answer_of_one_and_a_failure_that_of_its_batch(batches):
    async def ask(*numbers):
        asked = (batches.ask("a", number) for number in numbers)
        return await asyncio.gather(*asked, return_exceptions=True)

    error, fine = await ask(0, 1)
    assert (type(error), fine) == (ZeroDivisionError, 2)
    assert [str(error) for error in await ask(13, 1)] == ["unlucky", "unlucky"]
    assert await ask(1) == [2]


async def test_whoever_is_cancelled_takes_nobody_along(batches, seen):
    asked = [asyncio.create_task(batches.ask("a", number)) for number in range(1, 4)]
    await asyncio.sleep(0)
    asked[0].cancel()
    await asyncio.sleep(0)
    asked[1].cancel()

    first, second, third = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, asyncio.CancelledError)
    assert third == 6
    assert not batches._waiting
    assert await batches.ask("a", 5) == 10
