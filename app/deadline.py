"""An end to every request: for what we do, and for a client that takes its time with a body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import answer
from services.errors import RequestTimeout, TookTooLong

# A client may take this long for its body (seconds), and longer the more of it has come (bytes a
# second), as Apache's mod_reqtimeout has it. A bound in all would be of the largest upload over the
# slowest line: hours, and no protection.
BODY_PATIENCE = 20.0
MIN_PACE = 1024


class Deadline:
    """Pure ASGI: cancels what has not begun to answer after so many seconds of ours.

    While the client is waited for, that clock stands still and the client's own one runs. Once the
    answer has begun, the pace at which it is read is the protocol's to watch.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = None
        try:
            async with asyncio.timeout(self.seconds) as clock:
                waiting = _Waiting(receive, clock)

                async def begun(message: Message) -> None:
                    if not clock.expired():
                        clock.reschedule(None)
                    await send(message)

                await self.app(scope, waiting, begun)
        except TimeoutError:
            if not clock.expired():
                raise
            refusal = RequestTimeout() if waiting.now else TookTooLong()
        if refusal is not None:
            response = answer(scope, refusal)
            response.headers["connection"] = "close"
            await response(scope, receive, send)


class _Waiting:
    """`receive`, on the client's clock."""

    def __init__(self, receive: Receive, clock: asyncio.Timeout) -> None:
        self._receive = receive
        self._clock = clock
        self._whole = False
        self._bytes = 0
        self._seconds = 0.0
        self.now = False

    async def __call__(self) -> Message:
        started, ours = asyncio.get_running_loop().time(), self._clock.when()
        if self._whole or ours is None or self._clock.expired():
            return await self._receive()  # to hear that the client has gone
        theirs = BODY_PATIENCE + self._bytes / MIN_PACE - self._seconds
        self.now = True
        self._clock.reschedule(started + theirs)
        message = await self._receive()
        self.now = False
        took = asyncio.get_running_loop().time() - started
        self._seconds += took
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if not self._clock.expired() and self._clock.when() is not None:
            self._clock.reschedule(ours + took)
        return message
