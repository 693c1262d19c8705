"""What is refused before a body is parsed, because parsing it would cost too much."""

from email.message import Message as Header

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import answer
from services.errors import UnsupportedMediaType

# Without files a form is a few texts; urlencoded ones are parsed on the event loop.
MAX_URLENCODED = 1024 * 1024


class BodyGuard:
    """Pure ASGI: bodies are UTF-8, and urlencoded ones small.

    Forms are decoded by whatever codec the client names, and some of Python's are quadratic.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("content-type") if scope["type"] == "http" else None
        if given is None:
            await self.app(scope, receive, send)
            return
        header = Header()
        header["content-type"] = given
        if str(header.get_param("charset", "utf-8")).lower() not in {"utf-8", "utf8"}:
            refusal = UnsupportedMediaType("Send the body in UTF-8, or name no charset.")
            await answer(scope, refusal)(scope, receive, send)
            return
        if header.get_content_type() != "application/x-www-form-urlencoded":
            await self.app(scope, receive, send)
            return
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_URLENCODED:
                raise HTTPException(413)
            return message

        await self.app(scope, bounded, send)
