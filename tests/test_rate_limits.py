"""How often one may ask: whom it counts, what the headers tell, and what a refusal is."""

import re
import tracemalloc

import httpx
import pytest

from config.rates import DEFAULTS, parse_rates
from routers.rates import CLASSES, class_of
from services.counters import Counters
from tests import pictures
from tests.conftest import bearer, client_of, files, make_settings, user_maker
from tests.test_problems import assert_problem

LIST = "/api/feed/list"
# By the day, so that no test stands at the edge of two windows but at midnight.
FEW = "read=3/day,write=2/day,upload=2/day,sign-up=5/day,log-in=5/day"


@pytest.fixture
async def few(make_app):
    """The application with limits that are soon reached."""
    app = await make_app(rate_limits=FEW)

    @app.get("/fault")
    async def fault() -> None:
        raise RuntimeError("a fault of ours")

    return app


@pytest.fixture
async def client(few):
    async with client_of(few) as client:
        yield client


def from_address(app, address: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 1234))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


async def test_every_answer_tells_what_is_left_and_the_one_too_many_is_refused(client):
    allowed = [await client.get(LIST) for _ in range(3)]
    refused = await client.get(LIST, headers={"Origin": "https://elsewhere.example"})

    assert [answer.status_code for answer in allowed] == [200, 200, 200]
    told = [answer.headers["ratelimit"] for answer in [*allowed, refused]]
    assert [re.fullmatch(r'"read";r=(\d+);t=\d+', each)[1] for each in told] == list("2100")
    assert {answer.headers["ratelimit-policy"] for answer in allowed} == {'"read";q=3;w=86400'}
    assert "3 read requests" in assert_problem(refused, "too-many-requests")["detail"]
    assert refused.headers["retry-after"] == told[-1].rpartition("=")[2]
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(
        refused.headers["access-control-expose-headers"].split(", ")
    )


async def test_a_new_window_begins_with_nothing(client, monkeypatch):
    now = 86_400 * 1000 - 10.0
    monkeypatch.setattr("time.time", lambda: now)
    first = [(await client.get(LIST)).status_code for _ in range(4)]
    refused = await client.get(LIST)
    now += 11

    assert [*first, (await client.get(LIST)).status_code] == [200, 200, 200, 429, 200]
    assert refused.headers["retry-after"] == "10"


async def test_addresses_users_and_classes_are_counted_apart(few, client):
    ada, bob = [await user_maker(client)() for _ in range(2)]
    for who in (None, ada, bob):
        headers = bearer(who) if who else {}
        assert [(await client.get(LIST, headers=headers)).status_code for _ in range(4)] == [
            *(200, 200, 200, 429)
        ]
    async with from_address(few, "192.0.2.7") as elsewhere:
        assert (await elsewhere.get(LIST, headers=bearer(ada))).status_code == 429
        assert (await elsewhere.get(LIST)).status_code == 200
    assert (await client.put("/api/follow/1", headers=bearer(ada))).status_code != 429


async def test_a_made_up_token_makes_nobody_somebody_else(client):
    answers = [await client.get(LIST, headers={"Authorization": f"Bearer {n}"}) for n in range(4)]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]


async def test_log_ins_are_of_the_address_whatever_token_comes_with_them(client):
    someone = {"email": "nobody@example.com", "password": "wrong"}
    users = [await user_maker(client)() for _ in range(3)]  # Three log-ins.

    answers = [
        await client.post("/api/auth/login", json=someone, headers=bearer(user)) for user in users
    ]

    assert [answer.status_code for answer in answers] == [401, 401, 429]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
async def test_an_ipv6_network_of_64_bits_is_one_client(few, one, other, same):
    async with from_address(few, one) as client:
        for _ in range(3):
            await client.get(LIST)
    async with from_address(few, other) as client:
        assert (await client.get(LIST)).status_code == (429 if same else 200)


async def test_nothing_of_a_refused_request_is_read_or_done(client):
    author = await user_maker(client)()

    async def body():
        raise AssertionError("the body was read")
        yield b""

    for _ in range(2):
        sent = {"data": {"title": "T", "content": "C"}, "files": files("images", pictures.png())}
        posted = await client.post("/api/feed/create", **sent, headers=bearer(author))
        assert posted.status_code == 200
    refused = await client.post("/api/feed/create", content=body(), headers=bearer(author))

    assert_problem(refused, "too-many-requests")
    assert len((await client.get(LIST)).json()) == 2


async def test_what_goes_wrong_is_counted_and_told_like_all_else(client):
    too_large = await client.post("/api/auth/login", json={"email": "x" * 70_000})
    chunks = iter([b"x" * 70_000])

    async def body():
        for chunk in chunks:
            yield chunk

    unannounced = await client.post("/api/auth/login", content=body())
    fault = await client.get("/fault")

    for answer in (too_large, unannounced):
        assert_problem(answer, "content-too-large")
    assert_problem(fault, "internal-error")
    left = [
        answer.headers["ratelimit"].split(";t")[0] for answer in (too_large, unannounced, fault)
    ]
    assert left == ['"log-in";r=4', '"log-in";r=3', '"read";r=2']


async def test_who_watches_over_the_service_is_never_refused(client):
    answers = [await client.get("/healthz") for _ in range(10)]

    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in answers[0].headers


async def test_limits_can_be_switched_off(make_app):
    async with client_of(await make_app(rate_limits="off")) as client:
        assert "ratelimit" not in (await client.get(LIST)).headers


def test_what_is_not_named_keeps_its_usual_limit():
    rates = parse_rates(" read = 100/second , write=30 per 5 minutes ")

    assert rates == DEFAULTS | {"read": (100, 1), "write": (30, 300)}
    assert make_settings(rate_limits="").rates == DEFAULTS
    assert make_settings(rate_limits="OFF").rates is None


def test_every_route_has_a_class_that_fits_what_it_does(app):
    paths = app.openapi()["paths"]
    routes = {
        (method.upper(), path): op for path, ops in paths.items() for method, op in ops.items()
    }

    assert set(CLASSES) <= set(routes), "a class of a route that is not there"
    for (method, path), operation in routes.items():
        kind, forms = class_of(method, path), operation.get("requestBody", {}).get("content", {})
        if method == "POST" and path.startswith("/api/auth/"):
            assert (method, path) in CLASSES, f"{path}: whoever has no token asks; say its class"
        if "multipart/form-data" in forms:
            assert kind == "upload", path
        assert kind is not None or path in {"/healthz", "/readyz"}
        assert ("429" in operation["responses"]) == (kind is not None), path


@pytest.mark.parametrize("path", ["/api/feed/update/7", "/api/image/7/complete"])
def test_a_route_with_an_id_is_found_by_its_template(path):
    method = "PATCH" if "update" in path else "POST"

    assert class_of(method, path) == "upload"
    assert class_of(method, path + "/more") == "write"


async def test_however_many_addresses_ask_the_memory_is_bounded():
    counters = Counters()
    tracemalloc.start()
    try:
        for number in range(300_000):
            await counters.add(f"read/address/{number}", 60)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert taken < 40 * 2**20  # Of all of them it would be twice that.
    assert await counters.get("read/address/299999") == 1
