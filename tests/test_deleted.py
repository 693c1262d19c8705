"""What is deleted can be restored for a while, and how a feed was can be seen."""

from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import update

from models.comment import Comment
from models.feed import Feed
from models.image import Image, ImageState
from services import feeds, reaper
from services.ledger import SETTLED
from tests.conftest import bearer, client_of, files, to_anybody, user_maker
from tests.pictures import annotated_png, camera_jpeg, photo
from tests.test_gallery import urls_of
from tests.test_images import states

PNG = annotated_png()
WIDE = camera_jpeg(image=photo(1000, 500))
WEEK = timedelta(days=7)


class Board:
    """A service on which what is deleted can be restored for a week, and an author of it."""

    def __init__(self, app, client, author):
        self.app, self.client, self.author = app, client, author

    async def post(self, *images, title="T"):
        posted = await self.client.post(
            "/api/feed/create",
            data={"title": title, "content": "C"},
            files=files("images", *images) or None,
            headers=bearer(self.author),
        )
        return posted.json()

    async def call(self, method, path, user=None, **sent):
        headers = bearer(user or self.author)
        return await self.client.request(method, path, headers=headers, **sent)

    async def delete(self, feed):
        return await self.call("DELETE", f"/api/feed/delete/{feed['id']}")

    async def restore(self, feed, user=None):
        return await self.call("POST", f"/api/feed/restore/{feed['id']}", user)

    async def change(self, feed, **data):
        changed = await self.call("PATCH", f"/api/feed/update/{feed['id']}", data=data)
        assert changed.status_code == 200, changed.text
        return changed.json()

    async def history(self, feed, user=None):
        return await self.call("GET", f"/api/feed/history/{feed['id']}", user)

    async def deleted(self):
        return (await self.call("GET", "/api/mypage/deleted")).json()


@pytest.fixture
async def board(make_app):
    app = await make_app(restore_days=7)
    async with client_of(app) as client:
        yield Board(app, client, await user_maker(client)())


async def a_week_passes(db):
    async with db.begin():
        await db.execute(update(Feed).values(deleted_dt=Feed.deleted_dt - WEEK))


async def test_a_deleted_feed_is_gone_and_comes_back_whole(board):
    feed, other = await board.post(WIDE, PNG), await board.post()

    deleted = await board.delete(feed)
    gone = await board.client.get(f"/api/feed/read/{feed['id']}")
    listed = (await board.client.get("/api/feed/list?total=true")).json()
    restored = await board.restore(feed)

    assert deleted.json() == {"message": "Feed Deleted"}
    assert gone.status_code == 404
    assert listed == [to_anybody(other)]
    assert restored.json() == feed
    assert (await board.client.get(f"/api/feed/read/{feed['id']}")).json() == to_anybody(feed)


async def test_a_deleted_feed_is_not_counted(board):
    await board.delete(await board.post())
    await board.post()

    assert (await board.client.get("/api/feed/list?total=true")).headers["x-total-count"] == "1"


async def test_images_of_a_deleted_feed_are_kept_and_not_served(board):
    feed = await board.post(WIDE)
    urls = urls_of(feed["images"][0])

    await board.delete(feed)
    meanwhile = {(await board.client.get(url)).status_code for url in urls}
    asked = {(await board.client.head(url)).status_code for url in urls}
    await board.restore(feed)
    after = {(await board.client.get(url)).status_code for url in urls}

    assert (meanwhile, asked, after) == ({404}, {404}, {200})


async def test_a_deleted_feed_cannot_be_changed_or_deleted_again(board):
    feed = await board.post(PNG)
    await board.delete(feed)

    changed = await board.call("PATCH", f"/api/feed/update/{feed['id']}", data={"title": "N"})

    assert changed.status_code == 404
    assert (await board.delete(feed)).status_code == 404


async def test_a_feed_is_restored_by_its_author_alone_and_only_once(board):
    feed = await board.post()
    not_deleted = await board.restore(feed)
    await board.delete(feed)

    refused = await board.restore(feed, await user_maker(board.client)())
    restored = await board.restore(feed)
    again = await board.restore(feed)

    answers = [not_deleted, refused, restored, again]
    assert [answer.status_code for answer in answers] == [404, 403, 200, 404]


async def test_when_the_time_is_over_the_feed_and_its_images_go(board, db, stored_keys):
    feed, kept = await board.post(WIDE), await board.post(PNG)
    await board.delete(feed)
    assert await feeds.purge(db, restorable=WEEK) == 0
    await a_week_passes(db)

    late = await board.restore(feed)
    listed = await board.deleted()
    purged = await feeds.purge(db, restorable=WEEK)
    collected = await reaper.reap(db, board.app.state.images)

    assert late.status_code == 404
    assert listed == []
    assert purged == 1
    assert collected == (3, 0)
    assert await stored_keys() == {"images/" + kept["image_urls"][0].rpartition("/")[2]}
    assert await states(db) == {ImageState.ATTACHED: 1}


async def test_the_reaper_leaves_alone_what_can_be_restored(board, db, stored_keys):
    feed = await board.post(PNG)
    await board.delete(feed)
    async with db.begin():
        await db.execute(update(Image).values(reap_dt=Image.reap_dt - WEEK - SETTLED))

    await feeds.purge(db, restorable=WEEK)
    await reaper.reap(db, board.app.state.images)

    assert (await board.restore(feed)).json() == feed
    assert len(await stored_keys()) == 1


async def test_switched_off_a_deletion_is_final(make_app, stored_keys):
    app = await make_app(restore_days=0)
    async with client_of(app) as client:
        board = Board(app, client, await user_maker(client)())
        feed = await board.post(PNG)
        await board.delete(feed)

        assert await stored_keys() == set()
        assert await board.deleted() == []
        assert (await board.restore(feed)).status_code == 404


async def test_what_i_deleted_is_listed_latest_first_page_by_page(board, db):
    posted = [await board.post(title=f"Feed {n}") for n in range(5)]
    async with db.begin():
        comment = Comment(
            feed_id=posted[0]["id"],
            author_id=board.author["id"],
            root_id=1,
            path=[1],
            content="Mine",
        )
        db.add(comment)
    for feed in posted[1:]:
        await board.delete(feed)
    async with db.begin():
        comment.deleted_dt = Comment.create_dt + timedelta(hours=1)
        await db.flush()

    seen, path = [], "/api/mypage/deleted?limit=2"
    while path:
        page = await board.call("GET", path)
        assert page.status_code == 200, page.text
        seen += page.json()
        path = page.links.get("next", {}).get("url")

    assert [(each["kind"], each["title"]) for each in seen] == [
        ("comment", None),
        *(("feed", f"Feed {n}") for n in (4, 3, 2, 1)),
    ]
    assert seen[0]["content"] == "Mine"
    stranger = await user_maker(board.client)()
    assert (await board.call("GET", "/api/mypage/deleted", stranger)).json() == []


async def test_each_change_keeps_how_the_feed_was(board):
    feed = await board.post(PNG, PNG, title="One")
    first, second = (image["id"] for image in feed["images"])

    await board.change(feed, title="Two")
    await board.change(feed)  # nothing is changed
    await board.change(feed, image_ids=[second, first])
    await board.call("DELETE", f"/api/image/{first}")
    history = (await board.history(feed)).json()

    assert [(was["title"], was["image_ids"]) for was in history] == [
        ("Two", [second, first]),
        ("Two", [first, second]),
        ("One", [first, second]),
    ]
    assert history[2]["create_dt"] < history[1]["create_dt"]


async def test_a_history_is_the_authors_alone(board):
    feed = await board.post()
    await board.change(feed, title="N")

    refused = await board.history(feed, await user_maker(board.client)())
    await board.delete(feed)
    gone = await board.history(feed)

    assert (refused.status_code, gone.status_code) == (403, 404)


async def test_a_history_comes_page_by_page(board):
    feed = await board.post(title="0")
    for n in range(1, 6):
        await board.change(feed, title=str(n))

    seen, path = [], f"/api/feed/history/{feed['id']}?limit=2"
    while path:
        page = await board.call("GET", path)
        seen += [was["title"] for was in page.json()]
        path = page.links.get("next", {}).get("url")

    assert seen == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize(
    "path",
    ["/api/mypage/deleted", "/api/feed/history/{id}", "/api/image/mine", "/api/like/feed/{id}"],
)
async def test_a_cursor_of_another_order_is_refused(board, path):
    feed, _ = await board.post(), await board.post()
    listed = await board.client.get("/api/feed/list?limit=1&sort_by=update_dt_asc")
    cursor = parse_qs(urlsplit(listed.links["next"]["url"]).query)["cursor"][0]

    refused = await board.call("GET", f"{path.format(**feed)}?cursor={cursor}")

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/cursor"
