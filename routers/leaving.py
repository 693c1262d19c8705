"""Taking everything of mine along, and leaving, over HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from models.leaving import Leave, Receipt
from routers import images as image_routes
from routers.dependencies import (
    STRICT,
    Attempts,
    ClientAddress,
    Configured,
    CurrentUser,
    Db,
    EndedSessions,
    Erasing,
    Images,
    PasswordHasher,
)
from routers.problems import refuses
from services import leaving
from services.archive import Write
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    ExportRunning,
    InvalidCredentials,
    InvalidInput,
    MalformedBody,
    NotAuthenticated,
    TooManyAttempts,
    UnsupportedMediaType,
)
from services.export import Exports, export

router = APIRouter(
    prefix="/api/mypage",
    tags=["My page"],
    dependencies=STRICT,
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
FILE_NAME = "feedboard-export.zip"


async def _turn(request: Request, user: CurrentUser) -> AsyncGenerator[None]:
    """The user's one export, until the response is sent or broken off."""
    exports: Exports = request.app.state.exports
    with exports.turn(user.id):
        yield


class _Download(StreamingResponse):
    """A ZIP that the client gets while it is made; without its end, where making it fails."""

    media_type = "application/zip"

    def __init__(self, make: Callable[[Write], Awaitable[None]]) -> None:
        self._make = make
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "content-disposition": f'attachment; filename="{FILE_NAME}"',
                "cache-control": "no-store",
            }
        )

    async def stream_response(self, send: Send) -> None:
        """Called by Starlette, which breaks it off when the client goes away."""

        async def write(data: bytes) -> None:
            # Making it takes its time; only the client's is bounded.
            async with asyncio.timeout(image_routes.SEND_PATIENCE):
                await send({"type": "http.response.body", "body": data, "more_body": True})

        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await self._make(write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.get(
    "/export",
    summary="Take everything of mine along",
    response_class=StreamingResponse,
    dependencies=[Depends(_turn)],
    responses=refuses(ExportRunning)
    | {
        200: {
            "description": "A ZIP of JSON files and images, with a README and a manifest.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def export_mine(db: Db, images: Images, user: CurrentUser, settings: Configured) -> Response:
    """Everything of mine, as a ZIP of any length; one at a time.

    It is sent while it is read: broken off by a failure, it has no end, and opens nowhere.
    """
    return _Download(lambda write: export(db, images, user, write, restorable=settings.restorable))


@router.delete(
    "",
    summary="Leave",
    responses=refuses(
        NotAuthenticated,
        InvalidCredentials,
        TooManyAttempts,
        MalformedBody,
        UnsupportedMediaType,
    ),
)
async def leave(
    db: Db,
    images: Images,
    passwords: PasswordHasher,
    revocations: EndedSessions,
    eraser: Erasing,
    attempts: Attempts,
    address: ClientAddress,
    user: CurrentUser,
    asked: Leave,
) -> Receipt:
    """Erase my account and all that is mine, for good; what others wrote stays.

    A wrong password is 401, as at log-in, and counts with those. From the answer on nobody sees
    anything of mine; of a large account the rest is erased behind it.
    """
    password = asked.password.get_secret_value()
    async with attempts.attempt(user.email, address):
        return await leaving.leave(
            db, images, passwords, revocations, eraser, user, password=password
        )
