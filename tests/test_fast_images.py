"""An image by the fast lane: the same as by the plain way, and nothing that stays behind."""

import os

import pytest
import structlog
from botocore.exceptions import EndpointConnectionError
from sqlalchemy import insert, text

from config.s3 import Loader
from models.feed import Feed
from models.image import Image
from tests import lanes
from tests.lanes import ADA, LEAVING, NOW, Wish, logged
from tests.pictures import png

database, service, answered = lanes.database, lanes.service, lanes.answered
one_moment = lanes.one_moment
# Of several chunks, and of one.
LARGE, SMALL = os.urandom(300_000), b"0123456789"


def name(text_):
    return f"{text_:A<22}.jpg"


THERE = {"large": LARGE, "small": SMALL, "pending": SMALL}
HIDDEN = "condemned", "incoming", "deleted", "leaving", "lost"
ODD = ["none", "", "x.jpg", name("large") + "/", name("large")[:-1], "%2e%2e/x", "A" * 22 + ".JPG"]


async def fill(service):
    rows = [
        {"key": f"images/{name(which)}", "state": "attached", "owner_id": ADA, "feed_id": 1}
        for which in (*THERE, *HIDDEN)
    ]
    by_name = dict(zip((*THERE, *HIDDEN), rows, strict=True))
    for which in ("pending", "condemned", "incoming"):
        by_name[which] |= {"state": which, "feed_id": None}
    by_name["leaving"] |= {"owner_id": LEAVING}
    by_name["deleted"] |= {"feed_id": 2}
    feed = {"title": "T", "content": "C", "author_id": ADA}
    images = service.able.images
    async with service.able.sessions() as db, db.begin():
        await db.execute(text("DELETE FROM images"))
        await db.execute(text("DELETE FROM feeds"))
        feeds = [{"id": 1, "deleted_dt": None}, {"id": 2, "deleted_dt": NOW}]
        await db.execute(insert(Feed), [feed | it for it in feeds])
        more = {"stored": True, "content_type": "image/jpeg", "bytes": 10, "width": 1, "height": 1}
        await db.execute(
            insert(Image),
            [row | more | {"position": n, "reap_dt": NOW} for n, row in enumerate(rows)],
        )
    for which in (*THERE, "condemned", "deleted", "leaving"):
        await images._s3.put_object(
            Bucket=images._bucket,
            Key=f"images/{name(which)}",
            Body=THERE.get(which, SMALL),
            ContentType="image/jpeg",
        )
    service.begin(doubt=False)


BODIES = {f"/images/{name(which)}": body for which, body in THERE.items()}
PATHS = [f"/images/{path}" for path in (*map(name, (*THERE, *HIDDEN)), *ODD)]
TAG = f'"{name("large").partition(".")[0]}"'
RANGES = "0-1", "5-", "-3", "-0", "299999-400000", "3-2", "300000-", "0-1,3-4", "x", "00-01"
HEADERS = [
    (),
    *((("range", f"bytes={it}"),) for it in RANGES),
    (("range", "items=0-1"),),
    *((("if-none-match", it),) for it in (TAG, f"W/{TAG}", '"x"', "*", f'"x", {TAG}', "x")),
    (("if-none-match", TAG), ("range", "bytes=0-1")),
    (("authorization", "good"),),
    *((("origin", it),) for it in ("https://page.example.com", "https://evil.example", "")),
    (("origin", "https://page.example.com"), ("if-none-match", TAG)),
    (("if-none-match", '"x"'), ("range", "bytes=0-1"), ("x-request-id", "mine")),
    (("accept-encoding", "gzip"), ("if-range", '"x"'), ("cookie", "a=b"), ("accept", "text/html")),
]
# What the lane leaves alone.
UNUSUAL = [
    *((("authorization", it),) for it in ("ended", "forged", "expired", "Basic", "")),
    (("range", "bytes=0-1"), ("range", "bytes=2-3")),
    (("content-type", "image/png"),),
]


async def same(service, wish):
    """The two answers, after it was seen that they, and their lines in the log, are the same."""
    context = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(context) as lines:
        fast, plain = await service.both(service.resolved(wish, ""))
        if service.name != "usual" and fast.request_id != plain.request_id:
            of_fast, of_plain = await logged(lines, fast, plain)
            assert of_fast == of_plain
    return fast, plain


@pytest.mark.parametrize("path", PATHS)
async def test_the_lane_gives_an_image_as_the_plain_way_does(service, answered, path):
    await fill(service)

    for headers in HEADERS:
        fast, _ = await same(service, Wish(path, headers=headers))

        if service.name == "scarce":
            continue
        # The store may have lost one.
        assert answered == [path.encode()] * (path in BODIES or path == f"/images/{name('lost')}")
        answered.clear()
        if not headers:
            assert fast.body == BODIES[path] if path in BODIES else " 200 " not in fast.status


@pytest.mark.parametrize("service", ["usual", "public"], indirect=True)
async def test_what_is_not_usual_about_an_image_goes_the_plain_way(service, answered):
    await fill(service)
    path = f"/images/{name('large')}"

    for headers in UNUSUAL:
        await same(service, Wish(path, headers=headers))
    for method in ("HEAD", "OPTIONS", "POST", "DELETE"):
        await same(service, Wish(path, method))
    for query in ("?x=1", "?=", "?limit=1"):
        await same(service, Wish(path + query))
    for hosts in ((), ("localhost", "localhost"), ("evil.example",)):
        await service.both(Wish(path, hosts=hosts))

    # Without hosts of its own one name is like another, or none.
    assert answered == [path.encode()] * (2 if service.name == "usual" else 0)


@pytest.mark.parametrize("service", ["usual", "public"], indirect=True)
async def test_a_store_that_is_away_is_said_alike(service, answered, monkeypatch):
    await fill(service)
    path = f"/images/{name('large')}"

    async def away(*rest):
        raise EndpointConnectionError(endpoint_url="http://store")

    monkeypatch.setattr(Loader, "load", away)
    fast, _ = await same(service, Wish(path))
    known, _ = await same(service, Wish(path, headers=(("if-none-match", TAG),)))

    assert fast.status.startswith("HTTP/1.1 503 ")
    assert fast.all("retry-after")
    assert known.status.startswith("HTTP/1.1 304 ")
    assert answered == [path.encode()] * 2


async def test_what_the_store_refuses_once_is_asked_again(app, make_user, make_feed, monkeypatch):
    feed = await make_feed(await make_user(), images=[png()])
    images = app.state.images
    asked, real = [], images._loader._http.send

    async def send(request):
        asked.append(request.url)
        if len(asked) == 1:
            request.url = request.url.replace("/images/", "/images/none-")
        return await real(request)

    monkeypatch.setattr(images._loader._http, "send", send)
    image = await images.read(feed["image_urls"][0].rpartition("/")[2], "bytes=0-1")
    body = b"".join([chunk async for chunk in image.chunks()])
    image.close()

    assert len(asked) == 2
    assert (image.status, len(body)) == (206, 2)
