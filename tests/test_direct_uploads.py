"""Direct uploads: a form for the store, and an image made of what was sent by it."""

import asyncio
import base64
import contextlib
import functools
import json
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from aiohttp import ClientPayloadError
from sqlalchemy import select, update

from config.s3 import open_s3, require_bucket
from models.base import NOW
from models.image import Image, ImageState
from services import images as service
from services import reaper
from services.ledger import SETTLED
from services.store import LINGER
from tests.browser import serving
from tests.conftest import (
    SECRET,
    bearer,
    client_of,
    empty_bucket,
    files,
    keys_in,
    user_maker,
)
from tests.pictures import annotated_png, camera_jpeg, decode, photo
from tests.test_gallery import keys_of, urls_of
from tests.test_images import failing
from tests.test_problems import assert_problem

JPEG = camera_jpeg(image=photo(1000, 500))
PNG = annotated_png()
PATIENCE = timedelta(minutes=10)


async def presign(client, user, data, alt=""):
    asked = {"type": "image/jpeg", "bytes": len(data), "alt": alt}
    answer = await client.post("/api/image/presign", json=asked, headers=bearer(user))
    assert answer.status_code == 200, answer.text
    return answer.json()


@dataclass
class Board:
    """A service on a bucket of its own, and one of its users."""

    app: Any
    client: httpx.AsyncClient
    s3: Any
    user: dict[str, Any]

    @property
    def settings(self):
        return self.app.state.settings

    async def presign(self, data=JPEG, alt=""):
        return await presign(self.client, self.user, data, alt)

    async def send(self, form, data=JPEG, **changes):
        """As a browser sends a form: the fields in their order, then the file."""
        fields = form["fields"] | changes
        async with httpx.AsyncClient() as browser:
            return await browser.post(form["url"], data=fields, files={"file": ("a", data)})

    async def complete(self, form, user=None):
        path = f"/api/image/{form['id']}/complete"
        return await self.client.post(path, headers=bearer(user or self.user))

    async def delete(self, form):
        return await self.client.delete(f"/api/image/{form['id']}", headers=bearer(self.user))

    async def keys(self):
        return await keys_in(self.s3, self.settings)


@pytest.fixture
async def board(each_store, make_app, make_user):
    own = each_store | {"s3_bucket": f"feedboard-direct-{secrets.token_hex(4)}"}
    app = await make_app(**own)
    async with open_s3(app.state.settings) as s3, client_of(app) as client:
        await require_bucket(s3, app.state.settings)
        yield Board(app, client, s3, await make_user())
    await empty_bucket(own, remove=True)


# moto takes whatever is signed; what the policy says is held by real stores.
on_a_strict_store = pytest.mark.parametrize("each_store", ["seaweedfs"], indirect=True)


async def test_an_upload_becomes_an_image_like_any_other(board):
    form = await board.presign(alt="The old town")
    sent = await board.send(form)
    completed = await board.complete(form)

    assert sent.status_code == 204
    assert completed.status_code == 200, completed.text
    image = completed.json()
    assert (image["id"], image["alt"]) == (form["id"], "The old town")
    assert (image["width"], image["height"]) == (1000, 500)
    assert image["placeholder"]
    assert [variant["width"] for variant in image["variants"]] == [320, 960]
    assert await board.keys() == keys_of(image)
    for url in urls_of(image):
        loaded = await board.client.get(url)
        assert decode(loaded.content)
        assert b"GPS" not in loaded.content
    feed = await board.client.post(
        "/api/feed/create",
        data={"title": "T", "content": "C", "image_ids": [image["id"]]},
        files=files("images", PNG),
        headers=bearer(board.user),
    )
    assert feed.json()["images"][0] == image


async def test_completing_again_gives_the_same_image(board):
    form = await board.presign()
    await board.send(form)

    first, *others = [await board.complete(form) for _ in range(3)]

    assert [other.json() for other in others] == [first.json()] * 2


async def test_nothing_is_completed_before_the_file_has_come(board):
    form = await board.presign()

    early = await board.complete(form)
    await board.send(form)
    later = await board.complete(form)

    assert early.status_code == 409
    assert assert_problem(early, "nothing-uploaded")["detail"].startswith("No file has come yet")
    assert later.status_code == 200


@pytest.mark.parametrize("data", [b"<html>" * 50, JPEG[:-900]], ids=["no image", "cut off"])
async def test_a_bad_file_is_refused_and_gone(board, data):
    form = await board.presign(data)
    await board.send(form, data)

    refused = await board.complete(form)

    assert refused.status_code in {415, 422}
    assert await board.keys() == set()
    assert (await board.complete(form)).status_code == 404


async def test_a_file_is_judged_by_its_bytes_and_not_by_the_form(board):
    form = await board.presign(PNG)
    await board.send(form, PNG)

    completed = (await board.complete(form)).json()

    assert (await board.client.get(completed["url"])).headers["content-type"] == "image/png"


async def test_an_upload_can_be_called_off(board):
    form = await board.presign()
    await board.send(form)

    deleted = await board.delete(form)

    assert deleted.json() == {"message": "Image Deleted"}
    assert (await board.complete(form)).status_code == 404
    assert await board.keys() == set()


async def test_an_upload_that_is_not_completed_is_neither_listed_nor_described_nor_posted(board):
    form = await board.presign()
    await board.send(form)
    headers = bearer(board.user)

    mine = await board.client.get("/api/image/mine", headers=headers)
    described = await board.client.patch(
        f"/api/image/{form['id']}", json={"alt": "x"}, headers=headers
    )
    posted = await board.client.post(
        "/api/feed/create",
        data={"title": "T", "content": "C", "image_ids": [form["id"]]},
        files=files("images", PNG),
        headers=headers,
    )

    assert mine.json() == []
    assert described.status_code == 404
    assert posted.status_code == 422


async def test_what_was_uploaded_is_not_served(board):
    form = await board.presign()
    await board.send(form)
    (key,) = await board.keys()
    name = key.removeprefix("incoming/")

    for path in (f"/incoming/{name}", f"/images/{name}", f"/images/..%2Fincoming%2F{name}"):
        assert (await board.client.get(path)).status_code == 404


@on_a_strict_store
async def test_what_was_uploaded_is_not_to_be_had_from_the_store_either(board):
    form = await board.presign()
    await board.send(form)
    (key,) = await board.keys()

    async with httpx.AsyncClient() as stranger:
        assert (await stranger.get(f"{form['url']}/{key}")).status_code == 403


async def test_only_the_one_who_asked_can_complete(board, make_user):
    form = await board.presign()
    await board.send(form)

    assert (await board.complete(form, user=await make_user())).status_code == 403
    assert (await board.complete(form)).status_code == 200


@on_a_strict_store
@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (JPEG + b" ", {}),
        (JPEG[:-1], {}),
        (JPEG, {"key": "images/mine-now.jpg"}),
        (JPEG, {"key": "incoming/another"}),
        (JPEG, {"Content-Type": "text/html"}),
        (JPEG, {"x-amz-signature": "0" * 64}),
    ],
    ids=["longer", "shorter", "a served key", "another key", "another type", "unsigned"],
)
async def test_the_form_puts_just_the_file_that_it_was_asked_for(board, data, changes):
    form = await board.presign()

    refused = await board.send(form, data, **changes)

    assert refused.status_code in {400, 403}
    assert await board.keys() == set()


@on_a_strict_store
async def test_the_form_expires(board, monkeypatch):
    monkeypatch.setattr("services.store.FORM_EXPIRY", timedelta(seconds=1))
    form = await board.presign()
    await asyncio.sleep(2.1)

    assert (await board.send(form)).status_code == 403


@on_a_strict_store
async def test_a_page_of_another_origin_may_send_the_form_and_read_the_answer(board):
    form = await board.presign()
    origin = {"Origin": "https://board.example.com"}

    async with httpx.AsyncClient() as browser:
        sent = await browser.post(
            form["url"], data=form["fields"], files={"file": ("a", JPEG)}, headers=origin
        )

    assert sent.headers["access-control-allow-origin"] in {"*", origin["Origin"]}


async def test_a_file_larger_than_an_image_may_be_gets_no_form(board):
    limit = board.settings.max_image_bytes
    refused = await board.client.post(
        "/api/image/presign",
        json={"type": "image/jpeg", "bytes": limit + 1},
        headers=bearer(board.user),
    )

    assert assert_problem(refused, "image-too-large")["detail"].startswith("The file has 10,485,7")


async def test_a_store_that_takes_more_than_the_form_allows_is_not_trusted(board):
    form = await board.presign()
    (key,) = await incoming_keys(board)
    huge = b"\0" * (board.settings.max_image_bytes + 1)
    await board.s3.put_object(Bucket=board.settings.s3_bucket, Key=key, Body=huge)

    refused = await board.complete(form)

    assert refused.status_code == 413
    assert await board.keys() == set()


@pytest.mark.parametrize("operation", ["get_object", "put_object"])
async def test_completing_is_tried_again_after_the_store_was_down(board, operation):
    form = await board.presign()
    await board.send(form)

    with failing(board.app, operation):
        failed = await board.complete(form)
    again = await board.complete(form)

    assert failed.status_code == 503
    assert again.status_code == 200
    assert await board.keys() == keys_of(again.json())


@pytest.mark.parametrize("each_store", ["store"], indirect=True)
async def test_a_file_that_breaks_off_on_its_way_is_a_fault_of_the_store(board, monkeypatch):
    class Broken:
        async def iter_chunks(self, size):
            yield JPEG[:100]
            raise ClientPayloadError

        def close(self):
            pass

    async def get_object(**asked):
        return {"ContentLength": len(JPEG), "Body": Broken()}

    form = await board.presign()
    await board.send(form)
    with monkeypatch.context() as patched:
        patched.setattr(board.app.state.images._s3, "get_object", get_object)
        failed = await board.complete(form)

    assert failed.status_code == 503
    assert (await board.complete(form)).status_code == 200


async def test_a_form_that_is_used_again_after_completing_leaves_nothing(board, db):
    form = await board.presign()
    await board.send(form)
    image = (await board.complete(form)).json()
    await board.send(form)
    assert len(await board.keys()) == len(keys_of(image)) + 1

    # Not yet: the form could be sent once more.
    await reaper.reap(db, board.app.state.images)
    assert len(await board.keys()) == len(keys_of(image)) + 1
    await after(db, PATIENCE + LINGER, ImageState.CONDEMNED)
    await reaper.reap(db, board.app.state.images)

    assert await board.keys() == keys_of(image)
    assert await rows(db, ImageState.CONDEMNED) == 0


async def test_an_upload_that_nobody_completes_is_collected(board, db):
    form = await board.presign()
    await board.send(form)
    expires = datetime.fromisoformat(form["expires_dt"]) - datetime.now(UTC)
    assert PATIENCE - timedelta(minutes=1) < expires <= PATIENCE

    await after(db, PATIENCE + LINGER, ImageState.INCOMING)
    assert await reaper.reap(db, board.app.state.images) == (0, 0)
    await after(db, SETTLED, ImageState.CONDEMNED)
    assert await reaper.reap(db, board.app.state.images) == (1, 0)

    assert await board.keys() == set()
    assert (await board.complete(form)).status_code == 404


@pytest.mark.parametrize("each_store", ["store"], indirect=True)
async def test_a_bucket_in_a_region_of_aws_is_addressed_by_its_name(board, make_app):
    aws = board.settings.replace(
        s3_endpoint_url=None, s3_bucket="photos", s3_key_prefix="boards/one"
    )
    async with open_s3(aws) as s3:
        store = service.ImageStore(s3, board.app.state.images.cleaner, aws)
        url, fields = await store.form("incoming/x", content_type="image/png", size=123)

    policy = json.loads(base64.b64decode(fields["policy"]))
    assert url == "https://photos.s3.amazonaws.com/"
    assert fields["key"] == "boards/one/incoming/x"
    assert fields["x-amz-algorithm"] == "AWS4-HMAC-SHA256"
    assert "/ap-northeast-2/s3/" in fields["x-amz-credential"]
    for condition in (
        {"bucket": "photos"},
        {"key": "boards/one/incoming/x"},
        {"Content-Type": "image/png"},
        ["content-length-range", 123, 123],
    ):
        assert condition in policy["conditions"]


async def test_the_store_may_have_another_address_for_clients(make_app, make_user):
    app = await make_app(s3_upload_url="https://uploads.example.com/")
    async with client_of(app) as client:
        form = await Board(app, client, None, await make_user()).presign()

    assert form["url"] == f"https://uploads.example.com/{app.state.settings.s3_bucket}"


async def test_of_two_that_complete_at_once_one_image_is_left(live_app, live_client):
    user = await user_maker(live_client)()
    settings = live_app.state.settings
    async with open_s3(settings) as s3:
        board = Board(live_app, live_client, s3, user)
        form = await board.presign()
        await board.send(form)

        both = await asyncio.gather(*(board.complete(form) for _ in range(4)))
        image = (await board.complete(form)).json()

        assert {answer.status_code for answer in both} <= {200, 409}
        assert [answer.json() for answer in both if answer.status_code == 200].count(image) >= 1
        async with live_app.state.sessions() as db:
            async with db.begin():
                await db.execute(update(Image).values(reap_dt=NOW).where(CONDEMNED))
            await reaper.reap(db, live_app.state.images)
        left = {key for key in await board.keys() if key in keys_of(image)}
        assert left == keys_of(image)
        async with live_app.state.sessions() as db:
            assert await rows(db, ImageState.CONDEMNED) == 0


CONDEMNED = Image.state == ImageState.CONDEMNED


async def incoming_keys(board):
    async with board.app.state.sessions() as db, db.begin():
        found = select(Image.key).where(Image.state == ImageState.INCOMING)
        return (await db.scalars(found)).all()


async def rows(db, state):
    async with db.begin():
        return len((await db.scalars(select(Image.id).where(Image.state == state))).all())


async def after(db, time, state):
    """As if this much time had passed for the rows in this state."""
    async with db.begin():
        await db.execute(
            update(Image).values(reap_dt=Image.reap_dt - time).where(Image.state == state)
        )


PAGE = """
async ([form, data]) => {
  const body = new FormData();
  for (const [name, value] of Object.entries(form.fields)) body.append(name, value);
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  body.append("file", new File([bytes], "photo.jpg", {type: "image/jpeg"}));
  const answer = await fetch(form.url, {method: "POST", body});
  return answer.status;
}
"""


@contextlib.contextmanager
def front_end_in(folder):
    """The URL of a page of somebody's own, as a real server sends it."""
    (folder / "gallery.html").write_text("<!doctype html><title>Gallery</title>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_port}/gallery.html"
        finally:
            server.shutdown()


async def test_a_page_in_a_browser_uploads_to_the_store_by_itself(
    browser, seaweedfs, make_database, tmp_path
):
    """From the page's own origin to the store's, as browsers allow it and no other way."""
    inner = seaweedfs["s3_endpoint_url"]
    given = seaweedfs | {
        "s3_bucket": f"feedboard-browser-{secrets.token_hex(4)}",
        "s3_upload_url": inner.replace("127.0.0.1", "localhost"),
        "database_url": await make_database(),
        "secret_key": SECRET,
    }
    async with (
        contextlib.AsyncExitStack() as stack,
        serving(tmp_path, given) as url,
        httpx.AsyncClient(base_url=url) as client,
        await browser.new_context() as context,
    ):
        front_end = stack.enter_context(front_end_in(tmp_path))
        user = await user_maker(client)()
        form = await presign(client, user, JPEG)
        page = await context.new_page()
        await page.goto(front_end)

        status = await page.evaluate(PAGE, [form, base64.b64encode(JPEG).decode()])
        completed = await client.post(f"/api/image/{form['id']}/complete", headers=bearer(user))
        await page.goto(completed.json()["url"])
        shown = await page.evaluate("document.images[0].naturalWidth")

    assert not form["url"].startswith(url)
    assert status == 204
    assert completed.status_code == 200
    assert shown == 1000
    await empty_bucket({k: v for k, v in given.items() if k.startswith("s3_")}, remove=True)
