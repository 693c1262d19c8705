"""What I have deleted and can restore, over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from models.base import CursorQuery
from models.feed import Deleted
from routers.dependencies import (
    LINK,
    Configured,
    CurrentUser,
    Db,
    known_body,
    known_parameters,
    link_next,
)
from routers.problems import refuses
from services import deleted
from services.errors import ContentTooLarge, DatabaseUnavailable, InvalidInput, NotAuthenticated

router = APIRouter(
    prefix="/api/mypage",
    tags=["My page"],
    dependencies=[Depends(known_parameters), Depends(known_body)],
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)


@router.get("/deleted", summary="List what I deleted", responses={200: {"headers": {"Link": LINK}}})
async def list_deleted(
    db: Db,
    user: CurrentUser,
    settings: Configured,
    request: Request,
    response: Response,
    query: Annotated[CursorQuery, Query()],
) -> list[Deleted]:
    """Feeds and comments that I deleted and can still restore, latest first."""
    page = await deleted.page(db, user, query, restorable=settings.restorable)
    link_next(request, response, page.next)
    return page.items
