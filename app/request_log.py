"""One line a request, and the id that ties the line, the response and a problem together."""

import re
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from config.settings import Settings

log = structlog.get_logger()
_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """Pure ASGI: takes or makes `X-Request-ID`, returns it, and logs what came of the request."""

    def __init__(self, app: ASGIApp, *, ended: "Ended | None") -> None:
        self.app = app
        self.ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = identify(scope, Headers(scope=scope).get("x-request-id", ""))
        sent = Sent(send)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await sent(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, marked)
            finally:
                if self.ended is not None:
                    route = getattr(scope.get("route"), "path_format", None)
                    self.ended(scope, sent, route, started, request_id)


class Sent:
    """`send`, and what went by it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.bytes += len(message.get("body", b""))
        await self._send(message)


def identify(scope: Scope, given: str) -> str:
    """A request's id, from now on in its state: the client's, or one of ours."""
    # It goes into logs and headers, so only a plain one is taken over.
    request_id = given if _SANE.fullmatch(given) else str(uuid7())
    scope.setdefault("state", {})["request_id"] = request_id
    return request_id


# What is done with a request that has ended: what was sent, by which route (None: by none), when it
# started by time.perf_counter(), and its id.
Ended = Callable[[Scope, Sent, str | None, float, str], None]


def observer(settings: Settings) -> Ended | None:
    """Writes down and counts requests, as the settings want it; None if they want neither."""
    if settings.metrics_port is None:
        return write_down if settings.access_log else None
    from app.metrics import count

    if not settings.access_log:
        return count

    def both(scope: Scope, sent: Sent, route: str | None, started: float, request_id: str) -> None:
        count(scope, sent, route, started, request_id)
        write_down(scope, sent, route, started, request_id)

    return both


def write_down(
    scope: Scope, sent: Sent, route: str | None, started: float, request_id: str
) -> None:
    """Log one line."""
    log.info(
        "request",
        method=scope["method"],
        route=route or scope["path"],
        status=sent.status,
        ms=round((time.perf_counter() - started) * 1000, 2),
        bytes=sent.bytes,
        request_id=request_id,
    )
