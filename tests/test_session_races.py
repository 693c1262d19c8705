"""Sessions at the same moment, in several processes, and where connections fail: real commits."""

import asyncio
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial

import httpx
import pytest
import structlog
from sqlalchemy import func, select, text, update

from app.main import create_app
from config.db import open_connection
from models.session import Session
from models.user import User
from services import revocations as service
from services.errors import NotAuthenticated
from services.revocations import Revocations
from services.sessions import end_all
from tests.conftest import PASSWORD, SECRET, bearer, client_of, user_maker
from tests.test_cli import Board
from tests.test_problems import assert_problem
from tests.test_sessions import is_signed_in, listed, log_in, refreshed
from tests.wire import wire_to


async def eventually(check, seconds=10):
    """Wait until it is so."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.005)


@pytest.fixture
async def user(live_client):
    return await user_maker(live_client)()


@pytest.fixture
def never_asks(monkeypatch):
    """A process asks when it connects, and then relies on what it hears."""
    monkeypatch.setattr(service, "ASK_EVERY", 3600)
    monkeypatch.setattr(service, "ANSWER_COUNTS", 3600)


@asynccontextmanager
async def another_service(live_app):
    """A second service on the same database, as with WORKERS=2; gives it and a client."""
    other = create_app(live_app.state.settings)
    async with other.router.lifespan_context(other), client_of(other) as client:

        async def follows():
            return other.state.revocations.current

        await eventually(follows)
        yield other, client


@asynccontextmanager
async def following(live_app, url):
    """What a process knows that follows the ends of sessions at this URL."""
    known = Revocations(live_app.state.sessions, 900)
    connecting = partial(open_connection, live_app.state.settings.replace(database_url=url))
    task = asyncio.create_task(known.follow(connecting))
    try:
        yield known
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def session_id(live_app, pair):
    return live_app.state.tokens.read(pair["access_token"]).session_id


async def test_many_refreshes_at_once_all_stay_in_one_session(live_client, user):
    answers = await asyncio.gather(*(refreshed(live_client, user) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {200}
    pairs = [answer.json() for answer in answers]
    assert len({pair["refresh_token"] for pair in pairs}) == 20
    assert len(await listed(live_client, pairs[0])) == 1


async def test_of_refreshes_that_come_back_late_at_once_none_succeeds(live_app, live_client, user):
    newest = (await refreshed(live_client, user)).json()
    async with live_app.state.sessions() as db, db.begin():
        back = "UPDATE refresh_tokens SET used_dt = used_dt - interval '1 hour' WHERE session_id = "
        await db.execute(text(back + str(session_id(live_app, user))))

    answers = await asyncio.gather(*(refreshed(live_client, user) for _ in range(10)))

    kinds = sorted(answer.json()["type"] for answer in answers)
    assert kinds == ["/problems/invalid-refresh-token"] * 9 + ["/problems/refresh-token-reused"]
    assert not await is_signed_in(live_client, newest)


@pytest.mark.parametrize("how", ["", "?everywhere=true"])
async def test_no_refresh_survives_a_log_out_at_the_same_moment(live_client, user, how):
    for _ in range(10):
        pair = await log_in(live_client, user)
        out = live_client.post(f"/api/auth/logout{how}", headers=bearer(pair))

        *answers, logged_out = await asyncio.gather(
            *(refreshed(live_client, pair) for _ in range(4)), out
        )

        assert logged_out.status_code == 200
        for answer in answers:
            if answer.status_code == 200:
                assert not await is_signed_in(live_client, answer.json())
                answer = await refreshed(live_client, answer.json())
            assert_problem(answer, "invalid-refresh-token")


async def test_log_outs_at_once_from_everywhere_do_not_stop_each_other(live_client, user):
    pairs = [await log_in(live_client, user) for _ in range(6)]

    answers = await asyncio.gather(
        *(
            live_client.post("/api/auth/logout?everywhere=true", headers=bearer(pair))
            for pair in pairs
        )
    )

    # Whoever came too late is logged out already.
    assert {answer.status_code for answer in answers} <= {200, 401}
    for pair in pairs:
        assert not await is_signed_in(live_client, pair)


async def test_no_session_begins_by_a_password_that_is_being_changed(live_app, live_client, user):
    account = {"email": user["email"], "password": PASSWORD}
    waiting = select(func.count()).select_from(text("pg_locks WHERE NOT granted"))
    sessions = live_app.state.sessions

    async def waits():
        async with sessions() as db, db.begin():
            return await db.scalar(waiting)

    async with sessions() as db, db.begin():
        changed = update(User).where(User.id == user["id"])
        await db.execute(changed.values(password_hash="another"))
        await end_all(db, user["id"])
        log_in = asyncio.create_task(live_client.post("/api/auth/login", json=account))
        await eventually(waits)

    assert_problem(await log_in, "invalid-credentials")
    async with live_app.state.sessions() as db, db.begin():
        mine = select(Session.ended_dt).where(Session.user_id == user["id"])
        assert None not in (await db.scalars(mine)).all()


async def test_who_logs_out_at_one_process_is_out_at_the_others(
    never_asks, live_app, live_client, user
):
    async with another_service(live_app) as (other, elsewhere):
        assert await is_signed_in(elsewhere, user)
        assert (await live_client.post("/api/auth/logout", headers=bearer(user))).status_code == 200

        # By what it hears alone: it does not ask again.
        async def refused():
            return (await elsewhere.get("/api/feed/list", headers=bearer(user))).status_code == 401

        await eventually(refused)
        assert other.state.revocations.current
        assert not await is_signed_in(elsewhere, user)


async def test_sessions_that_are_ended_in_anothers_transaction_are_out_everywhere(
    never_asks, live_app, live_client, user
):
    sessions = [user] + [await log_in(live_client, user) for _ in range(3)]
    async with another_service(live_app) as (_, elsewhere):
        async with live_app.state.sessions() as db:
            with suppress(ZeroDivisionError):
                async with db.begin():
                    await end_all(db, user["id"])
                    raise ZeroDivisionError  # What is rolled back ends nothing.
            assert await is_signed_in(elsewhere, user)
            async with db.begin():
                await end_all(db, user["id"], but=session_id(live_app, user))

        async def refused():
            asked = [elsewhere.get("/api/feed/list", headers=bearer(pair)) for pair in sessions]
            statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
            return statuses == [200, 401, 401, 401]

        await eventually(refused)


async def test_a_process_knows_what_ended_before_its_start(live_app, live_client, user):
    await live_client.post("/api/auth/logout", headers=bearer(user))

    async with another_service(live_app) as (other, elsewhere):
        assert other.state.revocations.current
        assert not await is_signed_in(elsewhere, user)


async def test_where_notifications_do_not_arrive_ends_are_asked_for(
    live_app, live_client, user, monkeypatch
):
    monkeypatch.setattr(service, "DELIVERED", 0.1)
    ended = session_id(live_app, user)
    async with wire_to(live_app.state.settings.database_url) as (wire, url):
        wire.deaf = True
        with structlog.testing.capture_logs() as logged:
            async with following(live_app, url) as known:

                async def said():
                    return any("notifications do not arrive" in line["event"] for line in logged)

                await eventually(said)
                await known.require_live(ended)
                await live_client.post("/api/auth/logout", headers=bearer(user))

                async def knows():
                    return known.current and ended in known._ended

                await eventually(knows)
                with pytest.raises(NotAuthenticated):
                    await known.require_live(ended)
    assert sum("notifications do not arrive" in line["event"] for line in logged) == 1


@pytest.mark.parametrize("how", ["cut", "hold"])
async def test_a_process_that_hears_nothing_asks_until_it_does_again(
    live_app, live_client, user, monkeypatch, how
):
    # A connection that is cut is noticed before the next question; one that hangs, by the answer.
    monkeypatch.setattr(service, "ASK_EVERY", 5 if how == "cut" else 1)
    monkeypatch.setattr(service, "ANSWER_COUNTS", 3600 if how == "cut" else 1.5)
    ended, goes_on = session_id(live_app, user), await log_in(live_client, user)
    async with (
        wire_to(live_app.state.settings.database_url) as (wire, url),
        following(live_app, url) as known,
    ):

        async def current():
            return known.current

        async def unsure():
            return not known.current

        await eventually(current)
        wire.open.clear()  # No new connection gets through, either.
        if how == "cut":
            wire.cut()
        await eventually(unsure, 3)
        await live_client.post("/api/auth/logout", headers=bearer(user))
        async with live_app.state.sessions() as db, db.begin():
            # As if this had lasted long, which a clock that stood still would not show.
            earlier = Session.ended_dt - timedelta(minutes=10)
            await db.execute(update(Session).where(Session.id == ended).values(ended_dt=earlier))

        assert ended not in known._ended
        with pytest.raises(NotAuthenticated):
            await known.require_live(ended)
        await known.require_live(session_id(live_app, goes_on))

        wire.open.set()
        await eventually(current, 20)
        assert ended in known._ended


async def test_what_no_token_can_outlive_is_not_remembered(live_app, monkeypatch):
    monkeypatch.setattr(service, "COMMITTED", 0)
    known = Revocations(live_app.state.sessions, 0.05)
    known.note(range(1, 1000))
    await asyncio.sleep(0.05)
    async with open_connection(live_app.state.settings) as connection:
        await known._ask(connection)

    assert not known._ended


async def test_two_services_of_their_own_end_sessions_for_each_other(
    settings, make_database, tmp_path
):
    boards, url = [], await make_database()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        given = {
            "DATABASE_URL": url,
            "SECRET_KEY": SECRET,
            "S3_BUCKET": settings.s3_bucket,
            "S3_ENDPOINT_URL": settings.s3_endpoint_url,
            "S3_ACCESS_KEY": settings.s3_access_key,
            "S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        }
        boards.append(Board(tmp_path / name, **given))
    try:
        for board in boards:
            await asyncio.to_thread(board.start)
        async with (
            httpx.AsyncClient(base_url=boards[0].url) as one,
            httpx.AsyncClient(base_url=boards[1].url) as two,
        ):
            user = await user_maker(one)(email="both@example.com", nickname="Both")
            assert await is_signed_in(two, user)
            await one.post("/api/auth/logout", headers=bearer(user))

            async def refused():
                return (await two.get("/api/feed/list", headers=bearer(user))).status_code == 401

            await eventually(refused)
            assert not await is_signed_in(two, user)
    finally:
        for board in boards:
            if getattr(board, "process", None) and board.process.poll() is None:
                board.stop()
