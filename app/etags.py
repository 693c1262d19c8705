"""An ETag on every JSON read, and 304 for who has it already (RFC 9110, sections 8.8 and 13)."""

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from routers.conditions import etag, has

_OF_CONTENT = ("content-type", "content-length")


class ETags:
    """Pure ASGI: tags what is read, and what a write gives back.

    Caches may keep what anybody reads, and have to ask before each use; what is read with a token
    is for that reader alone, and what is no read is not kept at all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Headers(scope=scope)
        held: Message | None = None

        async def tagged(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                reads = scope["method"] == "GET" and message["status"] == 200
                if "cache-control" not in headers and _is_json(headers):
                    _say_who_may_keep_it(headers, reads=reads, signed_in="authorization" in request)
                if message["status"] == 200 and _is_json(headers) and "etag" not in headers:
                    held = message  # until its body is here
                    return
            elif held is not None:
                start, held = held, None
                version = scope.get("state", {}).get("version")
                if not message.get("more_body") and (scope["method"] == "GET" or version):
                    tag = etag(message.get("body", b""), version)
                    given = ",".join(request.getlist("if-none-match"))
                    if scope["method"] == "GET" and has(given, tag):
                        start, message = _not_modified(start), {"type": "http.response.body"}
                    MutableHeaders(scope=start)["etag"] = f'"{tag}"'
                await send(start)
            await send(message)

        await self.app(scope, receive, tagged)


def describe(document: dict[str, Any]) -> None:
    """Say in the OpenAPI document which answers are tagged, and that 304 is one."""
    tag = {"description": "For `If-None-Match`, and `If-Match`.", "schema": {"type": "string"}}
    for methods in document["paths"].values():
        for method, operation in methods.items():
            found = operation["responses"].get("200", {})
            if method == "get" and "application/json" in found.get("content", {}):
                found.setdefault("headers", {})["ETag"] = tag
                operation["responses"]["304"] = {
                    "description": "The client has it already (`If-None-Match`)."
                }


def _is_json(headers: MutableHeaders) -> bool:
    return headers.get("content-type", "").endswith("json")


def _say_who_may_keep_it(headers: MutableHeaders, *, reads: bool, signed_in: bool) -> None:
    if not reads:
        headers["cache-control"] = "no-store"
        return
    headers["cache-control"] = "private, no-cache" if signed_in else "no-cache"
    headers.add_vary_header("Authorization")


def _not_modified(start: Message) -> Message:
    names = {name.encode() for name in _OF_CONTENT}
    kept = [(name, value) for name, value in start["headers"] if name.lower() not in names]
    return {**start, "status": 304, "headers": kept}
