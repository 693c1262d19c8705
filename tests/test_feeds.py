"""Posting, reading, changing and deleting feeds, and the images that hang on them."""

import pytest

from tests.conftest import bearer, client_of, files, to_anybody
from tests.pictures import annotated_png, camera_jpeg

PNG = annotated_png()
JPEG = camera_jpeg()


async def post(client, author, images=(), **fields):
    data = {"title": "T", "content": "C"} | fields
    return await client.post(
        "/api/feed/create", data=data, files=files("images", *images), headers=bearer(author)
    )


async def change(client, editor, feed, images=(), **fields):
    return await client.patch(
        f"/api/feed/update/{feed['id']}",
        data=fields,
        files=files("new_images", *images),
        headers=bearer(editor),
    )


def keys_of(feed):
    return {"images/" + url.rpartition("/")[2] for url in feed["image_urls"]}


async def test_a_post_is_shown_as_it_was_written(client, make_user, stored_keys):
    author = await make_user(email="ada@example.com", nickname="Ada")

    posted = await post(client, author, [JPEG, PNG], title="제목 🌄", content="본문\n둘째 줄")

    assert posted.status_code == 200
    feed = posted.json()
    assert set(feed) == {
        "id",
        "title",
        "content",
        "author_id",
        "author_email",
        "author_nickname",
        "image_urls",
        "images",
        "like_count",
        "comment_count",
        "liked",
        "create_dt",
        "update_dt",
    }
    assert (feed["title"], feed["content"]) == ("제목 🌄", "본문\n둘째 줄")
    assert (feed["author_email"], feed["author_nickname"]) == ("ada@example.com", "Ada")
    assert [url.rpartition(".")[2] for url in feed["image_urls"]] == ["jpg", "png"]
    assert all(url.startswith("http://localhost:8000/images/") for url in feed["image_urls"])
    assert await stored_keys() == keys_of(feed)
    assert (await client.get(f"/api/feed/read/{feed['id']}")).json() == to_anybody(feed)
    assert (await client.get("/api/feed/list")).json() == [to_anybody(feed)]


async def test_a_post_needs_no_images(client, make_user, make_feed):
    feed = await make_feed(await make_user())

    assert feed["image_urls"] == []


@pytest.mark.parametrize("encoding", ["form", "files"])
async def test_empty_files_as_a_browser_sends_them_count_as_none(client, make_user, encoding):
    author = await make_user()
    body = (
        '--x\r\nContent-Disposition: form-data; name="title"\r\n\r\nT\r\n'
        '--x\r\nContent-Disposition: form-data; name="content"\r\n\r\nC\r\n'
        '--x\r\nContent-Disposition: form-data; name="images"'
        + ('; filename=""\r\nContent-Type: application/octet-stream' if encoding == "files" else "")
        + "\r\n\r\n\r\n--x--\r\n"
    )

    posted = await client.post(
        "/api/feed/create",
        content=body,
        headers=bearer(author) | {"Content-Type": "multipart/form-data; boundary=x"},
    )

    assert posted.status_code == 200, posted.text
    assert posted.json()["image_urls"] == []


async def test_images_keep_the_order_of_their_upload(client, make_user, make_feed):
    images = [PNG, JPEG, JPEG, PNG, JPEG]

    feed = await make_feed(await make_user(), images=images)

    kinds = [url.rpartition(".")[2] for url in feed["image_urls"]]
    assert kinds == ["png", "jpg", "jpg", "png", "jpg"]
    assert (await client.get(f"/api/feed/read/{feed['id']}")).json() == to_anybody(feed)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_a_feed_that_is_not_there_is_not_found(client, make_user, method):
    action = {"GET": "read", "PATCH": "update", "DELETE": "delete"}[method]

    missing = await client.request(
        method, f"/api/feed/{action}/4711", headers=bearer(await make_user()), files=files("x")
    )

    assert missing.status_code == 404
    assert missing.json()["detail"] == "Feed Not Found"


async def test_an_update_changes_what_is_given_and_nothing_else(client, make_user, make_feed):
    author = await make_user()
    feed = await make_feed(author, title="Old", content="Kept", images=[PNG])

    changed = (await change(client, author, feed, title="New")).json()

    assert changed == feed | {"title": "New", "update_dt": changed["update_dt"]}
    assert changed["update_dt"] > feed["update_dt"]
    assert (await client.get(f"/api/feed/read/{feed['id']}")).json() == to_anybody(changed)


async def test_an_update_that_gives_nothing_changes_nothing(client, make_user, make_feed):
    author = await make_user()
    feed = await make_feed(author, images=[PNG])

    changed = await client.patch(
        f"/api/feed/update/{feed['id']}", data={"title": ""}, headers=bearer(author)
    )

    assert changed.status_code == 200, changed.text
    assert changed.json() == feed


async def test_an_update_removes_and_adds_images(client, make_user, make_feed, stored_keys):
    author = await make_user()
    feed = await make_feed(author, images=[PNG, JPEG, PNG])
    first, second, third = feed["image_urls"]

    changed = (
        await change(client, author, feed, [JPEG, PNG], target_image_urls=[second, first])
    ).json()

    assert changed["image_urls"][0] == third
    assert [url.rpartition(".")[2] for url in changed["image_urls"]] == ["png", "jpg", "png"]
    assert await stored_keys() == keys_of(changed)


async def test_an_image_of_another_feed_cannot_be_removed_through_mine(
    client, make_user, make_feed, stored_keys
):
    author, other = await make_user(), await make_user()
    mine, theirs = await make_feed(author, images=[PNG]), await make_feed(other, images=[PNG])
    targets = [mine["image_urls"][0], theirs["image_urls"][0]]
    keys = await stored_keys()

    refused = await change(client, author, mine, [JPEG], title="N", target_image_urls=targets)

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/target_image_urls"
    assert await stored_keys() == keys
    assert (await client.get(f"/api/feed/read/{mine['id']}")).json() == to_anybody(mine)
    assert (await client.get(f"/api/feed/read/{theirs['id']}")).json() == to_anybody(theirs)


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_stranger_cannot_touch_a_feed_and_its_images_stay(
    client, make_user, make_feed, stored_keys, method
):
    feed = await make_feed(await make_user(), images=[PNG])
    keys = await stored_keys()
    action = {"PATCH": "update", "DELETE": "delete"}[method]

    refused = await client.request(
        method,
        f"/api/feed/{action}/{feed['id']}",
        files=files("new_images", PNG) if method == "PATCH" else None,
        headers=bearer(await make_user()),
    )

    assert refused.status_code == 403
    assert refused.json()["detail"] == "Permission Denied"
    assert await stored_keys() == keys
    assert (await client.get(f"/api/feed/read/{feed['id']}")).json() == to_anybody(feed)


async def test_a_deleted_feed_takes_its_images_with_it(client, make_user, make_feed, stored_keys):
    author = await make_user()
    gone, kept = await make_feed(author, images=[PNG, PNG]), await make_feed(author, images=[PNG])

    deleted = await client.delete(f"/api/feed/delete/{gone['id']}", headers=bearer(author))

    assert deleted.json() == {"message": "Feed Deleted"}
    assert await stored_keys() == keys_of(kept)
    assert (await client.get(gone["image_urls"][0])).status_code == 404
    assert (await client.get("/api/feed/list")).json() == [to_anybody(kept)]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"title": ""}, "/title"),
        ({"title": "x" * 201}, "/title"),
        ({"title": "a\0b"}, "/title"),
        ({"content": ""}, "/content"),
        ({"content": "x" * 100_001}, "/content"),
        ({"image": "x"}, "/image"),
    ],
)
async def test_a_faulty_post_is_told_which_field_is_wrong_and_leaves_nothing(
    client, make_user, stored_keys, fields, pointer
):
    refused = await post(client, await make_user(), [PNG], **fields)

    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]
    assert await stored_keys() == set()
    assert (await client.get("/api/feed/list")).json() == []


REFUSED_FILES = {
    "a page": (b"<html><script>alert(1)</script></html>", 415),
    "a drawing with a script": (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', 415),
    "a cut photo": (JPEG[: len(JPEG) // 2], 422),
    "too many bytes": (JPEG + bytes(30_000), 413),
}


@pytest.mark.parametrize(("image", "status"), REFUSED_FILES.values(), ids=REFUSED_FILES)
async def test_one_bad_file_among_good_ones_refuses_the_post_and_names_the_file(
    make_app, client, make_user, stored_keys, image, status
):
    author = await make_user()
    async with client_of(await make_app(max_image_bytes=30_000)) as limited:
        refused = await limited.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            files=[
                ("images", ("good.png", PNG, "image/png")),
                ("images", ("bad.jpg", image, "image/jpeg")),
            ],
            headers=bearer(author),
        )

    assert refused.status_code == status
    assert "bad.jpg" in refused.json()["detail"]
    assert await stored_keys() == set()
    assert (await client.get("/api/feed/list")).json() == []


async def test_a_feed_has_no_more_images_than_the_instance_allows(
    make_app, client, make_user, make_feed, stored_keys
):
    author = await make_user()
    feed = await make_feed(author, images=[PNG, PNG])
    keys = await stored_keys()

    async with client_of(await make_app(max_images=3)) as limited:
        posted = await post(limited, author, [PNG] * 4)
        grown = await change(limited, author, feed, [PNG, PNG])
        swapped = await change(
            limited, author, feed, [PNG, PNG], target_image_urls=feed["image_urls"][:1]
        )

    assert (posted.status_code, grown.status_code) == (422, 422)
    assert "at most 3 images" in posted.json()["detail"]
    assert swapped.status_code == 200
    assert await stored_keys() == (keys & keys_of(swapped.json())) | keys_of(swapped.json())


async def test_without_a_token_nothing_is_written(client, stored_keys):
    refused = await client.post(
        "/api/feed/create", data={"title": "T", "content": "C"}, files=files("images", PNG)
    )

    assert refused.status_code == 401
    assert await stored_keys() == set()


async def test_a_public_url_of_the_store_is_where_images_are_loaded_from(
    make_app, client, make_user, make_feed
):
    feed = await make_feed(await make_user(), images=[PNG])
    name = feed["image_urls"][0].rpartition("/")[2]

    async with client_of(await make_app(s3_public_url="https://cdn.example.com/board")) as other:
        moved = (await other.get(f"/api/feed/read/{feed['id']}")).json()

    assert moved["image_urls"] == [f"https://cdn.example.com/board/images/{name}"]
