"""Quotas: how many images a user may have waiting, and how many bytes in all."""

import asyncio

import httpx
import pytest
from sqlalchemy import func, select

from models.image import Image
from tests.conftest import bearer, client_of, files, user_maker
from tests.pictures import annotated_png, camera_jpeg, photo
from tests.test_problems import assert_problem

PNG = annotated_png()
WIDE = camera_jpeg(image=photo(1000, 500))


async def upload(client, owner, *images):
    return await client.post(
        "/api/image/upload", files=files("images", *images), headers=bearer(owner)
    )


async def create(client, author, *images, **fields):
    return await client.post(
        "/api/feed/create",
        data={"title": "T", "content": "C"} | fields,
        files=files("images", *images) or None,
        headers=bearer(author),
    )


async def presign(client, owner, size):
    asked = {"type": "image/png", "bytes": size}
    return await client.post("/api/image/presign", json=asked, headers=bearer(owner))


@pytest.fixture
async def frugal(make_app):
    """A client of a board whose users may have 3 images waiting and 200 000 bytes in all."""
    app = await make_app(max_pending_images=3, max_user_bytes=200_000)
    async with client_of(app) as client:
        yield client


async def test_no_more_images_wait_for_a_feed_than_may(frugal):
    ada = await user_maker(frugal)()
    first = (await upload(frugal, ada, PNG, PNG)).json()

    refused = await upload(frugal, ada, PNG, PNG)
    others = await upload(frugal, await user_maker(frugal)(), PNG, PNG)

    detail = assert_problem(refused, "quota-exceeded")["detail"]
    assert refused.status_code == 413
    assert detail.startswith("You may have 3 images waiting for a feed; 1 more may come, and these")
    assert others.status_code == 200
    # Posting them, or deleting them, makes room.
    await create(frugal, ada, image_ids=[first[0]["id"]])
    await frugal.delete(f"/api/image/{first[1]['id']}", headers=bearer(ada))
    assert (await upload(frugal, ada, PNG, PNG, PNG)).status_code == 200


async def test_images_that_come_with_their_feed_do_not_wait(frugal):
    ada = await user_maker(frugal)()
    await upload(frugal, ada, PNG, PNG)

    assert (await create(frugal, ada, PNG, PNG, PNG)).status_code == 200


async def test_forms_for_direct_uploads_wait_too_also_when_they_are_called_off(frugal):
    ada = await user_maker(frugal)()
    forms = [(await presign(frugal, ada, 10)).json() for _ in range(3)]

    refused = await presign(frugal, ada, 10)
    await frugal.delete(f"/api/image/{forms[0]['id']}", headers=bearer(ada))
    again = await presign(frugal, ada, 10)  # the form that was called off can still be sent

    assert [refused.status_code, again.status_code] == [413, 413]


async def test_no_more_bytes_are_kept_than_may_and_smaller_copies_count(frugal, db):
    ada = await user_maker(frugal)()
    while (answer := await create(frugal, ada, WIDE)).status_code == 200:
        last = answer.json()
    async with db.begin():
        kept = await db.scalar(select(func.sum(Image.bytes)).where(Image.owner_id == ada["id"]))
        biggest = await db.scalar(select(func.sum(Image.bytes)).where(Image.feed_id == last["id"]))

    detail = assert_problem(answer, "quota-exceeded")["detail"]
    assert answer.status_code == 413
    assert f"{200_000 - kept:,} bytes are left" in detail
    assert 200_000 - biggest < kept <= 200_000
    # Deleting makes room.
    await frugal.delete(f"/api/feed/delete/{last['id']}", headers=bearer(ada))
    assert (await create(frugal, ada, WIDE)).status_code == 200


async def test_what_a_form_may_bring_is_kept_room_for(frugal):
    ada = await user_maker(frugal)()
    await presign(frugal, ada, 150_000)

    refused = await presign(frugal, ada, 50_001)

    assert "50,000 bytes are left, and this takes 50,001" in refused.json()["detail"]
    assert (await presign(frugal, ada, 50_000)).status_code == 200


async def test_of_many_requests_at_once_no_more_get_through_than_may(
    live_app, live_client: httpx.AsyncClient, monkeypatch
):
    monkeypatch.setattr(live_app.state.images, "max_pending", 5)
    ada = await user_maker(live_client)()

    answers = await asyncio.gather(*(upload(live_client, ada, PNG) for _ in range(12)))
    mine = await live_client.get("/api/image/mine", headers=bearer(ada))

    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [413] * 7
    assert len(mine.json()) == 5
