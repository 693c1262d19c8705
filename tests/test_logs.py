"""One line a request: what it tells, and what it never does."""

import json

import pytest
import structlog

from app import logs
from tests.conftest import PASSWORD, client_of, make_settings


@pytest.fixture
def lines():
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        yield lines


async def test_a_request_is_one_line_with_what_an_operator_asks_for(client, lines):
    answer = await client.get("/api/feed/read/4711")

    assert len(lines) == 1
    line = lines[0]
    assert line.pop("ms") > 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "request_id": answer.headers["x-request-id"],
        "method": "GET",
        "route": "/api/feed/read/{feed_id}",
        "status": 404,
        "bytes": len(answer.content),
    }


async def test_the_access_log_can_be_switched_off(make_app, lines):
    async with client_of(await make_app(access_log=False)) as client:
        await client.get("/healthz")

    assert lines == []


async def test_passwords_and_tokens_are_in_no_line(client, make_user, lines):
    user = await make_user()

    await client.post("/api/auth/login", json={"email": user["email"], "password": "wrong-one"})

    assert lines
    assert not any(
        secret in json.dumps(lines) for secret in (PASSWORD, "wrong-one", user["access_token"])
    )


@pytest.fixture
def configured():
    before = structlog.get_config()
    yield logs.configure
    structlog.configure(**before)


def test_lines_are_json_where_nobody_looks_and_libraries_lines_too(configured, capfd):
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configured(make_settings(log_format="json"))
        structlog.get_logger().info("ours", answer=42)
        structlog.get_logger().info("odd", half="\ud800", large=2**70, thing=object)
        logging.getLogger("a.library").warning("theirs")
    finally:
        root.handlers[:], root.level = handlers, level

    ours, odd, theirs = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (ours["event"], ours["answer"], ours["level"]) == ("ours", 42, "info")
    assert (odd["half"], odd["large"]) == ("\ud800", 2**70)
    assert "object" in odd["thing"]
    assert (theirs["event"], theirs["level"]) == ("theirs", "warning")
    assert ours["timestamp"].endswith("Z")
