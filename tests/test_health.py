"""Health: the process lives; the parts that it needs answer."""

import pytest

from tests.conftest import client_of


async def test_a_living_process_says_so_and_asks_nobody(make_app):
    app = await make_app(s3_endpoint_url="http://127.0.0.1:1")
    async with client_of(app) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_a_service_with_its_parts_is_ready(client, settings):
    answer = await client.get("/readyz")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"s3_endpoint_url": "http://127.0.0.1:1"}, "bucket"),
        ({"s3_bucket": "feedboard-not-there"}, "bucket"),
        ({"database_url": "postgresql+asyncpg://postgres@127.0.0.1:1/none"}, "database"),
    ],
)
async def test_a_part_that_does_not_answer_is_named(make_app, sessions, change, part):
    from config.db import open_engine, session_factory

    app = await make_app(**change)
    async with open_engine(app.state.settings) as engine, client_of(app) as client:
        if "database_url" in change:
            app.state.reading = session_factory(engine)
        answer = await client.get("/readyz")

    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["type"] == "/problems/not-ready"
    assert answer.json()["detail"].startswith(f"{part}: ")
