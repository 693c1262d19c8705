"""Which names the service answers to."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.problems import answer
from services.errors import UnknownHost

# A name or an address, the last one in brackets if it has colons, then perhaps a port.
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]*)?", re.IGNORECASE)
# Asked by address, by what starts and watches the service.
_PROBES = {"/healthz", "/readyz"}


class KnownHosts:
    """Pure ASGI: refuses a request for another host; a name may begin with `*.`."""

    def __init__(self, app: ASGIApp, *, names: Sequence[str]) -> None:
        self.app = app
        self._names = {name for name in names if not name.startswith("*")}
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            given = Headers(scope=scope).getlist("host")
            if len(given) != 1 or not self.knows(given[0]):
                await answer(scope, UnknownHost())(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def knows(self, given: str) -> bool:
        match = _HOST.fullmatch(given)
        name = match[1].lower().rstrip(".") if match else ""
        return name in self._names or name.endswith(self._endings)
