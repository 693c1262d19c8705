"""Writing, changing, deleting and restoring comments, and what their feed counts."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from models.base import NOW
from models.comment import Comment
from models.feed import Feed
from models.like import CommentLike
from services import comments
from tests.comments import change, counted, delete, ids, restore, say, set_back, shown
from tests.conftest import bearer, client_of

WEEK = timedelta(days=7)


@pytest.fixture
async def ada(make_user):
    return await make_user(email="ada@example.com", nickname="Ada")


@pytest.fixture
async def bob(make_user):
    return await make_user(nickname="Bob")


@pytest.fixture
async def feed(ada, make_feed):
    return await make_feed(author=ada)


@pytest.fixture
async def app(make_app):
    return await make_app(restore_days=7)


async def test_a_comment_is_shown_as_it_was_written(client, ada, feed):
    said = await say(client, ada, feed, "말 🌄\nmore")

    assert said == {
        "id": said["id"],
        "content": "말 🌄\nmore",
        "author_id": ada["id"],
        "author_email": "ada@example.com",
        "author_nickname": "Ada",
        "feed_id": feed["id"],
        "create_dt": said["create_dt"],
        "update_dt": said["create_dt"],
        "parent_id": None,
        "depth": 1,
        "like_count": 0,
        "liked": False,
        "deleted": False,
    }
    assert await shown(client, feed) == [said | {"liked": None}]
    assert await counted(client, feed) == 1


async def test_a_reply_is_one_deeper_than_what_it_replies_to(client, ada, bob, feed):
    root = await say(client, ada, feed)
    reply = await say(client, bob, feed, parent=root)
    below = await say(client, ada, feed, parent=reply)

    assert [(c["parent_id"], c["depth"]) for c in (root, reply, below)] == [
        (None, 1),
        (root["id"], 2),
        (reply["id"], 3),
    ]
    assert await counted(client, feed) == 3


async def test_replies_go_as_deep_as_the_instance_lets_them(make_app, ada, feed):
    async with client_of(await make_app(comment_depth=2)) as client:
        reply = await say(client, ada, feed, parent=await say(client, ada, feed))
        body = {"content": "Words", "feed_id": feed["id"], "parent_id": reply["id"]}
        refused = await client.post("/api/comment/create", json=body, headers=bearer(ada))

        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/parent_id"
        assert await counted(client, feed) == 2


@pytest.mark.parametrize("length", [1, 10_000])
async def test_a_comment_may_be_long_in_any_script(client, ada, feed, length):
    assert len((await say(client, ada, feed, "🌄" * length))["content"]) == length


@pytest.mark.parametrize(
    ("other", "pointer"),
    [
        ({"content": ""}, "/content"),
        ({"content": "x" * 10_001}, "/content"),
        ({"content": "\0"}, "/content"),
        ({"content": None}, "/content"),
        ({"feed_id": 0}, "/feed_id"),
        ({"feed_id": 2**63}, "/feed_id"),
        ({"parent_id": 0}, "/parent_id"),
        ({"depth": 1}, "/depth"),
    ],
)
async def test_a_comment_that_makes_no_sense_is_refused(client, ada, feed, other, pointer):
    body = {"content": "Words", "feed_id": feed["id"]} | other

    refused = await client.post("/api/comment/create", json=body, headers=bearer(ada))

    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]


async def test_what_is_not_there_cannot_be_commented_on(client, db, ada, feed, make_feed):
    there, gone = await say(client, ada, feed), await say(client, ada, feed)
    await delete(client, ada, gone)
    elsewhere = await say(client, ada, await make_feed(author=ada))
    refused = [
        ({"feed_id": 999_999_999}, "feed-not-found"),
        ({"parent_id": 999_999_999}, "comment-not-found"),
        ({"parent_id": gone["id"]}, "comment-not-found"),
        ({"parent_id": elsewhere["id"]}, "invalid-input"),
    ]

    for other, kind in refused:
        body = {"content": "Words", "feed_id": feed["id"]} | other
        answer = await client.post("/api/comment/create", json=body, headers=bearer(ada))
        assert answer.json()["type"] == f"/problems/{kind}"

    assert ids(await shown(client, feed)) == [there["id"]]
    assert await counted(client, feed) == 1


async def test_the_comments_of_a_deleted_feed_are_not_there(client, db, ada, feed):
    kept, gone = await say(client, ada, feed), await say(client, ada, feed)
    await delete(client, ada, gone)
    async with db.begin():
        await db.execute(update(Feed).where(Feed.id == feed["id"]).values(deleted_dt=NOW))

    assert (await client.get(f"/api/comment/feed/{feed['id']}")).status_code == 404
    assert (await client.get("/api/mypage/comments", headers=bearer(ada))).json() == []
    body = {"content": "Words", "feed_id": feed["id"]}
    for answer in (
        await client.post("/api/comment/create", json=body, headers=bearer(ada)),
        await change(client, ada, kept),
        await delete(client, ada, kept),
        await restore(client, ada, gone),
    ):
        assert answer.status_code == 404


async def test_the_author_changes_the_words_and_nothing_else(client, ada, feed):
    said = await say(client, ada, feed)

    changed = (await change(client, ada, said)).json()

    assert changed["update_dt"] > said["update_dt"]
    assert changed == said | {"content": "Better words", "update_dt": changed["update_dt"]}
    assert await shown(client, feed, reader=ada) == [changed]
    assert await counted(client, feed) == 1


async def test_a_stranger_can_do_nothing_to_a_comment(client, ada, bob, feed):
    said, gone = await say(client, ada, feed), await say(client, ada, feed)
    await delete(client, ada, gone)

    answers = [
        await change(client, bob, said),
        await delete(client, bob, said),
        await restore(client, bob, gone),
    ]

    said_no = [(answer.status_code, answer.json()["detail"]) for answer in answers]
    assert said_no == [(403, "Permission Denied")] * 3
    assert await shown(client, feed, reader=ada) == [said]


async def test_a_deleted_comment_is_gone(client, ada, feed):
    said = await say(client, ada, feed)

    deleted = await delete(client, ada, said)

    assert deleted.json() == {"message": "Comment Deleted"}
    assert await shown(client, feed) == []
    assert await counted(client, feed) == 0
    for answer in (await delete(client, ada, said), await change(client, ada, said)):
        assert answer.json()["type"] == "/problems/comment-not-found"


async def test_a_deleted_comment_with_replies_stays_as_a_stone(client, ada, bob, feed):
    root = await say(client, ada, feed)
    reply = await say(client, bob, feed, parent=root)

    await delete(client, ada, root)

    stone, below = await shown(client, feed, reader=bob)
    untold = dict.fromkeys(["content", "author_id", "author_email", "author_nickname"])
    assert [stone, below] == [root | untold | {"deleted": True}, reply]
    assert await shown(client, feed, "tree=true", reader=bob) == [stone, below]
    assert await counted(client, feed) == 1


async def test_stones_go_with_the_last_reply_and_come_back_with_it(client, ada, feed):
    root = await say(client, ada, feed)
    middle = await say(client, ada, feed, parent=root)
    other = await say(client, ada, feed, parent=middle)
    last = await say(client, ada, feed, parent=middle)
    for comment in (root, middle, other):
        await delete(client, ada, comment)
    assert ids(await shown(client, feed)) == ids([root, middle, last])

    await delete(client, ada, last)
    assert await shown(client, feed) == await shown(client, feed, "tree=true") == []

    await restore(client, ada, other)
    assert ids(await shown(client, feed)) == ids([root, middle, other])
    assert await counted(client, feed) == 1

    await restore(client, ada, root)
    await delete(client, ada, other)
    assert ids(await shown(client, feed)) == [root["id"]]
    assert await counted(client, feed) == 1


async def test_a_restored_comment_is_as_it_was(client, db, ada, bob, feed):
    said = await say(client, ada, feed)
    async with db.begin():
        db.add(CommentLike(comment_id=said["id"], user_id=bob["id"]))
    await delete(client, ada, said)

    restored = await restore(client, ada, said)

    assert restored.json() == said
    assert await shown(client, feed, reader=bob) == [said | {"liked": True}]
    assert await counted(client, feed) == 1


async def test_what_is_not_deleted_or_was_so_too_long_ago_cannot_be_restored(client, db, ada, feed):
    there, late, just = [await say(client, ada, feed) for _ in range(3)]
    for comment in (late, just):
        await delete(client, ada, comment)
    await set_back(db, 7, id=late["id"])
    await set_back(db, 6.99, id=just["id"])

    answers = [await restore(client, ada, comment) for comment in (there, late, just)]

    assert [answer.status_code for answer in answers] == [404, 404, 200]
    assert await counted(client, feed) == 2


async def test_without_days_to_restore_it_a_deleted_comment_is_gone_for_good(
    make_app, client, db, ada, feed
):
    async with client_of(await make_app(restore_days=0)) as final:
        said = await say(final, ada, feed)
        await delete(final, ada, said)
        assert (await restore(final, ada, said)).status_code == 404

    # Nor does it come back when there are days, for its words are gone.
    assert (await restore(client, ada, said)).status_code == 404
    async with db.begin():
        assert await db.scalar(select(Comment.content)) == ""


async def test_a_purge_forgets_what_cannot_be_restored_and_what_a_stone_said(client, db, ada, feed):
    root = await say(client, ada, feed)
    stone = await say(client, ada, feed, parent=root)
    below = await say(client, ada, feed, parent=stone)
    chain = [await say(client, ada, feed)]
    for _ in range(4):
        chain.append(await say(client, ada, feed, parent=chain[-1]))
    fresh = await say(client, ada, feed)
    for comment in (*chain, stone, fresh):
        await delete(client, ada, comment)
    await set_back(db, 8)
    await set_back(db, -8, id=fresh["id"])
    before = await shown(client, feed, "tree=true")

    assert await comments.purge(db, WEEK, batch=2) == 6
    assert await comments.purge(db, WEEK) == 0

    assert await shown(client, feed, "tree=true") == before
    assert ids(before) == ids([root, stone, below])
    async with db.begin():
        left = {row.id: row.content for row in await db.scalars(select(Comment))}
    assert left == {
        root["id"]: "Words",
        stone["id"]: "",
        below["id"]: "Words",
        fresh["id"]: "Words",
    }
    assert (await restore(client, ada, fresh)).status_code == 200


async def test_a_purge_leaves_what_is_above_a_reply_that_can_be_restored(client, db, ada, feed):
    root = await say(client, ada, feed)
    reply = await say(client, ada, feed, parent=root)
    for comment in (root, reply):
        await delete(client, ada, comment)
    await set_back(db, 8, id=root["id"])

    await comments.purge(db, WEEK)

    assert (await restore(client, ada, reply)).status_code == 200
    assert [c["content"] for c in await shown(client, feed)] == [None, "Words"]
    async with db.begin():
        assert await db.scalar(select(func.count()).select_from(Comment)) == 2
