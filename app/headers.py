"""What browsers are told to refuse, on every answer; and that no answer leads elsewhere."""

import re
from base64 import b64encode
from hashlib import sha256

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.settings import Settings

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


def _guarding(settings: Settings) -> dict[str, str]:
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


def of_data(settings: Settings) -> list[tuple[bytes, bytes]]:
    """What an answer of the API gets, as ASGI has it."""
    return [(name.encode(), value.encode()) for name, value in _guarding(settings).items()]


class SecurityHeaders:
    """Pure ASGI: adds each header that an answer does not have already.

    A redirect, which is always to ourselves, names no host: Starlette repeats what the client
    called us, and whoever makes up a `Host` could have a cache send others, and tokens, to it.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self._headers = _guarding(settings)
        # Images are there to be shown by other origins' pages. Those may also read the API, but by
        # CORS, which is not this header's business.
        self._of_images = self._headers | {"cross-origin-resource-policy": "cross-origin"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        wanted = self._of_images if scope["path"].startswith("/images/") else self._headers

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in wanted.items():
                    headers.setdefault(name, value)
                if "location" in headers:
                    headers["location"] = _ORIGIN.sub("", headers["location"])
            await send(message)

        await self.app(scope, receive, guarded)
