"""What is measured: the requests of each work, who does it, and what is to be reached."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from bench.board import PASSWORD
from bench.contenders import FASTIFY, JSON, LOGGING, ROW, SERVICE, STORE, Contender
from bench.data import USERS, cursor
from bench.load import get, post
from bench.shown import Shown

# L is the better of the two ways to write JSON, Lrow the one by rows.
REFERENCES = {"L": (JSON, ROW), "Lrow": (ROW,), "Fastify": (FASTIFY,), "store": (STORE,)}
SIGNED_IN = 32
PAGE = 20
# How many distinct requests a work has, at most: wrk sends them in a circle.
DISTINCT = 20_000


@dataclass(frozen=True)
class Target:
    """A ratio to reach: to a reference by name, or to another work of the service."""

    against: str
    at_least: float


@dataclass(frozen=True)
class Work:
    name: str
    requests: Callable[["Asking"], Sequence[bytes]]
    by: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    writes: bool = False
    # What the store is asked instead, where it is a contender.
    of_store: Callable[["Asking"], Sequence[bytes]] | None = None

    def asked_of(self, contender: str, ask: "Asking") -> Sequence[bytes]:
        alone = self.of_store if contender == STORE else None
        return (alone or self.requests)(ask)


@dataclass(frozen=True)
class Asking:
    """What requests are made of: how many feeds there are, and who is signed in."""

    feeds: int
    tokens: Sequence[str]
    shown: Shown

    def read(self, *, signed_in: bool = False) -> list[bytes]:
        ids = random.Random(1)  # noqa: S311
        paths = (f"/api/feed/read/{ids.randint(1, self.feeds)}" for _ in range(DISTINCT))
        return self._get(paths, signed_in)

    def newest(self, *, signed_in: bool = False) -> list[bytes]:
        return self._get([f"/api/feed/list?limit={PAGE}"] * SIGNED_IN, signed_in)

    def page(self, depth: int, *, signed_in: bool = False) -> list[bytes]:
        """Pages that begin near this depth, each at another feed."""
        first = self.feeds - min(depth, self.feeds // 2) + 1
        ids = [first - back for back in range(min(1_000, self.feeds // 4))]
        random.Random(1).shuffle(ids)  # noqa: S311
        cursors = (cursor(self.feeds, feed_id) for feed_id in ids)
        paths = (f"/api/feed/list?limit={PAGE}&cursor={text}" for text in cursors)
        return self._get(paths, signed_in)

    def create(self) -> list[bytes]:
        words = "본문 내용 text, 골목을 걷고 비빔밥을 먹었다. "
        return [
            post(
                "/api/feed/create",
                urlencode({"title": f"피드 제목 {number}", "content": words * (1 + number % 4)}),
                self._signed(number),
            )
            for number in range(1_000)
        ]

    def _get(self, paths: Iterable[str], signed_in: bool) -> list[bytes]:
        return [
            get(path, self._signed(number) if signed_in else None)
            for number, path in enumerate(paths)
        ]

    def _signed(self, number: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[number % len(self.tokens)]}"}


_EVERYBODY = (SERVICE, LOGGING, ROW, FASTIFY)
_ALONE = (SERVICE,)
DEEP = 50_000
WORKS = (
    Work(
        "read",
        lambda ask: ask.read(),
        (SERVICE, LOGGING, ROW, JSON, FASTIFY),
        (Target("L", 0.8), Target("Fastify", 1.0)),
    ),
    Work(
        "newest",
        lambda ask: ask.newest(),
        _EVERYBODY,
        (Target("Lrow", 1.5), Target("Fastify", 1.5)),
    ),
    Work("page-1", lambda ask: ask.page(1), _EVERYBODY, (Target("Lrow", 0.85),)),
    Work(
        "page-deep",
        lambda ask: ask.page(DEEP),
        _EVERYBODY,
        (Target("Lrow", 0.85), Target("page-1", 1 / 1.1)),
    ),
    Work("read-signed", lambda ask: ask.read(signed_in=True), _ALONE, (Target("read", 0.5),)),
    Work("newest-signed", lambda ask: ask.newest(signed_in=True), _ALONE, (Target("newest", 0.5),)),
    Work(
        "page-deep-signed",
        lambda ask: ask.page(DEEP, signed_in=True),
        _ALONE,
        (Target("page-deep", 0.5),),
    ),
    Work(
        "create",
        lambda ask: ask.create(),
        (SERVICE, LOGGING, ROW, JSON, FASTIFY),
        (Target("L", 0.5),),
        writes=True,
    ),
    Work(
        "image",
        lambda ask: ask.shown.of_service,
        (SERVICE, STORE),
        (Target("store", 0.7),),
        of_store=lambda ask: ask.shown.of_store,
    ),
    Work("image-304", lambda ask: ask.shown.known, _ALONE),
)


def log_in(service: Contender) -> list[str]:
    """Access tokens of as many users as there are connections."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        tokens = []
        for number in range(1, SIGNED_IN + 1):
            email = f"user{number * 31 % USERS + 1}@example.com"
            account = {"email": email, "password": PASSWORD}
            answer = client.post("/api/auth/login", json=account).raise_for_status()
            tokens.append(str(answer.json()["access_token"]))
    return tokens
