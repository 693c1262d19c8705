"""Following: a fact, there once or not at all, counted exactly; and home, which shows its feeds."""

import asyncio
from datetime import UTC, datetime
from itertools import chain

import pytest
from sqlalchemy import func, insert, select, text

from models.feed import Feed, SortBy
from models.follow import Follow
from models.user import User
from services.cursors import Cursor
from tests.conftest import bearer, user_maker
from tests.test_lists import counted_statements


async def follow(client, follower, followed, method="PUT"):
    return await client.request(method, f"/api/follow/{followed['id']}", headers=bearer(follower))


async def profile(client, user, reader=None):
    headers = bearer(reader) if reader else {}
    return (await client.get(f"/api/user/{user['id']}", headers=headers)).json()


async def walk(client, url, reader):
    """Follow `Link` to the end; gives the pages."""
    pages = []
    while url:
        answer = await client.get(url, headers=bearer(reader))
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        url = answer.links.get("next", {}).get("url")
    return pages


async def test_following_twice_is_following_once(client, make_user):
    ada, grace = await make_user(), await make_user()

    first, second = [await follow(client, ada, grace) for _ in range(2)]

    assert first.json() == second.json() == {"followed": True, "follower_count": 1}
    assert (await profile(client, grace))["follower_count"] == 1
    assert (await profile(client, ada))["following_count"] == 1
    assert (await profile(client, ada))["follower_count"] == 0


async def test_unfollowing_twice_is_unfollowing_once(client, make_user):
    ada, grace = await make_user(), await make_user()
    await follow(client, ada, grace)

    first, second = [await follow(client, ada, grace, "DELETE") for _ in range(2)]

    assert first.json() == second.json() == {"followed": False, "follower_count": 0}
    assert (await profile(client, ada))["following_count"] == 0


async def test_a_toggle_says_what_it_came_to(client, make_user):
    ada, grace = await make_user(), await make_user()

    said = [(await follow(client, ada, grace, "PATCH")).json() for _ in range(3)]

    assert said == [{"action": "followed"}, {"action": "unfollowed"}, {"action": "followed"}]
    assert (await profile(client, grace))["follower_count"] == 1


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_nobody_follows_themselves_or_somebody_who_is_not_there(client, make_user, method):
    ada = await make_user()

    oneself = await follow(client, ada, ada, method)
    nobody = await follow(client, ada, {"id": 2**63 - 1}, method)

    assert (oneself.status_code, oneself.json()["type"]) == (400, "/problems/following-oneself")
    assert (nobody.status_code, nobody.json()["detail"]) == (404, "User Not Found")


async def test_followers_and_followings_are_listed_latest_first_page_by_page(client, make_user):
    ada, *others = [await make_user() for _ in range(6)]
    for other in others:
        await follow(client, other, ada)
        await follow(client, ada, other)

    followers = await walk(client, f"/api/mypage/{ada['id']}/followers?limit=2", ada)
    followings = await walk(client, f"/api/mypage/{ada['id']}/followings?limit=2", others[0])

    newest_first = [other["id"] for other in reversed(others)]
    for pages in (followers, followings):
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [person["user_id"] for person in chain(*pages)] == newest_first
    assert set(followers[0][0]) == {"user_id", "nickname", "avatar", "create_dt"}
    assert followers[0][0]["nickname"] == others[-1]["nickname"]


@pytest.mark.parametrize("which", ["followers", "followings"])
async def test_the_list_of_somebody_who_is_not_there_is_not_empty_but_missing(
    client, make_user, which
):
    headers = bearer(await make_user())

    missing = await client.get(f"/api/mypage/{2**63 - 1}/{which}", headers=headers)
    stranger = await client.get(f"/api/mypage/1/{which}")

    assert (missing.status_code, stranger.status_code) == (404, 401)


async def test_a_list_of_people_costs_the_same_statements_for_one_and_for_many(
    client, engine, make_user
):
    ada, *others = [await make_user() for _ in range(6)]
    for other in others:
        await follow(client, other, ada)
    path = f"/api/mypage/{ada['id']}/followers"

    with counted_statements(engine) as for_one:
        await client.get(f"{path}?limit=1", headers=bearer(ada))
    with counted_statements(engine) as for_all:
        await client.get(path, headers=bearer(ada))

    assert len(for_one) == len(for_all)


async def test_home_shows_the_feeds_of_those_i_follow_and_no_others(client, make_user, make_feed):
    ada, grace, alan, linus = [await make_user() for _ in range(4)]
    for followed in (grace, alan):
        await follow(client, ada, followed)
    posted = [await make_feed(author) for author in (grace, linus, alan, ada, grace)]

    home = await client.get("/api/feed/home", headers=bearer(ada))

    assert [feed["id"] for feed in home.json()] == [posted[n]["id"] for n in (4, 2, 0)]
    assert home.json()[0]["liked"] is False
    assert (await client.get("/api/feed/home", headers=bearer(linus))).json() == []
    assert (await client.get("/api/feed/home")).status_code == 401


@pytest.fixture
async def crowd(client, db, make_user):
    """Ada follows 12 of 15 authors with 0 to 14 feeds each, many at the same time; gives her."""
    ada, others = await make_user(), [await make_user() for _ in range(15)]
    async with db.begin():
        for n, author in enumerate(others):
            for number in range(n):
                await db.execute(
                    insert(Feed).values(
                        title=f"{n}/{number}",
                        content="C",
                        author_id=author["id"],
                        create_dt=text(f"now() - interval '{number * n % 7} seconds'"),
                        deleted_dt=text("now()" if number % 5 == 4 else "NULL"),
                    )
                )
    for author in others[:12]:
        await follow(client, ada, author)
    return ada


@pytest.mark.parametrize("limit", [1, 5, 20, 100])
async def test_home_shows_every_feed_once_and_in_order_whatever_the_pages(client, db, crowd, limit):
    expected = (
        select(Feed.id)
        .join(Follow, Follow.followed_id == Feed.author_id)
        .where(Follow.follower_id == crowd["id"], Feed.deleted_dt.is_(None))
        .order_by(Feed.create_dt.desc(), Feed.id.desc())
    )
    async with db.begin():
        ids = list((await db.scalars(expected)).all())

    pages = await walk(client, f"/api/feed/home?limit={limit}", crowd)

    assert [feed["id"] for feed in chain(*pages)] == ids
    assert {len(page) for page in pages[:-1]} <= {limit}


@pytest.mark.parametrize("path", ["feed/home", "mypage/1/followers", "mypage/1/followings"])
async def test_a_cursor_of_another_order_is_refused(client, make_user, path):
    cursor = Cursor(SortBy.UPDATE_DT_ASC, datetime.now(UTC), 1).encode()

    refused = await client.get(f"/api/{path}?cursor={cursor}", headers=bearer(await make_user()))

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/cursor"


async def test_home_costs_the_same_statements_for_one_feed_and_for_many(client, engine, crowd):
    with counted_statements(engine) as for_one:
        await client.get("/api/feed/home?limit=1", headers=bearer(crowd))
    with counted_statements(engine) as for_fifty:
        page = await client.get("/api/feed/home?limit=50", headers=bearer(crowd))

    assert len(page.json()) == 50
    assert len(for_one) == len(for_fifty)


async def _counts(app, *users):
    """What the columns say, and what the rows say, of each user."""
    following = select(func.count()).where(Follow.follower_id == User.id).scalar_subquery()
    followers = select(func.count()).where(Follow.followed_id == User.id).scalar_subquery()
    counted = select(User.follower_count, followers, User.following_count, following)
    async with app.state.sessions() as db, db.begin():
        ids = [user["id"] for user in users]
        return [tuple(row) for row in await db.execute(counted.where(User.id.in_(ids)))]


async def test_counts_are_exact_when_many_follow_at_once(live_app, live_client):
    make = user_maker(live_client)
    ada, *others = [await make() for _ in range(8)]

    answers = await asyncio.gather(
        *(follow(live_client, other, ada) for other in others for _ in range(4)),
        *(follow(live_client, ada, other) for other in others for _ in range(2)),
    )

    assert {answer.status_code for answer in answers} == {200}
    assert (await profile(live_client, ada))["follower_count"] == 7
    assert all(row == (row[1], row[1], row[3], row[3]) for row in await _counts(live_app, ada))


async def test_toggles_at_once_are_done_one_after_the_other(live_app, live_client):
    make = user_maker(live_client)
    ada, grace = await make(), await make()

    both_ways = [(ada, grace), (grace, ada)] * 9
    answers = await asyncio.gather(*(follow(live_client, a, b, "PATCH") for a, b in both_ways))

    said = [answer.json()["action"] for answer in answers]
    assert {said[0::2].count("followed"), said[1::2].count("followed")} == {5}
    assert await _counts(live_app, ada, grace) == [(1, 1, 1, 1)] * 2


async def test_everything_at_once_ends_with_counts_that_are_true(live_app, live_client):
    make = user_maker(live_client)
    people = [await make() for _ in range(5)]
    pairs = [(a, b) for a in people for b in people if a is not b]

    answers = await asyncio.gather(
        *(
            follow(live_client, a, b, method)
            for method in ("PUT", "PATCH", "DELETE", "PATCH")
            for a, b in pairs
        )
    )

    assert {answer.status_code for answer in answers} == {200}
    for follower_count, followers, following_count, following in await _counts(live_app, *people):
        assert (follower_count, following_count) == (followers, following)
