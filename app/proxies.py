"""Who the client is, behind proxies: told only by those that are trusted."""

import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from config.addresses import Address, Network, parse_address

# One `for` of an element of Forwarded (RFC 7239, section 4), or its `proto`; a value may be quoted.
_PAIR = re.compile(r'(for|proto)\s*=\s*(?:"([^"]*)"|([^";,\s]*))', re.IGNORECASE)


class TrustedProxies:
    """Pure ASGI: `client` becomes the last address before the trusted proxies, `scheme` theirs.

    Each proxy writes down, on the right, whom it heard. So lists are read from the right, for as
    long as it is a trusted proxy that was heard; what stands before that may be made up. A proxy
    that writes one of the two header fields may hand on the other as a client made it up: where
    both came and differ, neither is believed.
    """

    def __init__(self, app: ASGIApp, *, proxies: Sequence[Network]) -> None:
        self.app = app
        self.proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = _address(scope["client"][0]) if scope.get("client") else None
        if peer is not None and self._trusts(peer):
            chains = [chain for chain in (_x_forwarded_for(scope), _forwarded(scope)) if chain]
            clients = {self._client(peer, chain) for chain in chains}
            if len(clients) == 1:
                scope["client"] = (str(clients.pop()), 0)
            if (scheme := _scheme(scope)) in {"http", "https"}:
                scope["scheme"] = scheme
        await self.app(scope, receive, send)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self.proxies)

    def _client(self, peer: Address, chain: list[str]) -> Address:
        for entry in reversed(chain):
            heard = _address(entry)
            if heard is None:
                break  # `unknown`, or nonsense: the nearest that is known has to do.
            peer = heard
            if not self._trusts(peer):
                break
        return peer


def _values(scope: Scope, name: bytes) -> str:
    """A header field's lines as one, as they are meant (RFC 9110, section 5.3)."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


def _x_forwarded_for(scope: Scope) -> list[str]:
    found = _values(scope, b"x-forwarded-for")
    return [entry.strip() for entry in found.split(",")] if found else []


def _forwarded(scope: Scope) -> list[str]:
    found = _values(scope, b"forwarded")
    return [_pairs(element).get("for", "") for element in found.split(",")] if found else []


def _pairs(element: str) -> dict[str, str]:
    return {name.lower(): quoted or bare for name, quoted, bare in _PAIR.findall(element)}


def _scheme(scope: Scope) -> str:
    """What the nearest proxy was asked by."""
    last = _values(scope, b"x-forwarded-proto").rpartition(",")[2].strip()
    return (
        last or _pairs(_values(scope, b"forwarded").rpartition(",")[2]).get("proto", "")
    ).lower()


def _address(entry: str) -> Address | None:
    """The address in an entry, which may have a port: `192.0.2.1:80`, `[2001:db8::1]:80`."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        return parse_address(entry)
    except ValueError:
        return None
