"""One line a request, and the id that ties the line, the response and a problem together."""

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

log = structlog.get_logger()
_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """Pure ASGI: takes or makes `X-Request-ID`, returns it, and logs what came of the request."""

    def __init__(self, app: ASGIApp, *, access_log: bool) -> None:
        self.app = app
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = identify(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
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
                if self.access_log:
                    route = getattr(scope.get("route"), "path_format", None) or scope["path"]
                    write_down(sent, scope["method"], route, started)


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


def identify(given: str) -> str:
    """A request's id: the client's, or one of ours."""
    # It goes into logs and headers, so only a plain one is taken over.
    return given if _SANE.fullmatch(given) else str(uuid7())


def write_down(sent: Sent, method: str, route: str, started: float, **more: str) -> None:
    """Log one line of a request that `started` by time.perf_counter(), and what was sent."""
    ms = round((time.perf_counter() - started) * 1000, 2)
    log.info(
        "request", method=method, route=route, status=sent.status, ms=ms, bytes=sent.bytes, **more
    )
