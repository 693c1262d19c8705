"""Sessions over HTTP: refresh, log out, and see and end what goes on elsewhere."""

from typing import Annotated

from fastapi import APIRouter, Query

from models.base import Message
from models.session import LogoutQuery, RefreshGrant, SessionRead
from models.user import TokenRead
from routers.dependencies import (
    STRICT,
    AccessTokens,
    Calling,
    CurrentSessionId,
    CurrentUser,
    Db,
    EndedSessions,
    Id,
)
from routers.idempotency import keyed
from routers.paging import PAGED, PageQuery, Paging
from routers.problems import refuses
from services import sessions
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    Forbidden,
    InvalidInput,
    InvalidRefreshToken,
    MalformedBody,
    NotAuthenticated,
    RefreshTokenReused,
    SessionNotFound,
    UnsupportedMediaType,
)

router = APIRouter(
    prefix="/api/auth",
    tags=["Auth"],
    dependencies=STRICT,
    responses=refuses(ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
_SIGNED_IN = refuses(NotAuthenticated)


@router.post(
    "/refresh",
    summary="Stay logged in",
    responses=refuses(MalformedBody, UnsupportedMediaType, InvalidRefreshToken, RefreshTokenReused),
)
async def refresh(
    db: Db, tokens: AccessTokens, ended: EndedSessions, client: Calling, grant: RefreshGrant
) -> TokenRead:
    """Exchange a refresh token for a new access token and the next refresh token.

    Each is good for one use; one that comes back later ends its session. An `Idempotency-Key` has
    no effect here: tokens are not written down.
    """
    token = grant.refresh_token.get_secret_value()
    return await sessions.refresh(db, tokens, ended, client, token)


@router.post("/logout", summary="Log out", responses=_SIGNED_IN)
async def logout(
    db: Db,
    ended: EndedSessions,
    user: CurrentUser,
    session_id: CurrentSessionId,
    query: Annotated[LogoutQuery, Query()],
) -> Message:
    """End this session, or all of mine; their tokens are good for nothing from now on."""
    await sessions.log_out(db, ended, user, session_id, everywhere=query.everywhere)
    return Message(message="Logged Out")


@router.get("/sessions", summary="List my sessions", responses=_SIGNED_IN | PAGED)
async def list_sessions(
    db: Db, user: CurrentUser, session_id: CurrentSessionId, paging: Paging, query: PageQuery
) -> list[SessionRead]:
    """A page of where I am logged in, newest log-in first."""
    return paging.answer(await sessions.page(db, user, query, current_id=session_id))


@router.delete(
    "/sessions/{session_id}",
    summary="End a session",
    responses=refuses(NotAuthenticated, Forbidden, SessionNotFound),
)
@keyed
async def end_session(db: Db, ended: EndedSessions, user: CurrentUser, session_id: Id) -> Message:
    """Log out elsewhere, or here; its tokens are good for nothing from now on."""
    return await sessions.end(db, ended, user, session_id)
