"""Conditional requests: nothing is sent twice, and no editor overwrites another unseen."""

import asyncio
import re

import httpx
import pytest

from tests.conftest import bearer, client_of, user_maker
from tests.pictures import annotated_png

PNG = annotated_png()


def match(tag: str) -> dict[str, str]:
    return {"If-Match": tag}


def none_match(tag: str) -> dict[str, str]:
    return {"If-None-Match": tag}


@pytest.fixture
async def author(make_user):
    return await make_user()


@pytest.fixture
async def things(client, author, make_feed):
    """One of each that can be edited: where it is read, and the requests that change and delete."""
    feed = await make_feed(author=author, images=[PNG])
    words = {"feed_id": feed["id"], "content": "C"}
    comment = await client.post("/api/comment/create", json=words, headers=bearer(author))
    comment_id, image_id = comment.json()["id"], feed["images"][0]["id"]
    image = f"/api/image/{image_id}"
    return {
        "feed": (
            f"/api/feed/read/{feed['id']}",
            ("PATCH", f"/api/feed/update/{feed['id']}", {"files": {"title": (None, "New")}}),
            ("DELETE", f"/api/feed/delete/{feed['id']}", {}),
        ),
        "comment": (
            f"/api/comment/read/{comment_id}",
            ("PATCH", f"/api/comment/update/{comment_id}", {"json": {"content": "New"}}),
            ("DELETE", f"/api/comment/delete/{comment_id}", {}),
        ),
        "profile": (
            "/api/mypage/profile",
            ("PATCH", "/api/mypage/profile", {"json": {"bio": "New"}}),
            None,
        ),
        "image": (image, ("PATCH", image, {"json": {"alt": "New"}}), ("DELETE", image, {})),
    }


THINGS = ["feed", "comment", "profile", "image"]
each = pytest.mark.parametrize("what", THINGS)
deletable = pytest.mark.parametrize("what", [it for it in THINGS if it != "profile"])


@pytest.mark.parametrize(
    "url",
    [
        "/api/feed/list",
        "/api/feed/list?limit=1&total=true",
        "/api/feed/home",
        "/api/mypage/profile",
        "/api/mypage/deleted",
        "/api/image/mine",
        "/openapi.json",
        "/healthz",
    ],
)
async def test_a_read_is_tagged_and_asked_again_it_is_304_without_a_body(
    client, author, make_feed, url
):
    for _ in range(2):
        await make_feed(author=author)
    first = await client.get(url, headers=bearer(author))

    again = await client.get(url, headers=bearer(author) | none_match(first.headers["etag"]))

    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert re.fullmatch(r'"([0-9a-f]{16}\.)?[0-9a-f]{32}"', first.headers["etag"])
    gone = {"content-type", "content-length", "x-request-id"}
    assert {k: v for k, v in first.headers.items() if k not in gone} == {
        k: v for k, v in again.headers.items() if k != "x-request-id"
    }


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"other", {tag}', 304),
        ('"other",W/{tag} , "x"', 304),
        ("*", 304),
        ('"other"', 200),
        ("", 200),
        ("nonsense", 200),
        ('"', 200),
        ("\xff", 200),
    ],
)
async def test_if_none_match_takes_lists_weak_tags_and_any(client, sent, status):
    tag = (await client.get("/api/feed/list")).headers["etag"]

    header = none_match(sent.format(tag=tag))
    again = await client.get(
        "/api/feed/list", headers={k: v.encode("latin-1") for k, v in header.items()}
    )

    assert again.status_code == status
    assert again.headers["etag"] == tag


async def test_a_tag_changes_with_what_is_read_and_a_refusal_has_none(client, author, make_feed):
    empty = await client.get("/api/feed/list")
    feed = await make_feed(author=author)
    full = await client.get("/api/feed/list", headers=none_match(empty.headers["etag"]))
    refused = await client.get("/api/feed/read/999999", headers=none_match("*"))

    assert full.json()[0]["id"] == feed["id"]
    assert refused.status_code == 404
    assert "etag" not in refused.headers


async def test_caches_keep_apart_what_is_read_with_a_token_and_keep_no_answer_to_a_write(
    client, author
):
    anybody = await client.get("/api/feed/list")
    signed_in = await client.get("/api/feed/list", headers=bearer(author))
    log_in = await client.post("/api/auth/login", json={"email": "a@b.cc", "password": "x"})

    assert anybody.headers["cache-control"] == "no-cache"
    assert signed_in.headers["cache-control"] == "private, no-cache"
    assert "Authorization" in anybody.headers["vary"]
    assert "Authorization" in signed_in.headers["vary"]
    assert log_in.headers["cache-control"] == "no-store"
    assert "etag" not in log_in.headers


async def test_an_image_keeps_the_tag_that_it_has_by_itself(client, author, make_feed):
    feed = await make_feed(author=author, images=[PNG])
    url = feed["image_urls"][0].removeprefix("http://localhost:8000")

    image = await client.get(url)
    again = await client.get(url, headers=none_match(image.headers["etag"]))

    assert "immutable" in image.headers["cache-control"]
    assert "." not in image.headers["etag"]
    assert again.status_code == 304


@each
async def test_an_edit_answers_with_the_tag_that_a_read_gives(client, author, things, what):
    read, (method, url, sent), _ = things[what]

    changed = await client.request(method, url, headers=bearer(author), **sent)
    found = await client.get(read, headers=bearer(author))

    assert changed.json() == found.json()
    assert changed.headers["etag"] == found.headers["etag"]


async def test_what_is_created_bears_the_tag_that_a_read_gives(client, author):
    sent = {"title": (None, "T"), "content": (None, "C")}
    feed = await client.post("/api/feed/create", files=sent, headers=bearer(author))
    words = {"feed_id": feed.json()["id"], "content": "C"}
    comment = await client.post("/api/comment/create", json=words, headers=bearer(author))
    url = f"/api/comment/read/{comment.json()['id']}"

    assert (
        comment.headers["etag"] == (await client.get(url, headers=bearer(author))).headers["etag"]
    )
    assert "." in feed.headers["etag"]


@each
async def test_who_edits_what_somebody_has_changed_meanwhile_changes_nothing(
    client, author, things, what
):
    read, (method, url, sent), delete = things[what]
    seen = (await client.get(read, headers=bearer(author))).headers["etag"]
    first = await client.request(method, url, headers=bearer(author) | match(seen), **sent)
    now = await client.get(read, headers=bearer(author))

    for again in ((method, url, sent), delete):
        if again is not None:
            refused = await client.request(
                again[0], again[1], headers=bearer(author) | match(seen), **again[2]
            )
            assert refused.status_code == 412
            assert refused.json()["type"] == "/problems/precondition-failed"

    assert first.status_code == 200
    assert (await client.get(read, headers=bearer(author))).json() == now.json()
    after = match(first.headers["etag"])
    assert (
        await client.request(method, url, headers=bearer(author) | after, **sent)
    ).status_code == 200


@deletable
async def test_what_is_as_it_was_seen_is_deleted(client, author, things, what):
    read, _, (method, url, _) = things[what]
    seen = (await client.get(read, headers=bearer(author))).headers["etag"]

    deleted = await client.request(method, url, headers=bearer(author) | match(seen))

    assert deleted.status_code == 200
    assert (await client.get(read, headers=bearer(author))).status_code == 404


async def test_a_like_and_a_comment_in_between_do_not_stand_in_an_editors_way(
    client, author, make_user, things
):
    read, (method, url, sent), _ = things["feed"]
    seen = (await client.get(read, headers=bearer(author))).headers["etag"]
    feed_id, reader = int(read.rpartition("/")[2]), await make_user()
    await client.put(f"/api/like/feed/{feed_id}", headers=bearer(reader))
    words = {"feed_id": feed_id, "content": "Me too"}
    await client.post("/api/comment/create", json=words, headers=bearer(reader))

    changed = (await client.get(read, headers=bearer(author) | none_match(seen))).status_code
    edited = await client.request(method, url, headers=bearer(author) | match(seen), **sent)

    assert changed == 200
    assert edited.status_code == 200


async def test_words_for_an_image_and_an_image_less_are_edits_of_its_feed(client, author, things):
    read, (method, url, sent), _ = things["feed"]
    for act in things["image"][1:]:
        seen = (await client.get(read, headers=bearer(author))).headers["etag"]
        await client.request(act[0], act[1], headers=bearer(author), **act[2])

        refused = await client.request(method, url, headers=bearer(author) | match(seen), **sent)

        assert refused.status_code == 412


@pytest.mark.parametrize(
    ("sent_tag", "status"),
    [
        ("*", 200),
        (" * ", 200),
        ('"other", {tag}', 200),
        ('{tag},"other"', 200),
        ('"other"', 412),
        ("W/{tag}", 412),
        ("", 422),
        ("nonsense", 422),
        ('"half', 422),
        ('* , "x"', 422),
        ("\xff", 422),
        (",,", 422),
    ],
)
async def test_if_match_takes_lists_and_any_and_refuses_what_is_no_tag(
    client, author, things, sent_tag, status
):
    read, (method, url, sent), _ = things["feed"]
    tag = (await client.get(read, headers=bearer(author))).headers["etag"]
    headers = bearer(author) | match(sent_tag.format(tag=tag))
    headers = {name: value.encode("latin-1") for name, value in headers.items()}

    answer = await client.request(method, url, headers=headers, **sent)

    assert answer.status_code == status, answer.text
    if status == 422:
        assert answer.json()["errors"][0]["pointer"] == "/If-Match"


async def test_a_list_of_tags_may_come_in_several_headers(client, author, things):
    read, (method, url, sent), _ = things["comment"]
    tag = (await client.get(read, headers=bearer(author))).headers["etag"]
    both = [("If-Match", '"other"'), ("If-Match", tag), *bearer(author).items()]

    assert (await client.request(method, url, headers=both, **sent)).status_code == 200


async def test_who_may_not_edit_is_told_so_whatever_the_tag(client, make_user, things):
    stranger = await make_user()
    for what in ("feed", "comment", "image"):
        for act in things[what][1:]:
            headers = bearer(stranger) | match('"other"')
            refused = await client.request(act[0], act[1], headers=headers, **act[2])
            assert refused.status_code == 403
    missing = await client.delete("/api/feed/delete/999999", headers=bearer(stranger) | match("*"))
    assert missing.status_code == 404


async def test_a_comment_is_read_as_its_list_shows_it_and_not_when_it_or_its_feed_is_gone(
    client, author, things
):
    read, _, (method, url, _) = things["comment"]
    feed_id = things["feed"][0].rpartition("/")[2]
    listed = (await client.get(f"/api/comment/feed/{feed_id}")).json()

    assert [(await client.get(read)).json()] == listed
    await client.request(method, url, headers=bearer(author))
    assert (await client.get(read)).status_code == 404


async def test_an_image_by_itself_is_read_by_its_owner_alone(client, author, make_user, things):
    read, _, _ = things["image"]

    assert (await client.get(read, headers=bearer(author))).json()["id"] == int(read.split("/")[-1])
    assert (await client.get(read, headers=bearer(await make_user()))).status_code == 403
    assert (await client.get(read)).status_code == 401


@pytest.mark.parametrize("what", ["feed", "comment", "profile", "image"])
async def test_of_many_editors_with_the_same_tag_exactly_one_wins(live_app, what):
    """With real connections, so that they wait for each other's locks."""
    async with client_of(live_app) as client:
        author = await user_maker(client)()
        headers = bearer(author)
        form = {"title": (None, "T"), "content": (None, "C")}
        posted = await client.post(
            "/api/feed/create", files={**form, "images": ("a.png", PNG)}, headers=headers
        )
        feed = posted.json()
        words = {"feed_id": feed["id"], "content": "C"}
        comment = (await client.post("/api/comment/create", json=words, headers=headers)).json()
        image_id = feed["images"][0]["id"]
        read, url, field = {
            "feed": (f"/api/feed/read/{feed['id']}", f"/api/feed/update/{feed['id']}", "title"),
            "comment": (
                f"/api/comment/read/{comment['id']}",
                f"/api/comment/update/{comment['id']}",
                "content",
            ),
            "profile": ("/api/mypage/profile", "/api/mypage/profile", "bio"),
            "image": (f"/api/image/{image_id}", f"/api/image/{image_id}", "alt"),
        }[what]

        for round_ in range(5):
            tag = (await client.get(read, headers=headers)).headers["etag"]

            async def edit(n: int, tag: str = tag, round_: int = round_) -> httpx.Response:
                text = f"{round_}-{n}"
                sent = (
                    {"files": {field: (None, text)}} if what == "feed" else {"json": {field: text}}
                )
                return await client.patch(url, headers=headers | match(tag), **sent)

            answers = await asyncio.gather(*(edit(n) for n in range(6)))

            assert sorted(answer.status_code for answer in answers) == [200] + [412] * 5
            (won,) = [answer.json() for answer in answers if answer.status_code == 200]
            assert (await client.get(read, headers=headers)).json()[field] == won[field]


@pytest.mark.parametrize("what", ["feed", "comment"])
async def test_an_edit_and_a_deletion_with_the_same_tag_do_not_both_happen(live_app, what):
    async with client_of(live_app) as client:
        headers = bearer(await user_maker(client)())
        for _ in range(5):
            form = {"title": (None, "T"), "content": (None, "C")}
            made = await client.post("/api/feed/create", files=form, headers=headers)
            if what == "comment":
                words = {"feed_id": made.json()["id"], "content": "C"}
                made = await client.post("/api/comment/create", json=words, headers=headers)
            thing, tagged = made.json()["id"], headers | match(made.headers["etag"])
            sent = (
                {"files": {"title": (None, "N")}} if what == "feed" else {"json": {"content": "N"}}
            )

            edited, deleted = await asyncio.gather(
                client.patch(f"/api/{what}/update/{thing}", headers=tagged, **sent),
                client.delete(f"/api/{what}/delete/{thing}", headers=tagged),
            )

            assert (edited.status_code, deleted.status_code) in {(200, 412), (404, 200)}
