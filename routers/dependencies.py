"""What routes ask for, as types, so that a route reads as a sentence."""

import json
import re
from collections import Counter
from typing import Annotated, Any, get_origin

from fastapi import Depends, Path, Request, params
from fastapi.routing import APIRoute
from fastapi.security import OAuth2PasswordBearer
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY

from config.db import Sessions, get_db
from config.settings import Settings
from models.base import MAX_ID
from models.user import User
from services import accounts, auth
from services.attempts import LoginAttempts
from services.errors import ContentTooLarge, InvalidInput, NotAuthenticated, UnsupportedMediaType
from services.leaving import Eraser
from services.likes import Likes
from services.passwords import Passwords
from services.readers import Reader
from services.revocations import Revocations
from services.sessions import Client
from services.store import ImageStore
from services.tokens import Access, Tokens

_bearer = OAuth2PasswordBearer(
    tokenUrl="/api/auth/token",
    auto_error=False,
    description="Give e-mail (as username) and password; leave the client fields empty.",
)
_FORMS = {"multipart/form-data", "application/x-www-form-urlencoded"}
_JSON = re.compile(r"application/([^/]+\+)?json")


def _kept(name: str) -> Any:
    """What the application keeps in its state, by name, as a dependency."""

    async def lend(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(lend)


async def _client_address(request: Request) -> str:
    return request.client.host if request.client else ""


Db = Annotated[AsyncSession, Depends(get_db)]
Configured = Annotated[Settings, _kept("settings")]
Images = Annotated[ImageStore, _kept("images")]
PasswordHasher = Annotated[Passwords, _kept("passwords")]
Likings = Annotated[Likes, _kept("likes")]
AccessTokens = Annotated[Tokens, _kept("tokens")]
Attempts = Annotated[LoginAttempts, _kept("attempts")]
# The client itself, also where it comes by proxies, if TRUSTED_PROXIES names them.
ClientAddress = Annotated[str, Depends(_client_address)]
EndedSessions = Annotated[Revocations, _kept("revocations")]
Draining = Annotated[bool, _kept("draining")]
Erasing = Annotated[Eraser, _kept("eraser")]
Id = Annotated[int, Path(ge=1, le=MAX_ID)]


async def _current_user(
    request: Request, tokens: AccessTokens, token: Annotated[str | None, Depends(_bearer)]
) -> User:
    if token is None:
        raise NotAuthenticated
    sessions: Sessions = request.app.state.reading
    async with sessions() as db:
        return await auth.authenticate(db, tokens, token)


CurrentUser = Annotated[User, Depends(_current_user)]


async def _access(request: Request, token: str) -> Access:
    """What a token says, if its session goes on: known without a query."""
    tokens: Tokens = request.app.state.tokens
    revocations: Revocations = request.app.state.revocations
    access = tokens.read(token)
    await revocations.require_live(access.session_id)
    return access


async def _current_user_id(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> int:
    """Whom the token names; whether there still is such a user is for the service to notice."""
    if token is None:
        raise NotAuthenticated
    return (await _access(request, token)).user_id


CurrentUserId = Annotated[int, Depends(_current_user_id)]


async def _current_session_id(
    tokens: AccessTokens, token: Annotated[str | None, Depends(_bearer)]
) -> int:
    """Of the session that asks; beside a CurrentUser, who says that it goes on."""
    if token is None:
        raise NotAuthenticated
    return tokens.read(token).session_id


CurrentSessionId = Annotated[int, Depends(_current_session_id)]


async def _reader(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> Reader:
    """Anybody may read; a token that is sent has to be good, so that nobody reads as a stranger
    without knowing it."""
    settings: Settings = request.app.state.settings
    reader_id = None if token is None else (await _access(request, token)).user_id
    return Reader(reader_id, settings.show_emails)


CurrentReader = Annotated[Reader, Depends(_reader)]


async def verified(request: Request, token: Annotated[str | None, Depends(_bearer)]) -> None:
    """Refuse each write of a user whose address is not verified.

    The one place that decides it; `app/main.py` says for which routers, and whether at all.
    """
    if request.method in {"GET", "HEAD"}:
        return
    user_id = await _current_user_id(request, token)
    sessions: Sessions = request.app.state.reading
    async with sessions() as db:
        await accounts.require_verified(db, user_id)


async def _calling(request: Request, address: ClientAddress) -> Client:
    return Client.of(request.headers.get("user-agent", ""), address)


Calling = Annotated[Client, Depends(_calling)]


async def reader_of(request: Request) -> Reader:
    """Who reads, for what is no route."""
    return await _reader(request, await _bearer(request))


async def known_parameters(request: Request) -> None:
    """Refuse a query parameter that the route does not know, or that comes twice.

    FastAPI passes over both in silence; a client would never learn of its typing error. A route
    that takes query parameters takes them as one shape, which forbids unknown ones by itself.
    """
    if not request.scope["query_string"]:
        return
    route = request.scope.get("route")
    takes_query = isinstance(route, APIRoute) and bool(route.dependant.query_params)
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if times > 1:
            raise InvalidInput(
                f"The parameter {name[:100]} came {times} times.", pointer=f"/{name}"
            )
        if not takes_query:
            raise InvalidInput(f"This route has no parameter {name[:100]}.", pointer=f"/{name}")


async def known_body(request: Request) -> None:
    """Refuse a body that is too large, or of a kind that the route does not read.

    FastAPI takes the second for a body with no fields. And where a route reads no body, it
    notices the first only when the response starts: the feed would be deleted, and the answer 413.
    """
    route, headers = request.scope.get("route"), request.headers
    told = headers.get("content-length", "")
    length = int(told) if told.isdecimal() else 0
    if length > request.scope.get(MAX_BODY_SIZE_SCOPE_KEY, length):
        raise ContentTooLarge
    body = route.body_field if isinstance(route, APIRoute) else None
    if body is None or not (length or "transfer-encoding" in headers):
        return
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    reads = given in _FORMS if isinstance(body.field_info, params.Form) else _JSON.fullmatch(given)
    if not reads:
        wanted = getattr(body.field_info, "media_type", "")
        raise UnsupportedMediaType(f"Send the body as {wanted}, not as {given[:100] or 'nothing'}.")
    if given in _FORMS:
        await _once_each(request, body.field_info.annotation)
    else:
        json.loads(await request.body(), object_pairs_hook=_unique)


async def _once_each(request: Request, shape: Any) -> None:
    """Refuse a field that comes twice and is no list; the last one would win in silence."""
    times = Counter(name for name, _ in (await request.form()).multi_items())
    for name, field in shape.model_fields.items():
        if times[name] > 1 and get_origin(field.annotation) is not list:
            raise InvalidInput(f"The field {name} came {times[name]} times.", pointer=f"/{name}")


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Refuse a key that comes twice; RFC 8259 leaves open which one counts."""
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise InvalidInput(f"The field {name[:100]} came {times} times.", pointer=f"/{name}")


# Of every router: what a route does not know is refused, not passed over.
STRICT = [Depends(known_parameters), Depends(known_body)]
