"""Comments at once, with real commits: nothing is lost, and nothing is counted wrong."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from models.base import NOW
from models.comment import Comment
from models.feed import Feed
from services import comments, threads
from tests.comments import delete, ids, restore, say, set_back, shown
from tests.conftest import bearer, user_maker


@pytest.fixture
async def author(live_client):
    return await user_maker(live_client)()


@pytest.fixture
def make_feed(live_client, author):
    async def make():
        posted = await live_client.post(
            "/api/feed/create",
            data={"title": "T", "content": "C"},
            headers=bearer(author),
        )
        return posted.json()

    return make


async def create(client, author, feed, parent=None):
    body = {"content": "Words", "feed_id": feed["id"]}
    body |= {"parent_id": parent["id"]} if parent else {}
    return await client.post("/api/comment/create", json=body, headers=bearer(author))


async def table(live_app, feed):
    """What the feed counts, and how many of its comments are not deleted; replies are checked."""
    async with live_app.state.sessions() as db, db.begin():
        told = await db.scalar(select(Feed.comment_count).where(Feed.id == feed["id"]))
        rows = (await db.scalars(select(Comment).where(Comment.feed_id == feed["id"]))).all()
    kept = sum(row.deleted_dt is None for row in rows)
    is_shown = {row.id for row in rows if row.deleted_dt is None or row.reply_count}
    replies = Counter(row.parent_id for row in rows if row.id in is_shown)
    assert {row.id: row.reply_count for row in rows} == {row.id: replies[row.id] for row in rows}
    return told, kept


async def test_comments_at_once_are_all_counted_and_in_order(
    live_app, live_client, author, make_feed
):
    feed = await make_feed()
    root = await say(live_client, author, feed)

    answers = await asyncio.gather(
        *(create(live_client, author, feed, root if n % 2 else None) for n in range(30))
    )

    assert {answer.status_code for answer in answers} == {200}
    assert await table(live_app, feed) == (31, 31)
    by_time = ids(await shown(live_client, feed, "limit=100&sort_by=create_dt_asc"))
    assert by_time == sorted(by_time)
    assert len(by_time) == 31


async def test_a_comment_on_a_feed_that_is_being_deleted_is_refused_or_counted(
    live_app, live_client, author, make_feed
):
    async def remove(feed):
        async with live_app.state.sessions() as db, db.begin():
            await db.execute(update(Feed).where(Feed.id == feed["id"]).values(deleted_dt=NOW))

    for _ in range(8):
        feed = await make_feed()
        early, _, *late = await asyncio.gather(
            create(live_client, author, feed),
            remove(feed),
            *(create(live_client, author, feed) for _ in range(4)),
        )
        statuses = [answer.status_code for answer in (early, *late)]
        assert set(statuses) <= {200, 404}
        assert await table(live_app, feed) == (statuses.count(200),) * 2


async def test_a_comment_waits_for_a_deletion_of_its_feed_and_is_refused(
    live_app, live_client, author, make_feed
):
    feed = await make_feed()
    async with live_app.state.sessions() as db:
        async with db.begin():
            await db.execute(update(Feed).where(Feed.id == feed["id"]).values(deleted_dt=NOW))
            waiting = asyncio.create_task(create(live_client, author, feed))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        refused = await waiting

    assert refused.json()["type"] == "/problems/feed-not-found"
    assert await table(live_app, feed) == (0, 0)


async def test_a_comment_on_a_feed_that_goes_with_all_its_rows_leaves_none(
    live_app, live_client, author, make_feed
):
    for _ in range(5):
        feed = await make_feed()
        said = [await say(live_client, author, feed) for _ in range(2)]
        deleted, *answers = await asyncio.gather(
            live_client.delete(f"/api/feed/delete/{feed['id']}", headers=bearer(author)),
            *(create(live_client, author, feed, parent) for parent in (None, *said)),
            delete(live_client, author, said[0]),
        )
        assert deleted.status_code == 200
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert await shown(live_client, feed) is None
        async with live_app.state.sessions() as db, db.begin():
            orphans = select(func.count()).where(~Comment.feed_id.in_(select(Feed.id)))
            assert await db.scalar(orphans) == 0


async def test_a_reply_to_a_comment_that_is_being_deleted_is_refused_or_keeps_a_stone(
    live_app, live_client, author, make_feed
):
    feed = await make_feed()
    for _ in range(10):
        root = await say(live_client, author, feed)
        replied, deleted, again = await asyncio.gather(
            create(live_client, author, feed, root),
            delete(live_client, author, root),
            delete(live_client, author, root),
        )
        assert sorted((deleted.status_code, again.status_code)) == [200, 404]
        assert replied.status_code in {200, 404}
        rows = await shown(live_client, feed, "tree=true&limit=1")
        is_stone = bool(rows) and rows[0]["id"] == root["id"]
        assert is_stone == (replied.status_code == 200)
    told, kept = await table(live_app, feed)
    assert told == kept


async def test_a_reply_waits_for_a_deletion_of_its_parent_and_is_refused(
    live_app, live_client, author, make_feed
):
    feed = await make_feed()
    root = await say(live_client, author, feed)
    async with live_app.state.sessions() as db:
        async with db.begin():
            await threads.count(db, feed["id"], -1)
            gone = update(Comment).where(Comment.id == root["id"])
            await db.execute(gone.values(deleted_dt=NOW))
            waiting = asyncio.create_task(create(live_client, author, feed, root))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        refused = await waiting

    assert refused.json()["type"] == "/problems/comment-not-found"
    assert await table(live_app, feed) == (0, 0)


async def test_deleting_and_restoring_at_once_counts_right(
    live_app, live_client, author, make_feed
):
    feed = await make_feed()
    root = await say(live_client, author, feed)
    middle = await say(live_client, author, feed, parent=root)
    leaves = [await say(live_client, author, feed, parent=middle) for _ in range(4)]

    for _ in range(3):
        answers = await asyncio.gather(
            *(
                act(live_client, author, it)
                for it in (root, middle, *leaves)
                for act in (delete, restore)
            ),
            *(create(live_client, author, feed, it) for it in (root, middle)),
        )
        assert {answer.status_code for answer in answers} <= {200, 404}
        told, kept = await table(live_app, feed)
        assert told == kept


async def test_a_purge_waits_for_nobody(live_app, live_client, author, make_feed):
    feed = await make_feed()
    held, free = [await say(live_client, author, feed) for _ in range(2)]
    for comment in (held, free):
        await delete(live_client, author, comment)
    async with live_app.state.sessions() as db, live_app.state.sessions() as other:
        await set_back(db, 8, feed_id=feed["id"])
        left = select(Comment.id).where(Comment.feed_id == feed["id"])
        async with other.begin():
            await other.get(Comment, held["id"], with_for_update=True)
            async with asyncio.timeout(5):
                await comments.purge(db, timedelta(days=7))
            assert (await other.scalars(left)).all() == [held["id"]]

        await comments.purge(db, timedelta(days=7))

        async with other.begin():
            assert (await other.scalars(left)).all() == []
