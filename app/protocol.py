"""HTTP/1.1 as uvicorn speaks it, with bounds on clients that are too large, too slow or too many.

uvicorn waits without end for a head that comes byte by byte, and for a reader that does not read.
"""

import asyncio
import fcntl
import sys
import termios
from asyncio import TimerHandle
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.problems import answer
from services.errors import MalformedRequest, Refusal, RequestTimeout, TooManyConnections

MAX_HEAD = 64 * 1024
# Seconds in which a request's line and headers have to be here, counted from the connection or from
# the last answer on it.
HEAD_PATIENCE = 20.0
# While bytes wait for a reader, MIN_PACE of them a second have to go; seconds between two looks.
READ_PATIENCE = 30.0
MIN_PACE = 1024


class BoundedHead(HttpToolsProtocol):
    """Cuts a request whose line and headers do not end within MAX_HEAD bytes and HEAD_PATIENCE.

    httptools gathers a header for as long as it comes, at a cost that grows with its square. Where
    there are `max_connections`, a new one takes the place of the one that has been waiting longest
    for a request, so that those who only hold connections keep nobody out.
    """

    max_connections = 2000
    # Of the process, which is being stopped: no connection outlives its answer.
    draining = False
    _running: RequestResponseCycle | None = None
    _in_head = True
    _head = 0
    _since = 0.0
    _head_timer: TimerHandle | None = None
    _read_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._let_go()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        self._in_head, self._head = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()
        if self.draining:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()
        elif self.cycle.response_complete:  # and none is in the pipeline
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer is not None and not self.transport.is_closing():
            self._read_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reader()  # closing waits for it

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _let_go(self) -> None:
        """Tell the request at work that nobody listens; uvicorn tells the pipeline's last one."""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest(msg))

    def _await_head(self) -> None:
        self._since = self.loop.time()
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_PATIENCE, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(RequestTimeout())

    def _make_room(self) -> None:
        others: list[Any] = [it for it in self.connections if it is not self]
        there = [it for it in others if not it.transport.is_closing()]
        if len(there) < self.max_connections:
            return
        waiting = [it for it in there if it._head_timer is not None]
        if waiting:
            min(waiting, key=lambda it: it._since).transport.abort()
        else:
            self._refuse(TooManyConnections())

    def _watch_reader(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = self.loop.call_later(READ_PATIENCE, self._look, self._unread())

    def _unread(self) -> int:
        """Bytes that wait here and in the kernel, which takes more only now and then, in lumps."""
        in_kernel = bytearray(4)
        with suppress(OSError, ValueError):  # It may be closed already.
            fd = self.transport.get_extra_info("socket").fileno()
            fcntl.ioctl(fd, termios.TIOCOUTQ, in_kernel)
        return self.transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)

    def _look(self, before: int) -> None:
        """Cut a connection whose bytes do not go."""
        if before - self._unread() < MIN_PACE * READ_PATIENCE:
            self.transport.abort()
        else:
            self._watch_reader()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer before there is a request to speak of, and close; not amid another answer."""
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            self.transport.write(self._written(refusal))
        self._let_go()
        self.transport.close()
        self._watch_reader()

    def _written(self, refusal: Refusal) -> bytes:
        response = answer({}, refusal)
        response.headers["connection"] = "close"
        head = [STATUS_LINE[response.status_code]]
        for name, value in [*self.server_state.default_headers, *response.raw_headers]:
            head.extend([name, b": ", value, b"\r\n"])
        return b"".join([*head, b"\r\n", bytes(response.body)])


# How uvicorn is run, wherever it is. Its name and version are nobody's business.
OPTIONS: dict[str, Any] = {
    "http": BoundedHead,
    "lifespan": "on",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    # Not by uvicorn, which believes everybody on loopback: app/proxies.py does it.
    "proxy_headers": False,
    "timeout_keep_alive": 5,
    "timeout_graceful_shutdown": 20,
}
