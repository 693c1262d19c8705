"""What browsers are told to refuse, on every answer; and that no answer leads elsewhere."""

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import rate_limits
from config.settings import Settings
from routers.idempotency import REPLAYED

# An answer of the API is data: nothing in it may run, load, or be framed.
_DATA = "default-src 'none'; frame-ancestors 'none'"
# A year, in seconds; of this name alone, since others below it are not ours to speak for.
_HTTPS_ONLY = "max-age=31536000"
_ORIGIN = re.compile(r"^https?://[^/]*")


def of_swagger_ui(page: bytes) -> str:
    """The policy of Swagger UI's page: our own files, and the one script that is in the page."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{b64encode(sha256(it).digest()).decode()}'" for it in scripts)
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src blob:; connect-src 'self'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


def of_data(settings: Settings) -> dict[str, str]:
    """What an answer of the API gets."""
    guarding = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "content-security-policy": _DATA,
        "cross-origin-resource-policy": "same-origin",
    }
    if settings.base_url.startswith("https:"):
        guarding["strict-transport-security"] = _HTTPS_ONLY
    return guarding


def of_images(settings: Settings) -> dict[str, str]:
    """The same of what lies below /images/: it is there to be shown by other origins' pages.

    Those may also read the API, but by CORS, which is not this header's business.
    """
    return of_data(settings) | {"cross-origin-resource-policy": "cross-origin"}


def of_cors(settings: Settings) -> dict[str, Any]:
    """What other origins' scripts may ask, and see of the answers, as `CORSMiddleware` takes it."""
    return {
        # Tokens are sent by scripts that have them, never by the browser itself: no credentials.
        "allow_origins": settings.origins,
        "allow_methods": ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"],
        "allow_headers": ["*"],
        "expose_headers": [
            *("Link", "X-Total-Count", "X-Request-ID", "Retry-After", "ETag"),
            *(*rate_limits.HEADERS, REPLAYED),
        ],
        "max_age": 600,
    }


def raw(named: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As ASGI has them."""
    return [(name.encode(), value.encode()) for name, value in named.items()]


class SecurityHeaders:
    """Pure ASGI: adds each header that an answer does not have already.

    A redirect, which is always to ourselves, names no host: Starlette repeats what the client
    called us, and whoever makes up a `Host` could have a cache send others, and tokens, to it.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self._of_data, self._of_images = of_data(settings), of_images(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        wanted = self._of_images if scope["path"].startswith("/images/") else self._of_data

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in wanted.items():
                    headers.setdefault(name, value)
                if "location" in headers:
                    headers["location"] = _ORIGIN.sub("", headers["location"])
            await send(message)

        await self.app(scope, receive, guarded)
