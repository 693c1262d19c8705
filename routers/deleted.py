"""What I have deleted and can restore, over HTTP."""

from fastapi import APIRouter

from models.feed import Deleted
from routers.dependencies import STRICT, Configured, CurrentUser, Db
from routers.paging import PAGED, PageQuery, Paging
from routers.problems import refuses
from services import deleted
from services.errors import ContentTooLarge, DatabaseUnavailable, InvalidInput, NotAuthenticated

router = APIRouter(
    prefix="/api/mypage",
    tags=["My page"],
    dependencies=STRICT,
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)


@router.get("/deleted", summary="List what I deleted", responses=PAGED)
async def list_deleted(
    db: Db,
    user: CurrentUser,
    settings: Configured,
    paging: Paging,
    query: PageQuery,
) -> list[Deleted]:
    """Feeds and comments that I deleted and can still restore, latest first."""
    return paging.answer(await deleted.page(db, user, query, restorable=settings.restorable))
