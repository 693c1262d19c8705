"""Images by themselves: variants, uploading first, describing, ordering, finding, deleting."""

import pytest
from sqlalchemy import update as update_

from models.base import NOW
from models.image import Image
from services import reaper
from tests.conftest import bearer, files, to_anybody
from tests.pictures import annotated_png, camera_jpeg, decode, photo

PNG = annotated_png()
WIDE = camera_jpeg(image=photo(1000, 500))


async def upload(client, owner, *images, alt=()):
    answer = await client.post(
        "/api/image/upload",
        data={"alt": list(alt)} if alt else {},
        files=files("images", *images),
        headers=bearer(owner),
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def create(client, author, images=(), **fields):
    return await client.post(
        "/api/feed/create",
        data={"title": "T", "content": "C"} | fields,
        files=files("images", *images),
        headers=bearer(author),
    )


async def update(client, editor, feed, images=(), **fields):
    return await client.patch(
        f"/api/feed/update/{feed['id']}",
        data=fields,
        files=files("new_images", *images),
        headers=bearer(editor),
    )


def ids(feed):
    return [image["id"] for image in feed["images"]]


def urls_of(image):
    return {image["url"], *(variant["url"] for variant in image["variants"])}


def keys_of(*images):
    return {"images/" + url.rpartition("/")[2] for image in images for url in urls_of(image)}


async def test_a_feed_shows_what_a_gallery_needs(client, make_user, make_feed):
    feed = await make_feed(await make_user(), images=[WIDE, PNG])

    wide, small = feed["images"]
    assert feed["image_urls"] == [wide["url"], small["url"]]
    assert (wide["width"], wide["height"], wide["alt"]) == (1000, 500, "")
    assert wide["color"].startswith("#")
    assert len(wide["color"]) == 7
    assert wide["placeholder"]
    assert [(v["width"], v["height"], v["type"]) for v in wide["variants"]] == [
        (320, 160, "image/webp"),
        (960, 480, "image/webp"),
    ]
    assert small["variants"] == []
    assert (await client.get("/api/feed/list")).json() == [to_anybody(feed)]


async def test_a_variant_is_served_like_any_image(client, make_user, make_feed):
    feed = await make_feed(await make_user(), images=[WIDE])

    for variant in feed["images"][0]["variants"]:
        loaded = await client.get(variant["url"])
        image = decode(loaded.content)
        assert loaded.headers["content-type"] == variant["type"]
        assert loaded.headers["content-security-policy"] == "default-src 'none'"
        assert (image.width, image.height) == (variant["width"], variant["height"])


async def test_images_uploaded_first_are_posted_by_their_ids_and_in_their_order(
    client, make_user, stored_keys
):
    author = await make_user()
    first, second = await upload(client, author, PNG, WIDE, alt=["A map", "A lake"])

    feed = (await create(client, author, [PNG], image_ids=[second["id"], first["id"]])).json()

    assert ids(feed)[:2] == [second["id"], first["id"]]
    assert [image["alt"] for image in feed["images"]] == ["A lake", "A map", ""]
    assert await stored_keys() == keys_of(*feed["images"])


async def test_an_update_takes_a_whole_new_order(client, make_user, make_feed, stored_keys):
    author = await make_user()
    feed = await make_feed(author, images=[PNG, WIDE, PNG])
    one, two, three = ids(feed)
    (new,) = await upload(client, author, WIDE)

    changed = (await update(client, author, feed, [PNG], image_ids=[three, new["id"], one])).json()

    assert ids(changed)[:3] == [three, new["id"], one]
    assert len(changed["images"]) == 4
    assert two not in ids(changed)
    assert await stored_keys() == keys_of(*changed["images"])
    assert (await client.get(f"/api/feed/read/{feed['id']}")).json() == to_anybody(changed)


async def test_only_my_own_pending_images_can_be_posted_and_each_only_once(
    client, make_user, make_feed
):
    author, other = await make_user(), await make_user()
    (mine,), (theirs,) = await upload(client, author, PNG), await upload(client, other, PNG)
    shown = (await make_feed(author, images=[PNG]))["images"][0]

    for wrong in ([theirs["id"]], [shown["id"]], [999_999], [mine["id"], mine["id"]]):
        refused = await create(client, author, image_ids=wrong)
        assert refused.status_code == 422, wrong
        assert refused.json()["errors"][0]["pointer"] == "/image_ids"
    assert (await create(client, author, image_ids=[mine["id"]])).status_code == 200


async def test_an_order_and_urls_to_remove_are_not_given_together(client, make_user, make_feed):
    author = await make_user()
    feed = await make_feed(author, images=[PNG])

    refused = await update(
        client, author, feed, image_ids=ids(feed), target_image_urls=feed["image_urls"]
    )

    assert refused.status_code == 422


async def test_an_upload_that_is_never_posted_is_collected_with_its_variants(
    app, client, db, make_user, stored_keys
):
    await upload(client, await make_user(), WIDE)
    assert len(await stored_keys()) == 3
    for _ in range(2):  # once to be condemned, once to go
        async with db.begin():
            await db.execute(update_(Image).values(reap_dt=NOW))
        await reaper.reap(db, app.state.images)

    assert await stored_keys() == set()


async def test_what_an_image_shows_is_said_by_its_owner_alone(client, make_user, make_feed):
    author = await make_user()
    feed = await make_feed(author, images=[PNG])
    path = f"/api/image/{ids(feed)[0]}"

    said = await client.patch(path, json={"alt": "A map"}, headers=bearer(author))
    refused = await client.patch(path, json={"alt": "Mine!"}, headers=bearer(await make_user()))

    assert said.json()["alt"] == "A map"
    assert refused.status_code == 403
    read = (await client.get(f"/api/feed/read/{feed['id']}")).json()
    assert read["images"][0]["alt"] == "A map"


async def test_what_i_uploaded_can_be_found_page_by_page(client, make_user, make_feed):
    author = await make_user()
    pending = [(await upload(client, author, PNG))[0]["id"] for _ in range(3)]
    feed = await make_feed(author, images=[WIDE])
    await upload(client, await make_user(), PNG)

    first = await client.get("/api/image/mine?limit=2", headers=bearer(author))
    rest = await client.get(first.links["next"]["url"], headers=bearer(author))

    found = first.json() + rest.json()
    assert [image["id"] for image in found] == [*ids(feed), *reversed(pending)]
    assert [image["feed_id"] for image in found] == [feed["id"], None, None, None]
    assert "next" not in rest.links
    assert len(found[0]["variants"]) == 2


async def test_a_deleted_image_leaves_its_feed_and_the_bucket(
    client, make_user, make_feed, stored_keys
):
    author = await make_user()
    feed = await make_feed(author, images=[WIDE, PNG])
    wide, small = feed["images"]
    path = f"/api/image/{wide['id']}"

    refused = await client.delete(path, headers=bearer(await make_user()))
    deleted = await client.delete(path, headers=bearer(author))

    assert refused.status_code == 403
    assert deleted.json() == {"message": "Image Deleted"}
    changed = (await client.get(f"/api/feed/read/{feed['id']}")).json()
    assert ids(changed) == [small["id"]]
    assert changed["update_dt"] > feed["update_dt"]
    assert await stored_keys() == keys_of(small)


@pytest.mark.parametrize("alt", [["only one"], ["x" * 1001, ""]])
async def test_descriptions_that_do_not_fit_are_refused(client, make_user, stored_keys, alt):
    refused = await client.post(
        "/api/image/upload",
        data={"alt": alt},
        files=files("images", PNG, PNG),
        headers=bearer(await make_user()),
    )

    assert refused.status_code == 422
    assert await stored_keys() == set()
