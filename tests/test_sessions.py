"""Sessions: begun by a log-in, kept going by refresh tokens, ended by their user or by a thief."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from sqlalchemy import func, select, update

from models.session import RefreshToken, Session
from models.user import User
from services import sessions as service
from services.errors import NotAuthenticated
from services.revocations import Revocations
from services.tokens import Tokens, key_id
from tests.conftest import PASSWORD, SECRET, bearer, make_settings
from tests.test_lists import counted_statements, walk
from tests.test_problems import assert_problem

ANOTHER = "another secret that is long enough for this"
OLDEST = "the oldest of all secrets and yet long enough"


async def log_in(client, user, **headers):
    account = {"email": user["email"], "password": PASSWORD}
    answer = await client.post("/api/auth/login", json=account, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refreshed(client, pair, **headers):
    sent = {"refresh_token": pair["refresh_token"]}
    return await client.post("/api/auth/refresh", json=sent, headers=headers)


async def is_signed_in(client, pair):
    """Whether an access token opens something: asked of each of the three kinds of routes."""
    answers = [
        await client.get("/api/mypage/profile", headers=bearer(pair)),
        await client.get("/api/feed/list", headers=bearer(pair)),
        await client.put("/api/like/feed/999999999", headers=bearer(pair)),
    ]
    found = {answer.status_code == 401 for answer in answers}
    assert len(found) == 1, answers
    return not found.pop()


async def listed(client, pair):
    answer = await client.get("/api/auth/sessions", headers=bearer(pair))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def age(db, **columns):
    """Move times of all sessions and refresh tokens into the past."""
    async with db.begin():
        for table in (Session, RefreshToken):
            moved = {k: getattr(table, k) - v for k, v in columns.items() if hasattr(table, k)}
            if moved:
                await db.execute(update(table).values(moved))


@pytest.mark.parametrize("how", ["login", "token"])
async def test_each_log_in_is_a_session_with_a_refresh_token_of_its_own(client, make_user, how):
    user = await make_user()
    form = {"grant_type": "password", "username": user["email"], "password": PASSWORD}
    account = {"email": user["email"], "password": PASSWORD}

    sent = {"json": account} if how == "login" else {"data": form}
    pair = (await client.post(f"/api/auth/{how}", **sent)).json()

    assert set(pair) == {
        *("email", "nickname", "access_token", "token_type", "expires_in", "refresh_token")
    }
    assert pair["refresh_token"] != user["refresh_token"]
    assert len(await listed(client, pair)) == 2


async def test_refresh_tokens_are_stored_as_hashes_alone(client, make_user, db):
    user = await make_user()
    hers = select(RefreshToken.token_hash).join(Session, Session.id == RefreshToken.session_id)

    async with db.begin():
        stored = (await db.scalars(hers.where(Session.user_id == user["id"]))).all()

    assert stored == [hashlib.sha256(user["refresh_token"].encode()).digest()]
    assert len(user["refresh_token"]) >= 43  # 32 random bytes in base64


async def test_a_refresh_gives_a_new_pair_for_the_same_session(client, make_user):
    user = await make_user()

    answer = await refreshed(client, user)

    pair = answer.json()
    assert answer.status_code == 200
    assert (pair["email"], pair["expires_in"]) == (user["email"], 900)
    assert pair["refresh_token"] != user["refresh_token"]
    assert await is_signed_in(client, pair)
    assert len(await listed(client, pair)) == 1
    assert (await refreshed(client, pair)).status_code == 200


async def test_two_tabs_that_refresh_at_once_both_stay_signed_in(client, make_user):
    user = await make_user()

    first, second = [(await refreshed(client, user)).json() for _ in range(2)]

    for pair in (first, second):
        assert await is_signed_in(client, pair)
        assert (await refreshed(client, pair)).status_code == 200
    assert len(await listed(client, first)) == 1


async def test_a_used_refresh_token_that_comes_back_ends_its_session_and_no_other(
    client, make_user, db
):
    user = await make_user()
    elsewhere = await log_in(client, user)
    pair = (await refreshed(client, user)).json()
    await age(db, used_dt=service.GRACE + timedelta(seconds=1))

    reused = await refreshed(client, user)

    assert_problem(reused, "refresh-token-reused")
    assert not await is_signed_in(client, user)
    assert not await is_signed_in(client, pair)
    assert_problem(await refreshed(client, pair), "invalid-refresh-token")
    assert_problem(await refreshed(client, user), "invalid-refresh-token")
    assert await is_signed_in(client, elsewhere)


async def test_the_grace_is_counted_from_the_first_use(client, make_user, db):
    user = await make_user()
    await refreshed(client, user)
    await age(db, used_dt=service.GRACE - timedelta(seconds=3))
    assert (await refreshed(client, user)).status_code == 200
    await age(db, used_dt=timedelta(seconds=4))

    assert_problem(await refreshed(client, user), "refresh-token-reused")


@pytest.mark.parametrize("token", ["nonsense", "x" * 200, "é", "a\0b", "' OR 1=1 --"])
async def test_an_unknown_refresh_token_is_refused(client, token):
    assert_problem(await refreshed(client, {"refresh_token": token}), "invalid-refresh-token")


@pytest.mark.parametrize("token", ["", "x" * 201, None, 1, ["x"]])
async def test_what_cannot_be_a_refresh_token_is_invalid(client, token):
    refused = await refreshed(client, {"refresh_token": token})

    assert [e["pointer"] for e in assert_problem(refused, "invalid-input")["errors"]] == [
        "/refresh_token"
    ]


async def test_a_session_lasts_for_as_long_as_it_is_refreshed(client, make_user, db, settings):
    days = settings.refresh_token_days
    pair = await make_user()
    for _ in range(3):
        await age(db, expires_dt=timedelta(days=days - 1))
        answer = await refreshed(client, pair)
        assert answer.status_code == 200
        pair = answer.json()
    await age(db, expires_dt=timedelta(days=days))

    assert_problem(await refreshed(client, pair), "invalid-refresh-token")
    assert await listed(client, pair) == []


async def test_a_log_out_ends_this_session_at_once(client, make_user):
    user = await make_user()
    elsewhere = await log_in(client, user)

    answer = await client.post("/api/auth/logout", headers=bearer(user))

    assert (answer.status_code, answer.json()) == (200, {"message": "Logged Out"})
    assert not await is_signed_in(client, user)
    assert_problem(await refreshed(client, user), "invalid-refresh-token")
    assert await is_signed_in(client, elsewhere)
    again = await client.post("/api/auth/logout", headers=bearer(user))
    assert "ended" in assert_problem(again, "not-authenticated")["detail"]


async def test_a_log_out_everywhere_ends_all_my_sessions_and_nobody_elses(client, make_user):
    user, other = await make_user(), await make_user()
    elsewhere = await log_in(client, user)

    answer = await client.post("/api/auth/logout?everywhere=true", headers=bearer(user))

    assert answer.status_code == 200
    for pair in (user, elsewhere):
        assert not await is_signed_in(client, pair)
        assert_problem(await refreshed(client, pair), "invalid-refresh-token")
    assert await is_signed_in(client, other)
    assert await is_signed_in(client, await log_in(client, user))


async def test_my_sessions_say_where_i_am_logged_in(client, make_user):
    user = await make_user()
    pair = await log_in(client, user, **{"User-Agent": "Browser " + "x" * 300})

    newest, oldest = await listed(client, pair)

    assert set(newest) == {
        *("id", "device", "address", "create_dt", "last_used_dt", "expires_dt", "current")
    }
    assert newest["device"] == ("Browser " + "x" * 300)[:200]
    assert newest["address"] == "127.0.0.1"
    assert [newest["current"], oldest["current"]] == [True, False]
    assert [s["current"] for s in await listed(client, user)] == [False, True]


@pytest.mark.parametrize(
    ("sent", "stored"), [(b"", ""), (b"a\0b", "ab"), (b"\xe9\xff", "éÿ"), (b"x" * 9000, "x" * 200)]
)
async def test_a_device_may_call_itself_what_it_likes(client, make_user, sent, stored):
    user = await make_user()

    pair = await log_in(client, user, **{"User-Agent": sent})

    assert (await listed(client, pair))[0]["device"] == stored


async def test_a_refresh_is_a_use_of_the_session(client, make_user, db):
    user = await make_user()
    await age(db, last_used_dt=timedelta(hours=1), create_dt=timedelta(hours=1))
    (before,) = await listed(client, user)

    await refreshed(client, user, **{"User-Agent": "Newer"})

    (after,) = await listed(client, user)
    assert after["device"] == "Newer"
    assert after["create_dt"] == before["create_dt"]
    used = datetime.fromisoformat(after["last_used_dt"])
    assert used - datetime.fromisoformat(before["last_used_dt"]) >= timedelta(hours=1)


async def test_sessions_come_page_by_page(client, make_user):
    user = await make_user()
    for _ in range(4):
        await log_in(client, user)

    client.headers.update(bearer(user))
    pages = await walk(client, "/api/auth/sessions?limit=2")

    ids = [session["id"] for page in pages for session in page]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert ids == sorted(set(ids), reverse=True)


async def test_i_can_end_a_session_elsewhere(client, make_user):
    user = await make_user()
    elsewhere = await log_in(client, user)
    (theirs,) = [s["id"] for s in await listed(client, user) if not s["current"]]

    ended = await client.delete(f"/api/auth/sessions/{theirs}", headers=bearer(user))

    assert (ended.status_code, ended.json()) == (200, {"message": "Session Ended"})
    assert not await is_signed_in(client, elsewhere)
    assert_problem(await refreshed(client, elsewhere), "invalid-refresh-token")
    assert [s["current"] for s in await listed(client, user)] == [True]
    again = await client.delete(f"/api/auth/sessions/{theirs}", headers=bearer(user))
    assert_problem(again, "session-not-found")


async def test_nobody_ends_or_sees_the_session_of_another(client, make_user):
    ada, eve = await make_user(), await make_user()
    (hers,) = [session["id"] for session in await listed(client, ada)]

    refused = await client.delete(f"/api/auth/sessions/{hers}", headers=bearer(eve))

    assert_problem(refused, "forbidden")
    assert await is_signed_in(client, ada)
    assert hers not in [session["id"] for session in await listed(client, eve)]


async def test_all_sessions_but_one_can_be_ended_in_a_transaction_of_others(
    client, make_user, db, app
):
    user = await make_user()
    elsewhere = [await log_in(client, user) for _ in range(2)]
    mine = app.state.tokens.read(user["access_token"]).session_id

    async with db.begin():
        ended = await service.end_all(db, user["id"], but=mine)
    app.state.revocations.note(ended)

    assert await is_signed_in(client, user)
    for pair in elsewhere:
        assert not await is_signed_in(client, pair)
        assert_problem(await refreshed(client, pair), "invalid-refresh-token")


async def test_whose_account_is_gone_is_signed_out(client, make_user, db):
    user = await make_user()
    async with db.begin():
        await db.delete(await db.get_one(User, user["id"]))

    refused = await client.get("/api/mypage/profile", headers=bearer(user))

    assert_problem(refused, "not-authenticated")
    assert_problem(await refreshed(client, user), "invalid-refresh-token")


async def test_a_token_of_one_user_with_the_session_of_another_is_nobodys(client, make_user, app):
    ada, eve = await make_user(), await make_user()
    session_id = app.state.tokens.read(eve["access_token"]).session_id
    mixed = {"access_token": app.state.tokens.issue(ada["id"], session_id)}

    refused = await client.get("/api/mypage/profile", headers=bearer(mixed))

    assert_problem(refused, "not-authenticated")


async def test_who_is_signed_in_costs_one_statement_where_the_user_is_needed_and_else_none(
    client, make_user, engine
):
    headers = bearer(await make_user())
    with counted_statements(engine) as of_anybody:
        await client.get("/api/feed/list")
    with counted_statements(engine) as of_a_reader:
        await client.get("/api/feed/list", headers=headers)
    with counted_statements(engine) as of_me:
        await client.get("/api/mypage/deleted", headers=headers)
        await client.get("/api/mypage/deleted", headers=headers)

    assert len(of_a_reader) == len(of_anybody)
    assert sum("FROM users JOIN sessions" in statement for statement in of_me) == 2
    assert not any("FROM sessions" in statement for statement in of_me)


async def test_what_is_not_sure_is_asked_of_the_database(client, make_user, sessions, app):
    user, gone = await make_user(), await make_user()
    await client.post("/api/auth/logout", headers=bearer(gone))
    unsure = Revocations(sessions, 900)
    read = app.state.tokens.read

    assert not unsure.current
    await unsure.require_live(read(user["access_token"]).session_id)
    with pytest.raises(NotAuthenticated):
        await unsure.require_live(read(gone["access_token"]).session_id)


def test_a_rotation_of_keys_logs_nobody_out():
    before = Tokens(make_settings(secret_key=OLDEST))
    between = Tokens(make_settings(secret_key=ANOTHER, former_secret_keys=OLDEST))
    now = Tokens(make_settings(former_secret_keys=f"{ANOTHER}, {OLDEST}"))
    after = Tokens(make_settings())

    for issuer in (before, between, now):
        assert now.read(issuer.issue(7, 8))[:2] == (7, 8)
    for retired in (before, between):
        with pytest.raises(NotAuthenticated):
            after.read(retired.issue(7, 8))
    with pytest.raises(NotAuthenticated):
        before.read(now.issue(7, 8))  # Only the first of the keys signs.


def test_a_key_id_tells_nothing_of_its_key():
    kid = jwt.get_unverified_header(Tokens(make_settings()).issue(1, 1))["kid"]

    assert kid == key_id(SECRET) != key_id(ANOTHER)
    assert re.fullmatch("[0-9a-f]{16}", kid)
    assert not hashlib.sha256(SECRET.encode()).hexdigest().startswith(kid)


def test_a_token_of_one_key_under_the_name_of_another_is_refused():
    tokens = Tokens(make_settings(former_secret_keys=ANOTHER))
    now = datetime.now(UTC)
    claims = {"sub": "1", "sid": 1, "iat": now, "exp": now + timedelta(minutes=5)}

    forged = jwt.encode(claims, ANOTHER, headers={"kid": key_id(SECRET)})

    with pytest.raises(NotAuthenticated):
        tokens.read(forged)


def test_no_access_token_outlives_what_is_set_now(monkeypatch):
    issued = Tokens(make_settings(access_token_minutes=60)).issue(1, 1)
    tokens = Tokens(make_settings(access_token_minutes=5))
    assert tokens.read(issued).user_id == 1
    later = datetime.now(UTC).timestamp() + 301
    monkeypatch.setattr("services.tokens.time.time", lambda: later)

    with pytest.raises(NotAuthenticated, match="expired"):
        tokens.read(issued)


async def test_what_is_long_over_is_forgotten_and_nothing_else(client, make_user, db):
    expired, ended, going_on = [await make_user() for _ in range(3)]
    await client.post("/api/auth/logout", headers=bearer(ended))
    newer = (await refreshed(client, going_on)).json()
    # Not the newest of the tokens.
    async with db.begin():
        last = await db.scalar(select(func.max(RefreshToken.id)))
        over = datetime.now(UTC) - service.KEPT - timedelta(minutes=1)
        others = update(RefreshToken).where(RefreshToken.id != last)
        await db.execute(others.values(expires_dt=over))
        await db.execute(update(Session).values(ended_dt=over).where(Session.ended_dt.is_not(None)))
        lapsed = update(Session).where(Session.user_id == expired["id"])
        await db.execute(lapsed.values(expires_dt=over))

    await service.purge(db, batch=1)

    async with db.begin():
        users = [user["id"] for user in (expired, ended, going_on)]
        left = select(Session.user_id).where(Session.user_id.in_(users))
        assert (await db.scalars(left)).all() == [going_on["id"]]
        assert (await db.scalars(select(RefreshToken.id))).all() == [last]
    assert (await refreshed(client, newer)).status_code == 200


async def test_what_ended_a_while_ago_is_not_forgotten_yet(client, make_user, db):
    user = await make_user()
    await client.post("/api/auth/logout", headers=bearer(user))
    await age(db, ended_dt=timedelta(days=1))

    await service.purge(db)

    async with db.begin():
        assert await db.scalar(select(Session.ended_dt).where(Session.user_id == user["id"]))
