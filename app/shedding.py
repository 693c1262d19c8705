"""Load shedding: what could only wait is refused at once, so that what is at work stays quick.

Left to wait, all of them would: until each takes longer than its client does, and the service works
at what nobody waits for any more.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import headers
from app.problems import answer
from app.request_log import Ended, Sent, identify
from config.rates import RouteClass
from config.settings import Settings
from routers.rates import class_of
from services.errors import Overloaded

Kind = RouteClass | Literal["image", "lane"]
KindOf = Callable[[str, str], Kind | None]  # by method and path
_IMAGES, _LIST, _READ = "/images/", "/api/feed/list", "/api/feed/read/"
# Requests of a kind that are at work at a time: to begin with, of those that threads do (passwords,
# pictures) for each thread, and at most.
SOME, A_THREAD, MANY = 200, 32, 500
# What remains of a bound after an answer that came late; after one in time it is one more, but not
# within seconds of one that was late.
LESS = 0.9
CALM = 1.0
# Seconds for which a connection is not read after a refusal, and up to twice as many, so that not
# all come back together: those who ask again at once would leave no time for the work.
PAUSE = 1.0
_STATUS, _ID = int(Overloaded.status), b"the request's id"


class Bound:
    """How many requests of one kind may be at work: fewer while they take longer than `seconds`.

    Down by a tenth, and up by one where it is used (AIMD), as TCP finds out what a line carries: a
    number that fits all machines, and all that else goes on there, does not exist. It does not
    fall below half of where it begins, which a crowd may be that comes all at once, and is there
    again when none was late for a second.
    """

    def __init__(
        self,
        limit: int,
        seconds: float,
        *,
        least: int | None = None,
        beside: Sequence["Bound"] = (),
    ) -> None:
        self.at_work = 0
        self.limit = self._begin = float(limit)
        self._least, self._most = least or limit / 2, max(limit, MANY)
        self._seconds, self._beside, self._calm_from = seconds, beside, 0.0

    @property
    def full(self) -> bool:
        return self.at_work >= self.limit

    def answered(self, took: float) -> None:
        if took > self._seconds:
            for bound in (self, *self._beside):
                bound.press()
        elif time.monotonic() >= self._calm_from:
            # The crowd has gone, or whatever it was.
            self.limit = max(self._begin, self.limit)
            if 2 * self.at_work >= self.limit:
                self.limit = min(self._most, self.limit + 1)

    def press(self) -> None:
        self.limit = max(self._least, self.limit * LESS)
        self._calm_from = time.monotonic() + CALM


def shed(
    work: ASGIApp,
    lane: Callable[[ASGIApp], ASGIApp] | None,
    settings: Settings,
    ended: Ended | None,
) -> ASGIApp:
    """Put bounds around work, each class by itself, and around the lane in front of it, if any.

    The lane's requests are cheap, and so many of them are served at once that each turn of the
    event loop gets long: work, which takes dozens of turns, would starve. So work that is late
    presses the lane's bounds, too.
    """
    quick: dict[Kind, Bound] = {"lane": Bound(MANY, 1, least=64), "image": Bound(SOME, 1, least=16)}
    beside = list(quick.values())
    bounds: dict[Kind, Bound] = {
        "log-in": Bound(A_THREAD * settings.password_workers, 2),
        "sign-up": Bound(A_THREAD * settings.password_workers, 2),
        "upload": Bound(A_THREAD * settings.image_workers, 5),
        "write": Bound(SOME, 1, beside=beside),
        "read": Bound(SOME, 1, beside=beside),
    }
    bounded = Shedding(work, settings, ended, _work, bounds)
    return Shedding(lane(bounded) if lane else bounded, settings, ended, _quick, quick)


class Shedding:
    """Pure ASGI: refuses a request where as many of its kind are at work as may be.

    At work is what has come and is not answered yet, but not while its body is waited for: who
    sends slowly keeps nobody out. It stands before all layers, and answers as they would: a
    refusal has to cost a small part of what it spares.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        ended: Ended | None,
        kind: KindOf,
        bounds: Mapping[Kind, Bound],
    ) -> None:
        self.app = app
        self._kind, self._bounds = kind, bounds
        refusal = answer({"state": {"request_id": _ID.decode()}}, Overloaded())
        del refusal.headers["content-length"]
        self._body = bytes(refusal.body)
        self._head = refusal.raw_headers + headers.raw(headers.of_data(settings))
        self._cors = CORSMiddleware(app, **headers.of_cors(settings))
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = None
        # Browsers ask what they may (OPTIONS), which costs nothing, before they ask for anything.
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            kind = self._kind(scope["method"], path)
        if kind is None:
            await self.app(scope, receive, send)
        elif (bound := self._bounds[kind]).full:
            await self._refuse(scope, send)
        else:
            await _Work(bound, receive, send).do(self.app, scope)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        started, given = time.perf_counter(), dict(scope["headers"])
        request_id = identify(scope, given.get(b"x-request-id", b"").decode("latin-1"))
        sent = Sent(send)
        out: Send = sent if self._ended else send
        if b"origin" in given:
            out = partial(self._cors.send, send=out, request_headers=Headers(scope=scope))
        body = self._body.replace(_ID, request_id.encode())
        head = [*self._head, (b"content-length", b"%d" % len(body))]
        head.append((b"x-request-id", request_id.encode()))
        await out({"type": "http.response.start", "status": _STATUS, "headers": head})
        await out({"type": "http.response.body", "body": body, "more_body": True})
        if self._ended:
            self._ended(scope, sent, None, started, request_id)
        # The client has all of it (by its length), but is not heard again before this ends.
        await asyncio.sleep(random.uniform(PAUSE, 2 * PAUSE))  # noqa: S311
        await send({"type": "http.response.body"})


class _Work:
    """A request at work: its `receive` and `send`, and the time that it takes of ours."""

    def __init__(self, bound: Bound, receive: Receive, send: Send) -> None:
        self._bound, self._receive, self._send = bound, receive, send
        self._whole = self._answered = False
        self._since, self._took = 0.0, 0.0

    async def do(self, app: ASGIApp, scope: Scope) -> None:
        self._begin()
        try:
            await app(scope, self._heard, self._told)
        finally:
            self._end()

    def _begin(self) -> None:
        self._bound.at_work += 1
        self._since = time.monotonic()

    def _pause(self) -> None:
        self._bound.at_work -= 1
        self._took += time.monotonic() - self._since

    def _end(self) -> None:
        if not self._answered:
            self._answered = True
            self._pause()
            self._bound.answered(self._took)

    async def _heard(self) -> Message:
        if self._whole or self._answered:
            return await self._receive()  # to hear that the client has gone
        self._pause()
        try:
            message = await self._receive()
        finally:
            self._begin()
        self._whole = not message.get("more_body", False)
        return message

    async def _told(self, message: Message) -> None:
        self._end()
        await self._send(message)


def _work(method: str, path: str) -> Kind | None:
    return None if path.startswith(_IMAGES) else class_of(method, path)


def _quick(method: str, path: str) -> Kind | None:
    if path.startswith(_IMAGES):
        return "image"
    if method == "GET" and (path == _LIST or path.startswith(_READ)):
        return "lane"
    return None
