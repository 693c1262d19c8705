"""Who the client is: what trusted proxies say, and nothing that anybody else does."""

import httpx
import pytest
from fastapi import FastAPI, Request

from app.proxies import TrustedProxies
from config.addresses import parse_networks
from routers.dependencies import ClientAddress
from tests.conftest import make_settings
from tests.live import served

PROXY, SECOND, CLIENT = "10.0.0.1", "10.1.2.3", "192.0.2.7"
TRUSTED = "10.0.0.0/8, 2001:db8:ffff::1"


async def seen(peer: str, *headers: tuple[str, str], trusted: str = TRUSTED) -> tuple[str, str]:
    """The client's address and the scheme as a route sees them."""
    app = FastAPI()
    app.add_middleware(TrustedProxies, proxies=parse_networks(trusted))

    @app.get("/")
    async def who(request: Request, address: ClientAddress) -> list[str]:
        assert request.client is not None
        assert request.client.host == address
        return [address, request.url.scheme]

    transport = httpx.ASGITransport(app, client=(peer, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://board") as client:
        address, scheme = (await client.get("/", headers=list(headers))).json()
    return address, scheme


def xff(*values: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", value) for value in values]


def forwarded(*values: str) -> list[tuple[str, str]]:
    return [("Forwarded", value) for value in values]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("a client that forges", xff("203.0.113.9"), "198.51.100.1"),
        ("a client that forges it otherwise", forwarded("for=203.0.113.9"), "198.51.100.1"),
        (PROXY, [], PROXY),
        (PROXY, xff(CLIENT), CLIENT),
        (PROXY, xff(f"{CLIENT}, {SECOND}"), CLIENT),
        (PROXY, xff(CLIENT, SECOND), CLIENT),
        (PROXY, xff(f"203.0.113.9, {CLIENT}"), CLIENT),
        (PROXY, xff(f"203.0.113.9, {SECOND}, {CLIENT}, {SECOND}"), CLIENT),
        (PROXY, xff(f"<script>, ,,{CLIENT}"), CLIENT),
        (PROXY, xff(f"{CLIENT}, unknown"), PROXY),
        (PROXY, xff(f"{CLIENT}, nonsense, {SECOND}"), SECOND),
        (PROXY, xff("999.1.1.1"), PROXY),
        (PROXY, xff(""), PROXY),
        (PROXY, xff("[" * 1000), PROXY),
        (PROXY, xff(f"{CLIENT}:4711"), CLIENT),
        (PROXY, xff("[2001:db8::7]:4711"), "2001:db8::7"),
        (PROXY, xff("2001:DB8:0::7"), "2001:db8::7"),
        (PROXY, xff(f"::ffff:{CLIENT}"), CLIENT),
        (f"::ffff:{PROXY}", xff(CLIENT), CLIENT),
        ("2001:db8:ffff::1", xff(CLIENT), CLIENT),
        ("2001:db8:ffff::2", xff(CLIENT), "2001:db8:ffff::2"),
        (PROXY, xff(f"{SECOND}, {PROXY}"), SECOND),
        (PROXY, forwarded(f"for={CLIENT};proto=https"), CLIENT),
        (PROXY, forwarded(f'For="[2001:db8::7]:4711", for={SECOND}'), "2001:db8::7"),
        (PROXY, forwarded(f"for={CLIENT}", "for=_hidden"), PROXY),
        (PROXY, forwarded('for="203.0.113.9', f"for={CLIENT}"), CLIENT),
        (PROXY, xff(CLIENT) + forwarded(f"for={CLIENT}"), CLIENT),
        # The proxy wrote the one and handed on the other, which the client made up.
        (PROXY, xff(CLIENT) + forwarded("for=203.0.113.9"), PROXY),
        (PROXY, xff("203.0.113.9") + forwarded(f"for={CLIENT}"), PROXY),
    ],
)
async def test_the_client_is_whom_the_trusted_proxies_heard(peer, headers, client):
    peer = "198.51.100.1" if peer.startswith("a client") else peer

    assert (await seen(peer, *headers))[0] == client


@pytest.mark.parametrize(
    ("peer", "headers", "scheme"),
    [
        (CLIENT, [("X-Forwarded-Proto", "https")], "http"),
        (PROXY, [("X-Forwarded-Proto", "https")], "https"),
        (PROXY, [("X-Forwarded-Proto", "http, https")], "https"),
        (PROXY, [("X-Forwarded-Proto", "javascript")], "http"),
        (PROXY, forwarded(f"for={CLIENT};proto=https"), "https"),
    ],
)
async def test_the_scheme_is_what_the_trusted_proxy_was_asked_by(peer, headers, scheme):
    assert (await seen(peer, *headers))[1] == scheme


@pytest.mark.parametrize(
    ("trusted", "counted"), [("", ["1", "0", "0"]), ("127.0.0.1", ["1", "1", "0"])]
)
async def test_over_a_socket_loopback_is_trusted_only_when_it_is_named(settings, trusted, counted):
    limited = settings.replace(trusted_proxies=trusted, rate_limits="read=2/day")
    async with served(limited) as url, httpx.AsyncClient(base_url=url) as client:
        answers = [
            await client.get("/api/feed/list", headers={"X-Forwarded-For": address})
            for address in ("192.0.2.1", "192.0.2.2", "192.0.2.2, 192.0.2.2")
        ]

    left = [answer.headers["ratelimit"].split(";")[1].removeprefix("r=") for answer in answers]
    assert left == counted


def test_nobody_is_trusted_unless_it_is_said():
    assert make_settings().proxies == ()
