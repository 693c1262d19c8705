"""Who asks too often is told so, before the body is read, and everybody what is left to them.

The header fields are those of draft-ietf-httpapi-ratelimit-headers-10. A window begins at the same
moment for all (each minute, say), so that one count is all that there is to keep or to ask for.
"""

import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import answer
from config.addresses import counted_as
from config.rates import Rate, RouteClass
from routers.rates import BY_ADDRESS, class_of
from services.errors import NotAuthenticated, TooManyRequests

HEADERS = ("RateLimit", "RateLimit-Policy")


class RateLimits:
    """Pure ASGI: counts requests per class, of a user by the access token, else of an address."""

    def __init__(self, app: ASGIApp, *, rates: Mapping[RouteClass, Rate]) -> None:
        self.app = app
        self.rates = rates
        self.policies = {
            name: f'"{name}";q={rate.amount};w={rate.seconds}'.encode()
            for name, rate in rates.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = None
        if scope["type"] == "http":
            name = class_of(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))
        if name is None:
            await self.app(scope, receive, send)
            return
        amount, seconds = self.rates[name]
        window, past = divmod(time.time(), seconds)
        reset = seconds - int(past)
        key = f"{name}/{_who(scope, name)}/{int(window)}"
        count = await scope["app"].state.counters.add(key, seconds)
        told = (
            (b"ratelimit-policy", self.policies[name]),
            (b"ratelimit", f'"{name}";r={max(0, amount - count)};t={reset}'.encode()),
        )

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *told]
            await send(message)

        if count <= amount:
            await self.app(scope, receive, telling)
            return
        sentence = f"More than {amount} {name} requests in {seconds} seconds; wait {reset} seconds."
        refusal = TooManyRequests(sentence, retry_after=reset)
        await answer(scope, refusal)(scope, receive, telling)


def _who(scope: Scope, name: RouteClass) -> str:
    if name not in BY_ADDRESS:
        for header, value in scope["headers"]:
            if header == b"authorization" and value[:7].lower() == b"bearer ":
                try:
                    token = value[7:].decode("latin-1")
                    return f"user/{scope['app'].state.tokens.read(token).user_id}"
                except NotAuthenticated:
                    break  # Else whoever makes up tokens would be somebody else each time.
    client = scope.get("client")
    return f"address/{counted_as(client[0] if client else '')}"
