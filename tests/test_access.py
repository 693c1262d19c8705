"""Who may do what: every route, asked by everybody."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from models.user import User
from tests import pictures
from tests.conftest import PASSWORD, Json, MakeApp, bearer, files, user_maker

# In this order: nobody; a member who has nothing here; the owner of what is asked for; another
# member, who has as much of their own; an administrator. Who owns nothing owns what they ask for.
ASKING = ("nobody", "member", "owner", "other", "administrator")
OPEN = (200, 200, 200, 200, 200)
NOT_FOUND = (404, 404, 404, 404, 404)
SIGNED_IN = (401, 200, 200, 200, 200)
OWN = (401, 403, 200, 403, 403)
DELETABLE = (401, 403, 200, 403, 200)
TABLE = {
    "POST /api/auth/signup": OPEN,
    "POST /api/auth/login": OPEN,
    "POST /api/auth/token": OPEN,
    "POST /api/auth/password/change": SIGNED_IN,
    "POST /api/auth/password/forgot": OPEN,
    "POST /api/auth/email/send": SIGNED_IN,
    "GET /api/auth/sessions": SIGNED_IN,
    "DELETE /api/auth/sessions/{session_id}": OWN,
    "POST /api/auth/logout": SIGNED_IN,
    # Whoever has the token may; nobody here has.
    "POST /api/auth/refresh": (401, 401, 401, 401, 401),
    "POST /api/auth/password/reset": NOT_FOUND,
    "POST /api/auth/email/verify": NOT_FOUND,
    "POST /api/feed/create": SIGNED_IN,
    "GET /api/feed/read/{feed_id}": OPEN,
    "GET /api/feed/list": OPEN,
    "GET /api/feed/list-by-user": OPEN,
    "GET /api/feed/home": SIGNED_IN,
    "PATCH /api/feed/update/{feed_id}": OWN,
    "DELETE /api/feed/delete/{feed_id}": DELETABLE,
    "POST /api/feed/restore/{feed_id}": OWN,
    "GET /api/feed/history/{feed_id}": OWN,
    "POST /api/comment/create": SIGNED_IN,
    "GET /api/comment/feed/{feed_id}": OPEN,
    "GET /api/comment/read/{comment_id}": OPEN,
    "PATCH /api/comment/update/{comment_id}": OWN,
    "DELETE /api/comment/delete/{comment_id}": DELETABLE,
    "POST /api/comment/restore/{comment_id}": OWN,
    "PATCH /api/like/": SIGNED_IN,
    "PUT /api/like/feed/{feed_id}": SIGNED_IN,
    "DELETE /api/like/feed/{feed_id}": SIGNED_IN,
    "GET /api/like/feed/{feed_id}": OPEN,
    "PUT /api/like/comment/{comment_id}": SIGNED_IN,
    "DELETE /api/like/comment/{comment_id}": SIGNED_IN,
    # Nobody follows themselves.
    "PATCH /api/follow/{user_id}": (401, 200, 400, 200, 200),
    "PUT /api/follow/{user_id}": (401, 200, 400, 200, 200),
    "DELETE /api/follow/{user_id}": (401, 200, 400, 200, 200),
    "GET /api/mypage/{user_id}/followers": SIGNED_IN,
    "GET /api/mypage/{user_id}/followings": SIGNED_IN,
    "GET /api/user/{user_id}": OPEN,
    "GET /api/mypage/profile": SIGNED_IN,
    "PATCH /api/mypage/profile": SIGNED_IN,
    "GET /api/mypage/feeds": SIGNED_IN,
    "GET /api/mypage/comments": SIGNED_IN,
    "GET /api/mypage/deleted": SIGNED_IN,
    "GET /api/mypage/export": SIGNED_IN,
    "DELETE /api/mypage": SIGNED_IN,
    "POST /api/image/upload": SIGNED_IN,
    "POST /api/image/presign": SIGNED_IN,
    # Theirs, but nothing was uploaded yet.
    "POST /api/image/{image_id}/complete": (401, 403, 409, 403, 403),
    "GET /api/image/mine": SIGNED_IN,
    "GET /api/image/{image_id}": OWN,
    "PATCH /api/image/{image_id}": OWN,
    "DELETE /api/image/{image_id}": DELETABLE,
    "GET /images/{name}": OPEN,
    "HEAD /images/{name}": OPEN,
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
}
FORM = {"title": "Title", "content": "Content"}
# What a route is sent, beside its path; `{…}` is filled in with the ids of the owner's things.
SENT: dict[str, Json] = {
    "POST /api/auth/signup": {
        "json": {"email": "new@example.com", "password": PASSWORD, "nickname": "New one"}
    },
    "POST /api/auth/login": {"json": {"email": "owner@example.com", "password": PASSWORD}},
    "POST /api/auth/token": {
        "data": {"grant_type": "password", "username": "owner@example.com", "password": PASSWORD}
    },
    "POST /api/auth/password/change": {
        "json": {"old_password": PASSWORD, "new_password": PASSWORD}
    },
    "POST /api/auth/password/forgot": {"json": {"email": "owner@example.com"}},
    "POST /api/auth/refresh": {"json": {"refresh_token": "made up"}},
    "POST /api/auth/password/reset": {"json": {"token": "made up", "password": PASSWORD}},
    "POST /api/auth/email/verify": {"json": {"token": "made up"}},
    "POST /api/feed/create": {"data": FORM},
    "GET /api/feed/list-by-user": {"params": {"user_id": "{user_id}"}},
    "PATCH /api/feed/update/{feed_id}": {"data": FORM},
    "POST /api/comment/create": {"json": {"content": "Words", "feed_id": "{feed_id}"}},
    "PATCH /api/comment/update/{comment_id}": {"json": {"content": "Other words"}},
    "PATCH /api/like/": {"params": {"feed_id": "{feed_id}"}},
    "PATCH /api/mypage/profile": {"json": {"bio": "Words"}},
    "DELETE /api/mypage": {"json": {"password": PASSWORD}},
    "POST /api/image/upload": {"files": "{picture}"},
    "POST /api/image/presign": {"json": {"type": "image/png", "bytes": 1000}},
    "PATCH /api/image/{image_id}": {"json": {"alt": "Words"}},
}


@pytest.fixture
async def app(make_app: MakeApp) -> FastAPI:
    return await make_app(restore_days=7)


@pytest.fixture
async def people(client: httpx.AsyncClient, db: AsyncSession) -> dict[str, Json]:
    """Everybody by name, each with things of their own but the member."""
    make = user_maker(client)
    found = {name: await make(f"{name}@example.com", f"The {name}") for name in ASKING[1:]}
    async with db.begin():
        admins = update(User).where(User.id == found["administrator"]["id"])
        await db.execute(admins.values(is_admin=True))
    for name in ("other", "administrator"):
        await things(client, found[name])
    return found


async def things(client: httpx.AsyncClient, owner: Json) -> Json:
    """One of each that somebody can own; gives their ids."""

    async def post(path: str, **sent: Any) -> Any:
        answer = await client.post(path, headers=bearer(owner), **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()

    feed = await post("/api/feed/create", data=FORM, files=files("images", pictures.png()))
    comment = await post("/api/comment/create", json={"content": "Words", "feed_id": feed["id"]})
    return {
        "user_id": owner["id"],
        "feed_id": feed["id"],
        "comment_id": comment["id"],
        "image_id": feed["images"][0]["id"],
        "name": feed["image_urls"][0].rpartition("/")[2],
        "picture": files("images", pictures.png()),
    }


def filled(sent: Any, ids: Json) -> Any:
    if isinstance(sent, dict):
        return {key: filled(value, ids) for key, value in sent.items()}
    if isinstance(sent, str) and sent.startswith("{"):
        return ids[sent[1:-1]]
    return sent


def test_every_route_has_its_row(app: FastAPI) -> None:
    paths = app.openapi()["paths"]

    assert {f"{m.upper()} {path}" for path, methods in paths.items() for m in methods} == set(TABLE)


async def test_everybody_may_do_what_the_table_says(
    client: httpx.AsyncClient, people: dict[str, Json]
) -> None:
    found = {
        route: tuple([await ask(client, people, route, name) for name in ASKING]) for route in TABLE
    }

    assert found == TABLE


async def ask(client: httpx.AsyncClient, people: dict[str, Json], route: str, name: str) -> int:
    """Send one request, for the owner's things; gives its status."""
    method, path = route.split(" ")
    # Fresh ones, as whoever asked before may have left none.
    ids = await things(client, people["owner"])
    await prepare(client, people["owner"], route, ids)
    sent = filled(SENT.get(route, {}), ids)
    if route == "POST /api/auth/signup":
        sent["json"] |= {"email": f"by-{name}@example.com", "nickname": f"By {name}"}
    if route == "DELETE /api/mypage" and name in people:
        # The others are needed; whoever it is may go.
        people = people | {name: await user_maker(client)()}
    headers = bearer(people[name]) if name in people else {}
    if "logout" in route and name in people:
        headers = bearer(await log_in(client, name))
    answer = await client.request(method, path.format(**ids), headers=headers, **sent)
    return answer.status_code


async def log_in(client: httpx.AsyncClient, name: str) -> Json:
    account = {"email": f"{name}@example.com", "password": PASSWORD}
    session: Json = (await client.post("/api/auth/login", json=account)).json()
    return session


async def prepare(client: httpx.AsyncClient, owner: Json, route: str, ids: Json) -> None:
    """Bring the owner's things into the state in which the route is for them."""
    if "restore" in route:
        kind = route.split("/")[2]
        path = f"/api/{kind}/delete/{ids[f'{kind}_id']}"
        assert (await client.delete(path, headers=bearer(owner))).status_code == 200
    if "session" in route:
        headers = bearer(await log_in(client, "owner"))
        sessions = await client.get("/api/auth/sessions", headers=headers)
        ids["session_id"] = next(each["id"] for each in sessions.json() if each["current"])
    if "/complete" in route:
        asked = await client.post(
            "/api/image/presign", json={"type": "image/png", "bytes": 1000}, headers=bearer(owner)
        )
        ids["image_id"] = asked.json()["id"]


@pytest.mark.parametrize("kind", ["feed", "comment"])
async def test_what_an_administrator_deleted_cannot_be_restored(
    client: httpx.AsyncClient, people: dict[str, Json], kind: str
) -> None:
    owner, admin = people["owner"], people["administrator"]
    ids = await things(client, owner)

    path = f"/api/{kind}/delete/{ids[f'{kind}_id']}"
    assert (await client.delete(path, headers=bearer(admin))).status_code == 200

    path = f"/api/{kind}/restore/{ids[f'{kind}_id']}"
    assert (await client.post(path, headers=bearer(owner))).status_code == 404
    assert (await client.get("/api/mypage/deleted", headers=bearer(owner))).json() == []
    if kind == "feed":
        assert (await client.get(f"/images/{ids['name']}")).status_code == 404


async def test_nobody_becomes_an_administrator_over_http(
    client: httpx.AsyncClient, people: dict[str, Json]
) -> None:
    account = {"email": "new@example.com", "password": PASSWORD, "nickname": "New one"}

    signup = await client.post("/api/auth/signup", json=account | {"is_admin": True})
    change = await client.patch(
        "/api/mypage/profile", json={"is_admin": True}, headers=bearer(people["member"])
    )

    assert [signup.status_code, change.status_code] == [422, 422]
