"""Profiles: what is shown of a user and to whom, how it is changed, avatars."""

import asyncio

import pytest
from sqlalchemy import update as update_

from models.base import NOW
from models.image import Image
from services import reaper
from tests.conftest import bearer, client_of, user_maker
from tests.pictures import annotated_png, camera_jpeg, photo
from tests.test_follows import follow, walk
from tests.test_gallery import create, keys_of, upload
from tests.test_lists import counted_statements

PNG = annotated_png()
WIDE = camera_jpeg(image=photo(1000, 500))


async def change(client, user, **values):
    return await client.patch("/api/mypage/profile", json=values, headers=bearer(user))


async def test_a_profile_is_shown_to_anybody(client, make_user, make_feed):
    ada, grace = await make_user(nickname="Ada"), await make_user()
    await make_feed(ada)
    await follow(client, grace, ada)

    to_anybody = await client.get(f"/api/user/{ada['id']}")
    to_grace = await client.get(f"/api/user/{ada['id']}", headers=bearer(grace))
    to_ada = await client.get("/api/mypage/profile", headers=bearer(ada))

    assert to_anybody.json() == {
        "id": ada["id"],
        "nickname": "Ada",
        "email": ada["email"],
        "bio": "",
        "avatar": None,
        "feed_count": 1,
        "follower_count": 1,
        "following_count": 0,
        "followed": None,
        "create_dt": ada["create_dt"],
    }
    assert to_grace.json() == to_anybody.json() | {"followed": True}
    assert to_ada.json() == to_anybody.json() | {"followed": False}


async def test_a_profile_of_nobody_is_not_found(client):
    missing = await client.get(f"/api/user/{2**63 - 1}")

    assert (missing.status_code, missing.json()["detail"]) == (404, "User Not Found")


async def test_where_addresses_are_not_shown_only_ones_own_is_and_finds(make_app, make_user):
    ada, grace = await make_user(), await make_user()
    by_email = f"/api/feed/list-by-user?email={ada['email']}"
    async with client_of(await make_app(show_emails=False)) as client:
        shown = await client.get(f"/api/user/{ada['id']}", headers=bearer(grace))
        own = await client.get("/api/mypage/profile", headers=bearer(ada))
        answers = [
            await client.get(by_email),
            await client.get(by_email, headers=bearer(grace)),
            await client.get(by_email, headers=bearer(ada)),
        ]

    assert (shown.json()["email"], own.json()["email"]) == (None, ada["email"])
    assert [answer.status_code for answer in answers] == [404, 404, 200]


async def test_what_is_left_out_stays(client, make_user):
    ada = await make_user(nickname="Ada")

    first = (await change(client, ada, bio="I walk.")).json()
    second = (await change(client, ada, nickname="Ada L.")).json()
    third = (await change(client, ada)).json()

    assert (first["nickname"], first["bio"]) == ("Ada", "I walk.")
    assert second == third == first | {"nickname": "Ada L."}
    assert (await client.get(f"/api/user/{ada['id']}")).json() == third | {"followed": None}
    assert (await change(client, ada, bio="")).json()["bio"] == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nickname", ""),
        ("nickname", " "),
        ("nickname", None),
        ("nickname", "\u3164"),
        ("nickname", "\u200b\u2800"),
        ("nickname", "x" * 51),
        ("bio", "x" * 501),
        ("bio", None),
        ("bio", "\0"),
        ("avatar_id", 0),
        ("avatar_id", "x"),
        ("email", "ada@example.com"),
    ],
)
async def test_a_faulty_change_is_told_which_field_is_wrong(client, make_user, field, value):
    refused = await change(client, await make_user(), **{field: value})

    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == [f"/{field}"]


async def test_the_feeds_of_an_author_are_found_by_id_nickname_and_address(
    client, make_user, make_feed
):
    ada = await make_user(nickname="Ada")
    feeds = [await make_feed(ada) for _ in range(5)]
    await make_feed(await make_user())
    newest_first = [feed["id"] for feed in reversed(feeds)]

    for query in (f"user_id={ada['id']}", "nickname=aDA", f"email={ada['email'].upper()}"):
        pages = await walk(client, f"/api/feed/list-by-user?limit=2&{query}", ada)
        assert [[feed["id"] for feed in page] for page in pages] == [
            newest_first[:2],
            newest_first[2:4],
            newest_first[4:],
        ]
    oldest = await client.get(
        f"/api/feed/list-by-user?user_id={ada['id']}&sort_by=create_dt_asc&limit=1&total=true"
    )
    assert [feed["id"] for feed in oldest.json()] == newest_first[-1:]
    assert oldest.headers["x-total-count"] == "5"


@pytest.mark.parametrize("query", ["user_id=9223372036854775807", "nickname=none", "email=x"])
async def test_an_unknown_author_is_not_found(client, query):
    missing = await client.get(f"/api/feed/list-by-user?{query}")

    assert (missing.status_code, missing.json()["detail"]) == (404, "User Not Found")


@pytest.mark.parametrize("query", ["", "user_id=1&nickname=x", "user_id=1&email=x", "author=1"])
async def test_an_author_is_named_in_exactly_one_way(client, query):
    refused = await client.get(f"/api/feed/list-by-user?{query}")

    assert refused.status_code == 422


async def test_my_feeds_are_mine(client, make_user, make_feed):
    ada = await make_user()
    feeds = [await make_feed(ada) for _ in range(3)]
    await make_feed(await make_user())

    pages = await walk(client, "/api/mypage/feeds?limit=2", ada)

    assert [[feed["id"] for feed in page] for page in pages] == [
        [feeds[2]["id"], feeds[1]["id"]],
        [feeds[0]["id"]],
    ]
    for path in ("/api/mypage/feeds", "/api/mypage/profile"):
        assert (await client.get(path)).status_code == 401


async def test_a_profile_costs_the_same_statements_whoever_it_is(
    client, engine, make_user, make_feed
):
    ada, grace = await make_user(), await make_user()
    await follow(client, ada, grace)
    await make_feed(grace)
    (image,) = await upload(client, grace, WIDE)
    await change(client, grace, avatar_id=image["id"])

    statements = []
    for user in (ada, grace):
        with counted_statements(engine) as counted:
            await client.get(f"/api/user/{user['id']}")
        statements.append([s for s in counted if s.startswith("SELECT")])

    assert [len(counted) for counted in statements] == [2, 2]


async def test_an_avatar_is_shown_wherever_its_user_is(client, make_user, stored_keys):
    ada, grace = await make_user(), await make_user()
    (image,) = await upload(client, ada, WIDE)
    await follow(client, ada, grace)

    changed = (await change(client, ada, avatar_id=image["id"])).json()
    mine = (await client.get("/api/image/mine", headers=bearer(ada))).json()
    followers = await client.get(f"/api/mypage/{grace['id']}/followers", headers=bearer(grace))

    assert changed["avatar"] == image
    assert len(image["variants"]) == 2
    assert (await client.get(f"/api/user/{ada['id']}")).json()["avatar"] == image
    assert followers.json()[0]["avatar"] == image
    assert [(one["id"], one["feed_id"], one["avatar"]) for one in mine] == [
        (image["id"], None, True)
    ]
    assert await stored_keys() == keys_of(image)
    assert (await client.get(image["url"])).status_code == 200


async def test_an_avatar_that_is_replaced_or_taken_away_is_deleted(client, make_user, stored_keys):
    ada = await make_user()
    first, second = await upload(client, ada, WIDE, PNG)
    await change(client, ada, avatar_id=first["id"])

    replaced = await change(client, ada, avatar_id=second["id"])
    assert replaced.json()["avatar"] == second
    assert await stored_keys() == keys_of(second)

    same = await change(client, ada, avatar_id=second["id"])
    assert same.json()["avatar"] == second
    assert await stored_keys() == keys_of(second)

    removed = await change(client, ada, avatar_id=None)
    assert removed.json()["avatar"] is None
    assert await stored_keys() == set()


async def test_only_my_own_pending_images_can_be_my_avatar(
    client, make_user, make_feed, stored_keys
):
    ada = await make_user()
    (theirs,) = await upload(client, await make_user(), PNG)
    shown = (await make_feed(ada, images=[PNG]))["images"][0]
    (worn,) = await upload(client, ada, PNG)
    await change(client, ada, avatar_id=worn["id"])

    for wrong in (theirs["id"], shown["id"], 2**63 - 1):
        refused = await change(client, ada, avatar_id=wrong)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/avatar_id"
    profile = await client.get("/api/mypage/profile", headers=bearer(ada))
    assert profile.json()["avatar"] == worn
    assert keys_of(worn) <= await stored_keys()
    assert (await create(client, ada, image_ids=[worn["id"]])).status_code == 422


async def test_an_avatar_can_be_deleted_as_any_image_of_mine(client, make_user, stored_keys):
    ada = await make_user()
    (image,) = await upload(client, ada, WIDE)
    await change(client, ada, avatar_id=image["id"])

    deleted = await client.delete(f"/api/image/{image['id']}", headers=bearer(ada))

    assert deleted.status_code == 200
    profile = await client.get("/api/mypage/profile", headers=bearer(ada))
    assert profile.json()["avatar"] is None
    assert await stored_keys() == set()


async def test_the_reaper_leaves_an_avatar_alone(app, client, db, make_user, stored_keys):
    ada = await make_user()
    (image,) = await upload(client, ada, WIDE)
    await change(client, ada, avatar_id=image["id"])
    for _ in range(2):
        async with db.begin():
            await db.execute(update_(Image).values(reap_dt=NOW))
        await reaper.reap(db, app.state.images)

    assert await stored_keys() == keys_of(image)


async def test_avatars_changed_at_once_leave_one_and_no_other(live_client):
    ada = await user_maker(live_client)()
    images = await upload(live_client, ada, WIDE, PNG, PNG, WIDE)

    answers = await asyncio.gather(
        *(change(live_client, ada, avatar_id=image["id"]) for image in images),
        live_client.delete(f"/api/image/{images[0]['id']}", headers=bearer(ada)),
        create(live_client, ada, image_ids=[images[1]["id"]]),
    )

    assert {answer.status_code for answer in answers} <= {200, 404, 422}
    mine = (await live_client.get("/api/image/mine", headers=bearer(ada))).json()
    worn = (await live_client.get("/api/mypage/profile", headers=bearer(ada))).json()["avatar"]
    assert [image["id"] for image in mine if image["avatar"]] == ([worn["id"]] if worn else [])
    if worn:
        assert (await live_client.get(worn["url"])).status_code == 200
