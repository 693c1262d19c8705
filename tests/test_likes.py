"""Likes: facts that are there once or not at all, and counts that always equal them."""

import asyncio
import random

import pytest
from sqlalchemy import func, insert, select, update

from models.base import NOW
from models.comment import Comment
from models.feed import Feed
from models.like import CommentLike, FeedLike
from models.user import User
from services.sessions import Client, begin
from tests.conftest import bearer
from tests.test_lists import counted_statements, walk
from tests.test_problems import assert_problem


async def crowd(app, size):
    """Headers of this many users, who need no password."""
    people = [
        {"email": "", "email_key": f"{random.random()}", "password_hash": "", "nickname": f"{n}"}
        | {"nickname_key": f"{random.random()}"}
        for n in range(size)
    ]
    async with app.state.sessions() as db, db.begin():
        ids = (await db.scalars(insert(User).returning(User.id), people)).all()
    return [await session_of(app, user_id) for user_id in ids]


async def session_of(app, user_id):
    """Headers of a session of this user's."""
    async with app.state.sessions() as db, db.begin():
        user = await db.get_one(User, user_id)
        begun = await begin(db, app.state.tokens, user, Client("", ""))
    return bearer(begun.model_dump())


async def feed_in(app):
    """A feed's id."""
    async with app.state.sessions() as db, db.begin():
        author = await db.scalar(select(User.id).limit(1))
        feed = insert(Feed).values(title="T", content="C", author_id=author)
        return await db.scalar(feed.returning(Feed.id))


async def comment_in(app, feed_id):
    """The id of a comment on the feed, by the feed's author."""
    async with app.state.sessions() as db, db.begin():
        author = await db.scalar(select(Feed.author_id).where(Feed.id == feed_id))
        comment = insert(Comment).values(
            feed_id=feed_id, author_id=author, root_id=0, path=[], content="C"
        )
        return await db.scalar(comment.returning(Comment.id))


async def rows_and_count(app, feed_id):
    async with app.state.sessions() as db, db.begin():
        rows = select(func.count()).where(FeedLike.feed_id == feed_id)
        return await db.scalar(rows), await db.scalar(
            select(Feed.like_count).where(Feed.id == feed_id)
        )


@pytest.fixture
async def ada(app):
    return (await crowd(app, 1))[0]


@pytest.fixture
async def feed(app, ada):
    return await feed_in(app)


@pytest.fixture(params=["feed", "comment"])
async def likable(request, app, feed):
    """What can be liked, as (parameter, id)."""
    return request.param, feed if request.param == "feed" else await comment_in(app, feed)


async def count_of(app, likable):
    kind, id_ = likable
    table, likes = (Feed, FeedLike) if kind == "feed" else (Comment, CommentLike)
    async with app.state.sessions() as db, db.begin():
        count = await db.scalar(select(table.like_count).where(table.id == id_))
        assert count == await db.scalar(select(func.count()).select_from(likes))
    return count


async def test_a_like_is_there_once_and_counts_once(client, app, ada, likable):
    path = "/api/like/{}/{}".format(*likable)
    (bob,) = await crowd(app, 1)

    for _ in range(2):
        answer = await client.put(path, headers=ada)
        assert (answer.status_code, answer.json()) == (200, {"liked": True, "like_count": 1})
    assert (await client.put(path, headers=bob)).json() == {"liked": True, "like_count": 2}
    assert await count_of(app, likable) == 2
    for _ in range(2):
        answer = await client.delete(path, headers=ada)
        assert (answer.status_code, answer.json()) == (200, {"liked": False, "like_count": 1})
    assert await count_of(app, likable) == 1


async def test_a_toggle_undoes_itself(client, app, ada, likable):
    path = "/api/like/?{}_id={}".format(*likable)

    there, back = [await client.patch(path, headers=ada) for _ in range(2)]

    message = {"message": "Like toggled successfully"}
    assert there.json() == message | {"liked": True, "like_count": 1}
    assert back.json() == message | {"liked": False, "like_count": 0}
    assert await count_of(app, likable) == 0


async def test_a_toggle_takes_the_body_that_some_clients_send(client, ada, feed):
    toggled = await client.patch(f"/api/like/?feed_id={feed}", json={}, headers=ada)
    assert toggled.json()["liked"] is True


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("", "/"),
        ("?feed_id=1&comment_id=1", "/"),
        ("?feed_id=1&feed_id=1", "/feed_id"),
        ("?feed_id=0", "/feed_id"),
        ("?comment_id=x", "/comment_id"),
        (f"?feed_id={2**63}", "/feed_id"),
        ("?feed_id=1&user_id=1", "/user_id"),
    ],
)
async def test_a_toggle_is_of_one_feed_or_one_comment(client, ada, query, pointer):
    refused = assert_problem(await client.patch(f"/api/like/{query}", headers=ada), "invalid-input")
    assert [error["pointer"] or "/" for error in refused["errors"]] == [pointer]


async def requests_for(client, kind, id_, headers):
    yield await client.put(f"/api/like/{kind}/{id_}", headers=headers)
    yield await client.delete(f"/api/like/{kind}/{id_}", headers=headers)
    yield await client.patch(f"/api/like/?{kind}_id={id_}", headers=headers)


@pytest.mark.parametrize("kind", ["feed", "comment"])
async def test_what_is_not_there_cannot_be_liked(client, ada, kind):
    async for refused in requests_for(client, kind, 2**63 - 1, ada):
        assert_problem(refused, f"{kind}-not-found")


@pytest.mark.parametrize("deleted", [Feed, Comment])
async def test_what_is_deleted_cannot_be_liked(client, app, ada, likable, deleted):
    async with app.state.sessions() as db, db.begin():
        await db.execute(update(deleted).values(deleted_dt=NOW))
    kind, id_ = likable
    gone = deleted is Feed or kind == "comment"  # A comment goes with its feed.

    async for answer in requests_for(client, kind, id_, ada):
        assert answer.status_code == (404 if gone else 200)
    assert await count_of(app, likable) == (0 if gone else 1)


async def test_whoever_is_no_user_likes_nothing(client, app, likable):
    gone = bearer({"access_token": app.state.tokens.issue(2**62, 2**62)})
    for headers in ({}, gone, bearer({"access_token": "nonsense"})):
        async for refused in requests_for(client, *likable, headers):
            assert_problem(refused, "not-authenticated")
    assert await count_of(app, likable) == 0


async def test_a_feed_shows_its_likes_and_whether_one_is_mine(client, app, ada, feed):
    (bob,) = await crowd(app, 1)
    other = await feed_in(app)
    before = (await client.get(f"/api/feed/read/{feed}")).json()
    await client.put(f"/api/like/feed/{feed}", headers=ada)

    async def page(headers):
        feeds = (await client.get("/api/feed/list", headers=headers)).json()
        return {each["id"]: (each["like_count"], each["liked"]) for each in feeds}

    assert await page(ada) == {feed: (1, True), other: (0, False)}
    assert await page(bob) == {feed: (1, False), other: (0, False)}
    assert await page({}) == {feed: (1, None), other: (0, None)}
    # A like does not change a feed.
    assert (await client.get(f"/api/feed/read/{feed}")).json() == before | {"like_count": 1}


async def test_who_likes_a_feed_is_shown_latest_first(client, app, feed):
    people = await crowd(app, 7)
    for person in people:
        await client.put(f"/api/like/feed/{feed}", headers=person)

    pages = await walk(client, f"/api/like/feed/{feed}?limit=3")

    likers = [liker for page in pages for liker in page]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [liker["nickname"] for liker in likers] == list("6543210")
    assert all(set(liker) == {"user_id", "nickname", "create_dt"} for liker in likers)
    assert [liker["create_dt"] for liker in likers] == sorted(
        (liker["create_dt"] for liker in likers), reverse=True
    )


async def test_who_likes_a_feed_is_asked_of_a_feed_that_is_there(client, app, feed):
    assert (await client.get(f"/api/like/feed/{feed}")).json() == []
    assert_problem(await client.get(f"/api/like/feed/{2**62}"), "feed-not-found")
    for query in ("limit=0", "cursor=x", "skip=1"):
        assert_problem(await client.get(f"/api/like/feed/{feed}?{query}"), "invalid-input")
    async with app.state.sessions() as db, db.begin():
        await db.execute(update(Feed).values(deleted_dt=NOW))
    assert_problem(await client.get(f"/api/like/feed/{feed}"), "feed-not-found")


async def test_a_page_of_likers_costs_the_same_for_one_and_for_fifty(client, app, engine, feed):
    for person in await crowd(app, 50):
        await client.put(f"/api/like/feed/{feed}", headers=person)

    with counted_statements(engine) as for_one:
        await client.get(f"/api/like/feed/{feed}?limit=1")
    with counted_statements(engine) as for_fifty:
        page = await client.get(f"/api/like/feed/{feed}?limit=50")

    assert len(page.json()) == 50
    assert len(for_fifty) == len(for_one)


async def test_likes_of_the_same_moment_share_their_statements(client, app, engine, feed):
    people = await crowd(app, 50)

    with counted_statements(engine) as for_one:
        await client.put(f"/api/like/feed/{feed}", headers=people[0])
    with counted_statements(engine) as for_all:
        await asyncio.gather(
            *(client.put(f"/api/like/feed/{feed}", headers=person) for person in people)
        )

    # One batch, or one that the first began alone and one of all others.
    assert len(for_all) <= 2 * len(for_one)
    assert await rows_and_count(app, feed) == (50, 50)
