"""Moving in: an old board with all that is broken in it becomes one that works."""

import pytest

from config.settings import SettingsError
from tests import ancestor
from tests.ancestor import NOTHING, PASSWORD, SAID, TAKEN, lay_images
from tests.conftest import bearer, keys_in, open_s3
from tests.moved import Mover, asked, miscounted, new_board, rows_of


@pytest.fixture
async def old(make_database):
    """The URL of the ancestor's database."""
    return await ancestor.filled(make_database)


@pytest.fixture
def images(tmp_path):
    """The folder of the ancestor's images; they lie below `feeds`, as in their URLs."""
    return lay_images(tmp_path / "images")


@pytest.fixture
async def new(settings, make_database, tmp_path):
    """A new board, to move to."""
    return await new_board(settings, make_database, tmp_path)


async def test_what_is_sound_is_taken_and_all_that_is_not_is_named(old, images, new):
    remarks = await new.ancestor(old, images)

    assert remarks == SAID
    assert await rows_of(new.settings) == TAKEN
    assert await miscounted(new.settings) == []


async def test_a_feed_is_shown_as_it_was_under_its_number(old, images, new):
    await new.ancestor(old, images, zone="Asia/Seoul")

    async with asked(new.settings) as client:
        feed = (await client.get("/api/feed/read/11")).json()
        shown = [await client.get(url) for url in feed["image_urls"]]
        liked = (await client.get("/api/feed/read/10")).json()
        listed = (await client.get("/api/feed/list")).json()
    assert (feed["title"], feed["content"]) == ("With images", "Words")
    assert (feed["author_email"], feed["author_nickname"]) == ("bob@example.com", "Ada-2")
    assert feed["create_dt"] == "2020-01-31T15:00:00Z"
    assert feed["update_dt"] == "2020-03-01T03:30:00Z"
    assert [(it["width"], it["height"]) for it in feed["images"]] == [(96, 64), (500, 400)]
    assert [it["placeholder"] is not None for it in feed["images"]] == [True, True]
    assert [variant["width"] for variant in feed["images"][1]["variants"]] == [320]
    # Cleaned, as an upload is: what stood beside the pixels is gone.
    assert {it.status_code for it in shown} == {200}
    assert all(b"GPS" not in it.content for it in shown)
    assert (liked["like_count"], liked["comment_count"]) == (2, 2)
    assert [feed["id"] for feed in listed] == [19, 17, 16, 15, 11, 10]


async def test_what_is_posted_later_gets_a_number_that_no_old_link_has(old, images, new):
    await new.ancestor(old, images)

    async with asked(new.settings) as client:
        log_in = {"email": "ada@example.com", "password": PASSWORD}
        ada = (await client.post("/api/auth/login", json=log_in)).json()
        form = {"title": "New", "content": "Words"}
        feed = (await client.post("/api/feed/create", data=form, headers=bearer(ada))).json()
    assert feed["id"] == 21


async def test_a_second_import_takes_what_is_new_and_leaves_what_was_changed_here(old, images, new):
    await new.ancestor(old, images)
    async with asked(new.settings) as client:
        log_in = {"email": "ada@example.com", "password": PASSWORD}
        ada = bearer((await client.post("/api/auth/login", json=log_in)).json())
        await client.patch("/api/feed/update/10", data={"title": "Changed"}, headers=ada)
        assert (await client.delete("/api/feed/delete/15", headers=ada)).status_code == 200
        assert (await client.delete("/api/like/feed/10", headers=ada)).status_code == 200
    await ancestor.run(old, "UPDATE feeds SET title = 'Another' WHERE id = 10")
    await ancestor.run(
        old,
        "INSERT INTO feeds VALUES (30, 'New', 'Words', 'ada@example.com', NULL, now(), now())",
    )
    await ancestor.run(
        old, "INSERT INTO comments VALUES (30, 'On it', 'bob@example.com', 30, now(), now())"
    )

    said = await new.ancestor(old, images)

    # What was taken is not spoken of again.
    assert said == {row: why for row, why in SAID.items() if row not in _TAKEN_BEFORE}
    assert await rows_of(new.settings) == TAKEN | {"comments": 3, "feed_likes": 1}
    assert await miscounted(new.settings) == []
    async with asked(new.settings) as client:
        assert (await client.get("/api/feed/read/10")).json()["title"] == "Changed"
        assert (await client.get("/api/feed/read/15")).status_code == 404
        assert (await client.get("/api/feed/read/30")).json()["comment_count"] == 1


_TAKEN_BEFORE = {
    *("users 2", "users 4", "users 5", "users 6"),
    *("feeds 15", "feeds 16", "feeds 17", "feeds 19"),
}


async def test_a_dry_run_says_the_same_and_writes_nothing(old, images, new):
    async with open_s3(new.settings) as s3:
        before = await keys_in(s3, new.settings)

        said = await new.ancestor(old, images, dry_run=True)

        assert await keys_in(s3, new.settings) == before
    # But for images that are there and damaged, which are not looked into.
    assert said == {row: why for row, why in SAID.items() if row != "feeds 16"}
    assert await rows_of(new.settings) == NOTHING
    assert await new.ancestor(old, images) == SAID


async def test_a_strict_import_stops_at_what_is_broken_and_keeps_what_it_took(old, images, new):
    await ancestor.run(old, "DELETE FROM users WHERE id IN (3, 4, 7)")

    with pytest.raises(SettingsError, match=r"--strict.* feeds 12: its author nobody@example.com"):
        await new.ancestor(old, images, strict=True)

    assert await rows_of(new.settings) == NOTHING | {"users": 3}
    await new.ancestor(old, images)
    assert (await rows_of(new.settings))["feeds"] == TAKEN["feeds"]


async def test_times_that_are_none_or_not_there_do_no_harm(old, new):
    await ancestor.run(old, "UPDATE feeds SET create_dt = 'infinity' WHERE id = 10")
    await ancestor.run(old, "UPDATE feeds SET create_dt = NULL, update_dt = NULL WHERE id = 11")

    said = await new.ancestor(old, "none")

    assert said["feeds 10"] == ["create_dt: is no time of this world"]
    async with asked(new.settings) as client:
        feed = (await client.get("/api/feed/read/11")).json()
    assert feed["create_dt"] == feed["update_dt"] > "2026"


async def test_a_board_that_has_users_already_keeps_them_and_their_names(old, images, new):
    async with asked(new.settings) as client:
        ada = {"email": "Ada@example.com", "password": "correct horse battery", "nickname": "Eve"}
        await client.post("/api/auth/signup", json=ada)
        other = ada | {"email": "other@example.com", "nickname": "aDa"}
        await client.post("/api/auth/signup", json=other)
        token = (
            await client.post(
                "/api/auth/login",
                json={"email": "ada@example.com", "password": "correct horse battery"},
            )
        ).json()
        for number in range(11):
            form = {"title": f"Of this board {number}", "content": "Words"}
            await client.post("/api/feed/create", data=form, headers=bearer(token))

        said = await new.ancestor(old, images)

        assert said["users 1"] == ["ada@example.com has an account here, which is used"]
        assert said["users 2"] == ["the nickname 'Ada' is taken; it is 'Ada-2' now"]
        # Numbers that were given out here stay with those who have them.
        assert (await client.get("/api/feed/read/11")).json()["title"] == "Of this board 10"
        assert (await client.get("/api/feed/read/15")).json()["author_nickname"] == "Eve"
        listed = (await client.get("/api/feed/list?sort_by=create_dt_asc")).json()
        numbers = {feed["title"]: feed["id"] for feed in listed}
        assert (numbers["Whole"], numbers["With images"]) == (21, 22)
        still = {"email": "ada@example.com", "password": "correct horse battery"}
        assert (await client.post("/api/auth/login", json=still)).status_code == 200
    assert await miscounted(new.settings) == []


async def test_two_old_boards_need_two_names(old, images, new, make_database):
    await new.ancestor(old, images)
    other = await make_database()
    await ancestor.fill(other)
    await ancestor.run(other, "UPDATE users SET email = 'x' || email")

    with pytest.raises(SettingsError, match="another board's; give this one a name with --as"):
        await new.ancestor(other, images)

    assert await rows_of(new.settings) == TAKEN
    await new.ancestor(other, images, name="other")
    assert (await rows_of(new.settings))["users"] == 8


async def test_images_are_fetched_from_a_bucket_as_well(old, images, new, store, tmp_path):
    async with open_s3(new.settings) as s3:
        await s3.create_bucket(
            Bucket="old-bucket",
            CreateBucketConfiguration={"LocationConstraint": new.settings.s3_region},
        )
        for file in images.rglob("*.png"):
            key = f"kept/{file.relative_to(images)}"
            await s3.put_object(Bucket="old-bucket", Key=key, Body=file.read_bytes())

    assert await new.ancestor(old, "s3://old-bucket/kept") == SAID

    async with asked(new.settings) as client:
        assert len((await client.get("/api/feed/read/11")).json()["images"]) == 2


async def test_a_folder_that_holds_none_of_the_images_stops_the_import(old, new, tmp_path):
    await ancestor.run(
        old,
        """INSERT INTO feeds SELECT n, 'Many', 'Words', 'ada@example.com', '["x.png"]', now(), now()
        FROM generate_series(100, 130) AS n""",
    )
    (tmp_path / "empty").mkdir()

    with pytest.raises(SettingsError, match="None of the first images is there"):
        await new.ancestor(old, tmp_path / "empty")

    await new.ancestor(old, "none")
    assert (await rows_of(new.settings))["feeds"] == TAKEN["feeds"] + 31


async def test_quotas_and_limits_of_those_who_post_do_not_stop_an_import(
    old, images, new, tmp_path
):
    small = new.settings.replace(max_user_bytes=1024, max_pending_images=1, max_images=1)

    assert await Mover(small, tmp_path).ancestor(old, images) == SAID
