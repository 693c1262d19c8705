"""Who leaves is gone with all that was theirs; what others wrote stays, and is counted right."""

import asyncio
import io
import json
import random
import zipfile
from collections import Counter
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select, text, update

from app.main import create_app
from config.s3 import open_s3
from models.base import NOW
from models.comment import Comment
from models.feed import Feed, FeedRevision
from models.follow import Follow
from models.image import Image, ImageState
from models.like import CommentLike, FeedLike
from models.user import User
from services import comments, fsck, leaving, reaper
from services.bucket import Bucket
from services.fsck import Tally
from services.ledger import SETTLED
from services.store import ImageStore
from tests.comments import delete as delete_comment
from tests.comments import say, shown
from tests.conftest import PASSWORD, bearer, client_of, files, user_maker
from tests.pictures import annotated_png, photo, png

PNG, WIDE = annotated_png(), png(photo(700, 500))


async def leave(client, user, password=PASSWORD):
    return await client.request(
        "DELETE", "/api/mypage", json={"password": password}, headers=bearer(user)
    )


async def call(client, user, method, path, **sent):
    answer = await client.request(method, path, headers=bearer(user), **sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(client, user, *images):
    form = {"data": {"title": "T", "content": "C"}, "files": files("images", *images) or None}
    return await call(client, user, "POST", "/api/feed/create", **form)


async def settle(client, ada, bob):
    """Let Ada have everything that somebody can have, among what is Bob's; gives a feed of each."""
    mine, theirs = await post(client, ada, WIDE, PNG), await post(client, bob, PNG)
    await call(client, ada, "PATCH", f"/api/feed/update/{mine['id']}", data={"title": "New"})
    dropped = await post(client, ada, PNG)
    await call(client, ada, "DELETE", f"/api/feed/delete/{dropped['id']}")
    await say(client, bob, mine)
    root = await say(client, ada, theirs, "A root")
    reply = await say(client, bob, theirs, "Bob's reply", root)
    await say(client, ada, theirs, "Below", reply)
    await say(client, ada, mine, "Below my own")
    gone = await say(client, ada, theirs, "Regretted")
    await delete_comment(client, ada, gone)
    await call(client, bob, "PUT", f"/api/like/comment/{root['id']}")
    for feed in (mine, theirs):
        await call(client, ada, "PUT", f"/api/like/feed/{feed['id']}")
        await call(client, bob, "PUT", f"/api/like/feed/{feed['id']}")
    await call(client, ada, "PUT", f"/api/like/comment/{reply['id']}")
    await call(client, ada, "PUT", f"/api/follow/{bob['id']}")
    await call(client, bob, "PUT", f"/api/follow/{ada['id']}")
    sent = {"files": files("images", PNG)}
    (face,) = await call(client, ada, "POST", "/api/image/upload", **sent)
    await call(client, ada, "PATCH", "/api/mypage/profile", json={"avatar_id": face["id"]})
    await call(client, ada, "POST", "/api/image/upload", **sent)
    return mine, theirs


async def rows_of(sessions, user_id):
    """How many rows name a user, by table and column; condemned images, too."""
    columns = (
        User.id, Feed.author_id, Comment.author_id, FeedLike.user_id, CommentLike.user_id,
        Follow.follower_id, Follow.followed_id, Image.owner_id, Image.avatar_of,
    )  # fmt: skip
    found = {}
    async with sessions() as db, db.begin():
        for column in columns:
            counted = select(func.count()).select_from(column.class_).where(column == user_id)
            if number := await db.scalar(counted):
                found[str(column)] = number
    return found


async def miscounted(sessions):
    """All counts that are not what their rows are."""

    def rows(*where):
        return select(func.count()).where(*where).scalar_subquery()

    kept = Comment.deleted_dt.is_(None)
    truths = (
        (Feed.like_count, rows(FeedLike.feed_id == Feed.id)),
        (Feed.comment_count, rows(Comment.feed_id == Feed.id, kept)),
        (Comment.like_count, rows(CommentLike.comment_id == Comment.id)),
        (User.follower_count, rows(Follow.followed_id == User.id)),
        (User.following_count, rows(Follow.follower_id == User.id)),
    )
    wrong = []
    async with sessions() as db, db.begin():
        for count, truth in truths:
            told = select(count.class_.id, count, truth).where(count != truth)
            wrong += [(str(count), *row) for row in await db.execute(told)]
        all_comments = (await db.scalars(select(Comment))).all()
    seen = {row.id for row in all_comments if row.deleted_dt is None or row.reply_count}
    replies = Counter(row.parent_id for row in all_comments if row.id in seen)
    wrong += [row.id for row in all_comments if row.reply_count != replies[row.id]]
    return wrong


async def found_by_fsck(sessions, settings):
    async with sessions() as db, open_s3(settings) as s3:
        survey = fsck.survey(db, Bucket(s3, settings), Tally())
        return [finding async for finding in survey]


@pytest.fixture
async def app(make_app):
    return await make_app(restore_days=7)


@pytest.fixture
async def two(client):
    make = user_maker(client)
    return await make(nickname="Ada"), await make(nickname="Bob")


async def test_all_that_was_mine_is_gone_when_the_answer_comes(
    client, two, sessions, settings, stored_keys
):
    ada, bob = two
    await settle(client, ada, bob)

    receipt = (await leave(client, ada)).json()

    counts = {"feeds": 2, "comments": 4, "likes": 3, "follows": 1, "images": 5}
    assert counts.items() <= receipt.items()
    assert receipt["complete"] is True
    assert await rows_of(sessions, ada["id"]) == {}
    assert await miscounted(sessions) == []
    # Bob's one image, and nothing else.
    assert len(await stored_keys()) == 1
    assert await found_by_fsck(sessions, settings) == []
    async with sessions() as db, db.begin():
        assert await db.scalar(select(func.count()).select_from(FeedRevision)) == 0
        assert await db.scalar(select(func.count()).select_from(Image)) == 1


async def test_what_others_wrote_stays(client, two):
    ada, bob = two
    mine, theirs = await settle(client, ada, bob)

    await leave(client, ada)

    root, reply = await shown(client, theirs)
    assert (root["content"], root["author_id"], root["author_nickname"]) == (None, None, None)
    assert (root["author_email"], root["deleted"]) == (None, True)
    assert (reply["content"], reply["like_count"]) == ("Bob's reply", 0)
    feed = await call(client, bob, "GET", f"/api/feed/read/{theirs['id']}")
    assert (feed["comment_count"], feed["like_count"], feed["liked"]) == (1, 1, True)
    assert await shown(client, mine) is None
    profile = await call(client, bob, "GET", "/api/mypage/profile")
    assert (profile["follower_count"], profile["following_count"]) == (0, 0)


async def test_a_stone_goes_with_its_last_reply_and_by_the_purge(client, two, sessions):
    ada, bob = two
    _, theirs = await settle(client, ada, bob)
    await leave(client, ada)
    _, reply = await shown(client, theirs)

    await delete_comment(client, bob, reply)

    assert await shown(client, theirs) == []
    assert await miscounted(sessions) == []
    async with sessions() as db:
        async with db.begin():
            await db.execute(update(Comment).values(deleted_dt=NOW - SETTLED))
        await comments.purge(db, SETTLED)
        async with db.begin():
            assert await db.scalar(select(func.count()).select_from(Comment)) == 0


async def test_a_wrong_password_erases_nothing(client, two, sessions):
    ada, _ = two
    await post(client, ada)
    before = await rows_of(sessions, ada["id"])

    refused = await leave(client, ada, "a guess")

    assert (refused.status_code, refused.json()["type"]) == (401, "/problems/invalid-credentials")
    assert await rows_of(sessions, ada["id"]) == before
    assert (await leave(client, ada)).status_code == 200


async def test_a_token_of_an_account_that_is_gone_does_nothing(client, two, sessions, monkeypatch):
    """Also while what it left behind is still being erased."""
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, bob = two
    _, theirs = await settle(client, ada, bob)
    receipt = (await leave(client, ada)).json()
    before = await rows_of(sessions, ada["id"])
    acts = [
        ("GET", "/api/mypage/profile", {}),
        ("GET", "/api/mypage/export", {}),
        ("DELETE", "/api/mypage", {"json": {"password": PASSWORD}}),
        ("POST", "/api/feed/create", {"data": {"title": "T", "content": "C"}}),
        ("POST", "/api/comment/create", {"json": {"content": "C", "feed_id": theirs["id"]}}),
        ("PUT", f"/api/like/feed/{theirs['id']}", {}),
        ("PUT", f"/api/follow/{bob['id']}", {}),
        ("POST", "/api/image/upload", {"files": files("images", PNG)}),
    ]

    answers = [await client.request(m, p, headers=bearer(ada), **sent) for m, p, sent in acts]

    assert receipt["complete"] is False
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.json()["detail"] for answer in answers} == {
        "The session of this access token has ended; log in again."
    }
    assert await rows_of(sessions, ada["id"]) == before
    # Nobody sees or follows them any more, either.
    for method, path in (
        ("GET", f"/api/user/{ada['id']}"),
        ("GET", f"/api/mypage/{ada['id']}/followers"),
        ("PUT", f"/api/follow/{ada['id']}"),
        ("GET", "/api/feed/list-by-user?nickname=Ada"),
        ("GET", f"/api/feed/list-by-user?user_id={ada['id']}"),
    ):
        answer = await client.request(method, path, headers=bearer(bob))
        assert answer.status_code == 404, path


async def test_from_the_answer_on_all_reads_are_as_they_will_be(
    client, app, two, sessions, monkeypatch
):
    """To others, and to whoever is not signed in; the counts follow as it is erased."""
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, bob = two
    mine, theirs = await settle(client, ada, bob)
    profile = await call(client, ada, "GET", "/api/mypage/profile")
    names = [*mine["image_urls"], profile["avatar"]["url"], mine["images"][0]["variants"][0]["url"]]
    said = (await client.get(f"/api/comment/feed/{theirs['id']}")).json()
    paths = [
        "/api/feed/list?total=true", "/api/feed/list?sort_by=update_dt_asc", "/api/feed/home",
        f"/api/feed/list-by-user?user_id={ada['id']}", "/api/mypage/feeds", "/api/mypage/comments",
        *(f"/api/feed/read/{feed['id']}" for feed in (mine, theirs)),
        *(f"/api/like/feed/{feed['id']}" for feed in (mine, theirs)),
        *(f"/api/comment/feed/{feed['id']}" for feed in (mine, theirs)),
        *(f"/api/comment/feed/{feed['id']}?tree=true" for feed in (mine, theirs)),
        *(f"/api/comment/read/{comment['id']}" for comment in said),
        *(f"/api/mypage/{user['id']}/followers" for user in two),
        *(f"/api/mypage/{user['id']}/followings" for user in two),
        *(f"/images/{name.rpartition('/')[2]}" for name in names),
    ]  # fmt: skip

    async def look():
        answers = [(path, await client.get(path, headers=who)) for path in paths for who in readers]
        return [
            (path, it.status_code, it.headers.get("X-Total-Count"), uncounted(it))
            for path, it in answers
        ]

    readers = [bearer(bob), {}]
    before = await look()
    assert (await leave(client, ada)).json()["complete"] is False
    at_once = await look()
    async with sessions() as db:
        assert await leaving.purge(db, app.state.images)

    assert at_once == await look()
    changed = {was[0] for was, now in zip(before, at_once, strict=True) if was != now}
    (of_bob,) = (it["id"] for it in said if it["author_id"] == bob["id"])
    assert set(paths) - changed == {
        "/api/mypage/feeds",
        f"/api/feed/read/{theirs['id']}",
        f"/api/comment/read/{of_bob}",
    }
    assert {status for path, status, *_ in at_once if path.startswith("/images/")} == {404}


def uncounted(answer):
    """What was read, without counts, or which problem it was."""
    if answer.headers["content-type"].startswith("image/"):
        return None
    read = answer.json()
    rows = read if isinstance(read, list) else [read]
    untold = {"like_count", "comment_count", "instance", "request_id"}
    return [{name: row[name] for name in row.keys() - untold} for row in rows]


async def test_nobody_likes_or_answers_or_deletes_what_is_being_erased(
    client, two, sessions, monkeypatch
):
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, bob = two
    mine, theirs = await settle(client, ada, bob)
    (below, *_) = await shown(client, mine)
    root, *_ = await shown(client, theirs)
    async with sessions() as db, db.begin():
        await db.execute(update(User).where(User.id == bob["id"]).values(is_admin=True))
    await leave(client, ada)
    before = await miscounted(sessions), await rows_of(sessions, bob["id"])

    for method, path, sent in (
        ("PUT", f"/api/like/feed/{mine['id']}", {}),
        ("DELETE", f"/api/like/feed/{mine['id']}", {}),
        ("PUT", f"/api/like/comment/{below['id']}", {}),
        ("PUT", f"/api/like/comment/{root['id']}", {}),
        ("POST", "/api/comment/create", {"json": {"content": "C", "feed_id": mine["id"]}}),
        (
            "POST",
            "/api/comment/create",
            {"json": {"content": "C", "feed_id": theirs["id"], "parent_id": root["id"]}},
        ),
        ("PATCH", f"/api/comment/update/{below['id']}", {"json": {"content": "C"}}),
        ("DELETE", f"/api/comment/delete/{below['id']}", {}),
        ("DELETE", f"/api/comment/delete/{root['id']}", {}),
        ("DELETE", f"/api/feed/delete/{mine['id']}", {}),
        ("DELETE", f"/api/image/{mine['images'][0]['id']}", {}),
    ):
        answer = await client.request(method, path, headers=bearer(bob), **sent)
        assert answer.status_code == 404, (method, path, answer.text)
    assert (await miscounted(sessions), await rows_of(sessions, bob["id"])) == before


async def test_a_page_of_home_is_full_whoever_leaves(client, two, monkeypatch):
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, bob = two
    cid = await user_maker(client)(nickname="Cid")
    for author in (ada, bob):
        await call(client, cid, "PUT", f"/api/follow/{author['id']}")
    posted = [await post(client, user) for user in (bob, ada, ada, bob, ada)]
    await leave(client, ada)

    found = await client.get("/api/feed/home?limit=1", headers=bearer(cid))
    rest = await client.get(found.links["next"]["url"], headers=bearer(cid))

    assert [it["id"] for it in found.json()] == [posted[3]["id"]]
    assert [it["id"] for it in rest.json()] == [posted[0]["id"]]
    assert "next" not in rest.links


async def test_nobody_takes_along_who_has_left(client, two, monkeypatch):
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, bob = two
    await settle(client, ada, bob)
    await leave(client, ada)

    export = await client.get("/api/mypage/export", headers=bearer(bob))

    with zipfile.ZipFile(io.BytesIO(export.content)) as archive:
        people = [archive.read(name) for name in ("following.json", "followers.json")]
    assert [json.loads(each) for each in people] == [[], []]


async def test_the_newest_feeds_are_erased_first(client, two, sessions, monkeypatch):
    """Else every first page passes over them for as long as the erasing takes."""
    monkeypatch.setattr(leaving, "BATCH", 1)
    ada, _ = two
    old, *_ = [await post(client, ada) for _ in range(3)]
    # The request has patience for two batches.
    moments = iter([0, 0, 0])
    monkeypatch.setattr(leaving, "monotonic", lambda: next(moments, 100))

    await leave(client, ada)

    async with sessions() as db, db.begin():
        assert (await db.scalars(select(Feed.id))).all() == [old["id"]]


async def test_address_and_nickname_are_free_at_once(client, two, monkeypatch):
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, _ = two
    await leave(client, ada)

    log_in = {"email": ada["email"], "password": PASSWORD}
    assert (await client.post("/api/auth/login", json=log_in)).status_code == 401
    again = await user_maker(client)(ada["email"], "Ada")
    assert again["id"] != ada["id"]


async def test_two_who_are_leaving_at_once_do_not_meet_in_their_empty_names(
    client, two, monkeypatch
):
    monkeypatch.setattr(leaving, "PATIENCE", 0)

    assert [(await leave(client, user)).status_code for user in two] == [200, 200]


async def test_what_a_request_leaves_the_eraser_erases_down_to_the_accounts_row(
    client, app, two, sessions, settings, stored_keys, monkeypatch
):
    """After a crash, or of an account that is too large for one request."""
    monkeypatch.setattr(leaving, "BATCH", 1)
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    ada, bob = two
    await settle(client, ada, bob)
    assert (await leave(client, ada)).json()["complete"] is False
    async with sessions() as db:
        async with db.begin():
            row = await db.get(User, ada["id"])
            words = (row.email, row.nickname, row.bio, row.password_hash)
        erased = await leaving.purge(db, app.state.images)

    assert words == ("", "", "", "")
    assert erased
    assert await rows_of(sessions, ada["id"]) == {}
    assert await miscounted(sessions) == []
    assert len(await stored_keys()) == 1
    assert await found_by_fsck(sessions, settings) == []


async def test_a_form_for_a_direct_upload_outlives_its_account_in_the_ledger(
    client, app, two, sessions, stored_keys
):
    """The client may still send it: only the row says that there is something to collect."""
    ada, _ = two
    await call(
        client, ada, "POST", "/api/image/presign", json={"type": "image/png", "bytes": len(PNG)}
    )
    receipt = (await leave(client, ada)).json()
    kept = await rows_of(sessions, ada["id"])
    async with sessions() as db:
        async with db.begin():
            await db.execute(update(Image).values(reap_dt=NOW - SETTLED))
        early = await leaving.purge(db, app.state.images)
        await reaper.reap(db, app.state.images)
        late = await leaving.purge(db, app.state.images)

    assert receipt["complete"] is False
    assert (early, late) == (False, True)
    assert kept == {"User.id": 1, "Image.owner_id": 1}
    assert await rows_of(sessions, ada["id"]) == {}


async def test_a_store_that_is_down_keeps_nobody(client, app, two, sessions, monkeypatch):
    ada, bob = two
    await settle(client, ada, bob)

    async def refuse(store, key):
        return False

    monkeypatch.setattr(ImageStore, "delete", refuse)
    receipt = await leave(client, ada)
    monkeypatch.undo()

    assert (receipt.status_code, receipt.json()["complete"]) == (200, False)
    assert set(await rows_of(sessions, ada["id"])) == {"User.id", "Image.owner_id"}


async def test_the_eraser_tries_again_soon_then_seldom_and_at_once_when_it_is_woken(monkeypatch):
    pauses = []
    rounds = iter([False] * 7 + [True, True, False, False, False, True])
    eraser = leaving.Eraser(None, None)

    async def round_():
        return next(rounds)

    async def wait_for(woken, pause):
        woken.close()
        pauses.append(pause)
        if len(pauses) == 13:
            raise asyncio.CancelledError
        if len(pauses) != 11:
            raise TimeoutError

    monkeypatch.setattr(eraser, "_round", round_)
    monkeypatch.setattr(leaving, "asyncio", SimpleNamespace(wait_for=wait_for))
    with pytest.raises(asyncio.CancelledError):
        await eraser.erase_forever()

    assert pauses == [15, 30, 60, 120, 240, 300, 300, 300, 300, 15, 30, 15, 300]


# With real commits.


@pytest.mark.parametrize("end", ["patience", "crash"])
async def test_what_a_request_leaves_is_erased_right_behind_it(
    live_app, live_client, monkeypatch, end
):
    ada = await user_maker(live_client)()
    for _ in range(3):
        await post(live_client, ada, WIDE)
    erase = leaving._erase
    ends = []

    async def ending(db, store, user_id, *, until):
        if ends or end == "patience":
            return await erase(db, store, user_id, until=until)
        ends.append(user_id)
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(leaving, "_erase", ending)
    monkeypatch.setattr(leaving, "PATIENCE", 0)
    answer = await leave(live_client, ada)

    assert answer.status_code == (200 if end == "patience" else 500)
    # The account's row, too.
    async with asyncio.timeout(10):
        while await rows_of(live_app.state.sessions, ada["id"]):
            await asyncio.sleep(0.05)


async def test_the_fast_lane_shows_nothing_of_theirs_either(live_app, live_client):
    make = user_maker(live_client)
    ada, bob = await make(), await make()
    theirs, mine = await post(live_client, bob), await post(live_client, ada)
    async with live_app.state.sessions() as db, db.begin():
        await db.execute(update(User).where(User.id == ada["id"]).values(leaving_dt=NOW))

    listed = await live_client.get("/api/feed/list?limit=1")
    read = await live_client.get(f"/api/feed/read/{mine['id']}")
    async with live_app.state.sessions() as db:
        await leaving.purge(db, live_app.state.images)

    assert [feed["id"] for feed in listed.json()] == [theirs["id"]]
    assert read.status_code == 404


@pytest.fixture
async def workers(live_app):
    """Two services on one database; gives a client of each."""
    other = create_app(live_app.state.settings)
    async with (
        other.router.lifespan_context(other),
        client_of(live_app) as one,
        client_of(other) as two,
    ):
        yield one, two


async def test_leaving_amid_traffic_leaves_every_count_right(live_app, workers, monkeypatch):
    """Others comment, like, follow and delete; so does who leaves; two leave at the same moment."""
    monkeypatch.setattr(leaving, "BATCH", 7)
    monkeypatch.setattr(leaving, "PATIENCE", 120)
    make = user_maker(workers[0])
    leavers, others = [await make() for _ in range(2)], [await make() for _ in range(4)]
    everybody = [*leavers, *others]
    feeds = [await post(workers[0], user) for user in everybody for _ in range(2)]
    for n in range(60):
        await say(workers[0], everybody[n % 6], random.choice(feeds))
    async with live_app.state.sessions() as db, db.begin():
        said = (await db.execute(select(Comment.id, Comment.feed_id))).all()
    statuses = Counter()

    async def act(user, worker):
        feed, reply = random.choice(feeds)["id"], random.choice(said)
        person = random.choice(everybody)["id"]
        method, path, sent = random.choice(
            [
                ("POST", "/api/comment/create", {"json": {"content": "C", "feed_id": feed}}),
                (
                    "POST",
                    "/api/comment/create",
                    {"json": {"content": "C", "feed_id": reply.feed_id, "parent_id": reply.id}},
                ),
                ("DELETE", f"/api/comment/delete/{reply.id}", {}),
                ("PATCH", f"/api/like/?feed_id={feed}", {}),
                ("PATCH", f"/api/like/?comment_id={reply.id}", {}),
                ("PATCH", f"/api/follow/{person}", {}),
                ("POST", "/api/feed/create", {"data": {"title": "T", "content": "C"}}),
                ("DELETE", f"/api/feed/delete/{feed}", {})
                if random.random() < 0.1
                else ("PUT", f"/api/like/feed/{feed}", {}),
            ]
        )
        answer = await worker.request(method, path, headers=bearer(user), **sent)
        statuses[answer.status_code] += 1
        assert answer.status_code in {200, 400, 401, 403, 404}, answer.text

    async def busy(user):
        for _ in range(40):
            await act(user, random.choice(workers))

    async def go(user):
        await asyncio.sleep(random.random() / 2)
        return await leave(random.choice(workers), user)

    receipts, _ = await asyncio.gather(
        asyncio.gather(*map(go, leavers)), asyncio.gather(*map(busy, everybody))
    )

    print(statuses)  # For -s.
    assert [(it.status_code, it.json()["complete"]) for it in receipts] == [(200, True)] * 2
    for user in leavers:
        assert await rows_of(live_app.state.sessions, user["id"]) == {}
    assert await miscounted(live_app.state.sessions) == []


@pytest.mark.parametrize("path", ["/api/feed/create", "/api/image/upload"])
async def test_an_upload_that_is_under_way_leaves_neither_row_nor_orphan(
    live_app, live_client, stored_keys, monkeypatch, path
):
    ada = await user_maker(live_client)()
    putting, go_on = asyncio.Event(), asyncio.Event()
    put = ImageStore.put

    async def waiting(store, key, picture):
        putting.set()
        await go_on.wait()
        await put(store, key, picture)

    monkeypatch.setattr(ImageStore, "put", waiting)
    sent = {"files": files("images", PNG)}
    if "feed" in path:
        sent["data"] = {"title": "T", "content": "C"}
    uploading = asyncio.create_task(live_client.post(path, headers=bearer(ada), **sent))
    await putting.wait()
    receipt = await leave(live_client, ada)
    async with live_app.state.sessions() as db:
        # Too early: what has not come yet could not be collected any more.
        await reaper.reap(db, live_app.state.images)
    go_on.set()
    refused = await uploading

    assert refused.status_code in {401, 503}
    assert receipt.json()["complete"] is False
    async with live_app.state.sessions() as db:
        async with db.begin():
            states = (
                await db.scalars(select(Image.state).where(Image.owner_id == ada["id"]))
            ).all()
            assert set(states) == {ImageState.CONDEMNED}
            mine = update(Image).where(Image.owner_id == ada["id"])
            await db.execute(mine.values(reap_dt=NOW - SETTLED))
        await reaper.reap(db, live_app.state.images)
        await leaving.purge(db, live_app.state.images)
    assert await stored_keys() == set()
    assert await rows_of(live_app.state.sessions, ada["id"]) == {}


@pytest.mark.parametrize("act", ["comment", "like", "follow", "feed", "upload", "profile"])
async def test_what_is_being_written_is_erased_too_or_refused(live_app, live_client, act):
    """Whoever leaves waits for it; and what waits for who leaves is refused."""
    make = user_maker(live_client)
    ada, bob = await make(), await make()
    feed = await post(live_client, bob)
    acts = {
        "comment": (
            "POST",
            "/api/comment/create",
            {"json": {"content": "C", "feed_id": feed["id"]}},
        ),
        "like": ("PUT", f"/api/like/feed/{feed['id']}", {}),
        "follow": ("PUT", f"/api/follow/{bob['id']}", {}),
        "feed": ("POST", "/api/feed/create", {"data": {"title": "T", "content": "C"}}),
        "upload": ("POST", "/api/image/upload", {"files": files("images", PNG)}),
        "profile": ("PATCH", "/api/mypage/profile", {"json": {"bio": "Me"}}),
    }
    method, path, sent = acts[act]
    async with live_app.state.sessions() as db:
        async with db.begin():
            # As the first transaction does.
            there = select(User).where(User.id == ada["id"]).with_for_update()
            (await db.scalars(there)).one()
            acting = asyncio.create_task(
                live_client.request(method, path, headers=bearer(ada), **sent)
            )
            await waits_for_a_lock(live_app)
            await db.execute(update(User).where(User.id == ada["id"]).values(leaving_dt=NOW))
        refused = await acting

    assert refused.status_code == 401
    assert await miscounted(live_app.state.sessions) == []
    assert await rows_of(live_app.state.sessions, ada["id"]) == {"User.id": 1}
    async with live_app.state.sessions() as db:
        await leaving.purge(db, live_app.state.images)


async def waits_for_a_lock(live_app):
    """Return as soon as somebody waits for a row."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10), live_app.state.sessions() as db:
        while True:
            async with db.begin():
                if await db.scalar(waiting):
                    return
            await asyncio.sleep(0.02)
