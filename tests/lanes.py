"""The service twice on one database, with the fast lane and without, to be asked the same.

Both are behind real sockets, and what they answer is compared byte by byte, and what they log.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import NamedTuple

import jwt
import pytest
import uvicorn
from sqlalchemy import insert, text, update

from app import rate_limits
from app.capabilities import lend, open_capabilities, prepare
from app.fast_reads import FastReads
from app.main import create_app
from app.protocol import OPTIONS
from models.user import User
from services.counters import Counters
from services.revocations import Revocations
from services.tokens import ALGORITHM
from tests.conftest import SECRET

READ, LIST = "/api/feed/read/", "/api/feed/list"
ADA, BOB, GONE, LEAVING, STRANGER = 101, 102, 103, 104, 105
LIVE, ENDED = 501, 502
NOW = datetime(2026, 11, 22, 12, 30, 15, 123456, tzinfo=UTC)
# What changes how a read is answered; in each, limits are counted. `scarce` refuses some.
SERVICES = {
    "usual": {"rate_limits": "read=100000/day", "access_log": False},
    "scarce": {"rate_limits": "read=4/day"},
    "public": {
        "rate_limits": "read=100000/day",
        "public_url": "https://board.example.com/a%20folder",
        "s3_public_url": 'https://cdn.example.com/"quoted"%20\\',
        "allowed_hosts": "localhost,*.example.com",
        "cors_origins": "https://page.example.com",
        "show_emails": False,
        "trusted_proxies": "127.0.0.1",
    },
}


def tokens(issue):
    """Values of Authorization, by what is the matter with them."""
    good = issue(ADA, LIVE)
    head, claims, signature = good.split(".")
    past = datetime.now(UTC) - timedelta(hours=2)
    old = jwt.decode(good, options={"verify_signature": False}) | {"iat": past, "exp": past}
    kid = jwt.get_unverified_header(good)
    return {
        "good": f"Bearer {good}",
        "bob": f"Bearer {issue(BOB, LIVE)}",
        "leaving": f"Bearer {issue(LEAVING, LIVE)}",
        "stranger": f"Bearer {issue(STRANGER, LIVE)}",
        "gone": f"Bearer {issue(GONE, LIVE)}",
        "ended": f"Bearer {issue(ADA, ENDED)}",
        "expired": "Bearer " + jwt.encode(old, SECRET, algorithm=ALGORITHM, headers=kid),
        "other key": "Bearer " + jwt.encode(old, "x" * 40, algorithm=ALGORITHM, headers=kid),
        "forged": f"Bearer {head}.{claims}.{signature[::-1]}",
        "unsigned": f"Bearer {head}.{claims}.",
        "lower case": f"bearer {good}",
        "upper case": f"BEARER {good}",
        "two blanks": f"Bearer  {good}",
        "tab": f"Bearer\t{good}",
        "blank behind": f"Bearer {good}    ",
        "words behind": f"Bearer {good} x",
        "padded": f"Bearer {good}====",
        "junk behind": f"Bearer {good}!!!!",
        "latin": f"Bearer {good}\xe9",
        "no scheme": good,
        "bare": "Bearer",
        "blank": "Bearer ",
        "empty": "",
        "Basic": "Basic YTpi",
        "Bearer Basic": "Bearer Basic",
    }


class Wish(NamedTuple):
    """One request; a header's value may be a token's name, and hold the answer's own tag."""

    target: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    hosts: tuple[str, ...] = ("localhost",)
    body: bytes = b""


@dataclass
class Answer:
    status: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name):
        return [value for known, value in self.headers if known == name]

    @property
    def request_id(self):
        """There is none where the server itself refuses what is no HTTP."""
        found = self.all("x-request-id")
        assert len(found) == 1 or (not found and self.status.startswith("HTTP/1.1 400 "))
        return found[0] if found else "none"

    def comparable(self):
        """All of it, but for what differs from one moment to the next."""
        told = sorted(pair for pair in self.headers if pair[0] not in {"date", "x-request-id"})
        # A problem repeats the id.
        return self.status, *told, self.body.replace(self.request_id.encode(), b"<id>")


async def ask(port, wish):
    """Send a request as it is, and read the answer."""
    head = f"{wish.method} {wish.target} HTTP/1.1\r\n"
    head += "".join(f"host: {host}\r\n" for host in wish.hosts)
    head += "".join(f"{name}: {value}\r\n" for name, value in wish.headers)
    body = wish.body
    if body == b"chunked":
        head, body = f"{head}transfer-encoding: chunked\r\n", b"0\r\n\r\n"
    elif body or wish.method == "POST":
        head += f"content-length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}\r\n".encode("latin-1") + body)
        async with asyncio.timeout(30):
            told = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            answer = Answer(told[0], [tuple(line.split(": ", 1)) for line in told[1:-2]], b"")
            if wish.method != "HEAD" and (length := answer.all("content-length")):
                answer.body = await reader.readexactly(int(length[0]))
        return answer
    finally:
        writer.close()


class Informed(Revocations):
    """It is told of sessions that end; nothing follows the database, and nothing is in doubt."""

    current = True


class Service:
    """The same service twice, with the lane and without, and what the lane answered."""

    def __init__(self, able, ports, apps, name):
        self.able, self.ports, self.apps, self.name = able, ports, apps, name
        self.tokens = tokens(able.tokens.issue)

    def begin(self, *, doubt):
        """As if nobody had asked for anything yet."""
        for app in self.apps:
            app.state.counters = Counters()
            app.state.revocations.current = not doubt

    async def both(self, wish):
        fast, plain = await asyncio.gather(*(ask(port, wish) for port in self.ports))
        both = zip(fast.comparable(), plain.comparable(), strict=False)
        different = [pair for pair in both if pair[0] != pair[1]]
        assert not different, (wish, str(different)[:2_000])
        ids = [value for name, value in wish.headers if name == "x-request-id"]
        if len(ids) == 1 and re.fullmatch(r"[\w.-]{1,128}", ids[0], re.ASCII):
            assert fast.request_id == plain.request_id == ids[0]
        return fast, plain

    def resolved(self, wish, tag):
        def value(name, given):
            if name == "authorization":
                return self.tokens.get(given, given)
            return given.replace("{tag}", tag)

        return wish._replace(headers=tuple((name, value(name, it)) for name, it in wish.headers))

    async def compare(self, wish):
        """Ask both, before with no condition if there is one; gives the answers of both."""
        tag = "none"
        if any("{tag}" in value for _, value in wish.headers):
            bare = tuple(pair for pair in wish.headers if pair[0] != "if-none-match")
            fast, _ = await self.both(self.resolved(wish._replace(headers=bare), tag))
            tag = next(iter(fast.all("etag")), '"none"').strip('"')
        return await self.both(self.resolved(wish, tag))


@asynccontextmanager
async def listening(app) -> AsyncIterator[int]:
    config = uvicorn.Config(app, port=0, **OPTIONS | {"lifespan": "off"})
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@pytest.fixture(scope="module")
async def database(make_database, settings):
    """One of these tests' own, with its users, and nothing that tidies it meanwhile."""
    own = settings.replace(database_url=await make_database())
    await prepare(own)
    async with open_capabilities(own) as able, able.sessions() as db, db.begin():
        people = [(ADA, "Ada"), (BOB, "Bob"), (GONE, "Gone"), (LEAVING, "Leaving")]
        await db.execute(insert(User), [person(*them) for them in people])
        await db.execute(update(User).where(User.id == LEAVING).values(leaving_dt=NOW))
        await db.execute(text(f"DELETE FROM users WHERE id = {GONE}"))
    return own


def person(id_, name):
    own = {"id": id_, "password_hash": "x", "nickname": name, "nickname_key": name.lower()}
    return own | {"email": f"{name}@example.com", "email_key": f"{name}@example.com".lower()}


@pytest.fixture(scope="module", params=list(SERVICES))
async def service(request, database):
    changed = database.replace(**SERVICES[request.param])
    async with AsyncExitStack() as stack:
        able = await stack.enter_async_context(open_capabilities(changed))
        apps, ports = [], []
        for fast in (True, False):
            app = create_app(changed.replace(fast_reads=fast))
            known = Informed(able.sessions, able.tokens.seconds)
            known.note([ENDED])
            lend(app, replace(able, revocations=known, counters=Counters()))
            apps.append(app)
            ports.append(await stack.enter_async_context(listening(app)))
        yield Service(able, ports, apps, request.param)


@pytest.fixture
def answered(monkeypatch):
    """The targets that the lane has answered by itself."""
    seen, real = [], FastReads._answer

    async def watched(self, asked, scope, receive, send):
        done = await real(self, asked, scope, receive, send)
        if done:
            seen.append(scope["raw_path"])
        return done

    monkeypatch.setattr(FastReads, "_answer", watched)
    return seen


@pytest.fixture(autouse=True)
def one_moment(monkeypatch):
    """In which all limits are told alike."""
    now = SimpleNamespace(time=lambda: NOW.timestamp())
    monkeypatch.setattr(rate_limits, "time", now)


async def logged(lines, *answers):
    """The line of each answer, without the time that it took; a line may come after its answer."""
    found = []
    async with asyncio.timeout(10):
        for answer in answers:
            while not (own := [it for it in lines if it.get("request_id") == answer.request_id]):
                await asyncio.sleep(0.001)
            found.append(own)
    return [
        [{k: v for k, v in line.items() if k not in {"ms", "request_id"}} for line in own]
        for own in found
    ]
