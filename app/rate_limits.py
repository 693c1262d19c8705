"""Who asks too often is told so, before the body is read, and everybody what is left to them.

The header fields are those of draft-ietf-httpapi-ratelimit-headers-10. A window begins at the same
moment for all (each minute, say), so that one count is all that there is to keep or to ask for.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import answer
from config.addresses import counted_as
from config.rates import Rate, RouteClass
from routers.rates import BY_ADDRESS, class_of
from services.counters import Counters
from services.errors import NotAuthenticated, TooManyRequests

HEADERS = ("RateLimit", "RateLimit-Policy")


class Counted(NamedTuple):
    """What a request is told of its limit, and why it is refused, if it is."""

    headers: tuple[tuple[bytes, bytes], ...]
    refusal: TooManyRequests | None


class Limits:
    """Counts requests per class, of a user or of an address."""

    def __init__(self, rates: Mapping[RouteClass, Rate]) -> None:
        self._rates = rates
        self._policies = {
            name: f'"{name}";q={rate.amount};w={rate.seconds}'.encode()
            for name, rate in rates.items()
        }

    async def count(self, counters: Counters, name: RouteClass, who: str) -> Counted:
        amount, seconds = self._rates[name]
        window, past = divmod(time.time(), seconds)
        reset = seconds - int(past)
        count = await counters.add(f"{name}/{who}/{int(window)}", seconds)
        left = f'"{name}";r={max(0, amount - count)};t={reset}'.encode()
        told = ((b"ratelimit-policy", self._policies[name]), (b"ratelimit", left))
        if count <= amount:
            return Counted(told, None)
        sentence = f"More than {amount} {name} requests in {seconds} seconds; wait {reset} seconds."
        return Counted(told, TooManyRequests(sentence, retry_after=reset))

    async def count_read(self, scope: Scope, counters: Counters, reader_id: int | None) -> Counted:
        """Count a read before `RateLimits` comes to see it, which then does not."""
        who = address(scope) if reader_id is None else user(reader_id)
        counted: Counted = await self.count(counters, "read", who)
        scope["state"]["counted"] = counted
        return counted


class RateLimits:
    """Pure ASGI: refuses who asks too often; a user by the access token, else an address."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = None
        if scope["type"] == "http":
            name = class_of(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))
        if name is None:
            await self.app(scope, receive, send)
            return
        counted: Counted | None = scope["state"].get("counted")
        if counted is None:
            counters = scope["app"].state.counters
            counted = await self.limits.count(counters, name, _who(scope, name))
        told, refusal = counted

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *told]
            await send(message)

        if refusal is None:
            await self.app(scope, receive, telling)
            return
        await answer(scope, refusal)(scope, receive, telling)


def user(user_id: int) -> str:
    """Whom a request with a good access token counts for."""
    return f"user/{user_id}"


def address(scope: Scope) -> str:
    """Whom a request without one counts for."""
    client = scope.get("client")
    return f"address/{counted_as(client[0] if client else '')}"


def _who(scope: Scope, name: RouteClass) -> str:
    if name not in BY_ADDRESS:
        for header, value in scope["headers"]:
            if header == b"authorization" and value[:7].lower() == b"bearer ":
                try:
                    token = value[7:].decode("latin-1")
                    return user(scope["app"].state.tokens.read(token).user_id)
                except NotAuthenticated:
                    break  # Else whoever makes up tokens would be somebody else each time.
    return address(scope)
