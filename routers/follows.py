"""Follows over HTTP: follow and unfollow, who follows whom, and what they post."""

from fastapi import APIRouter

from models.feed import FeedRead
from models.follow import FollowRead, FollowToggled, Person
from routers.dependencies import STRICT, CurrentReader, CurrentUser, Db, Id, Images
from routers.idempotency import keyed
from routers.paging import PAGED, PageQuery, Paging
from routers.problems import refuses
from services import follows, home
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    FollowingOneself,
    InvalidInput,
    NotAuthenticated,
    UserNotFound,
)

router = APIRouter(
    prefix="/api",
    tags=["Follows"],
    dependencies=STRICT,
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
_REFUSED = refuses(FollowingOneself, UserNotFound)


@router.patch("/follow/{user_id}", summary="Follow, or unfollow", responses=_REFUSED)
@keyed
async def toggle_follow(db: Db, follower: CurrentUser, user_id: Id) -> FollowToggled:
    """Follow a user, or no more if I do; `PUT` and `DELETE` may be sent twice, this may not."""
    return await follows.toggle(db, follower, user_id)


@router.put("/follow/{user_id}", summary="Follow", responses=_REFUSED)
@keyed
async def follow(db: Db, follower: CurrentUser, user_id: Id) -> FollowRead:
    """Follow a user; sent again, it changes nothing."""
    return await follows.put(db, follower, user_id)


@router.delete("/follow/{user_id}", summary="Unfollow", responses=_REFUSED)
@keyed
async def unfollow(db: Db, follower: CurrentUser, user_id: Id) -> FollowRead:
    """Follow a user no more; sent again, it changes nothing."""
    return await follows.remove(db, follower, user_id)


@router.get(
    "/mypage/{user_id}/followers",
    summary="List followers",
    responses=PAGED | refuses(UserNotFound),
)
async def list_followers(
    db: Db,
    images: Images,
    reader: CurrentUser,
    paging: Paging,
    user_id: Id,
    query: PageQuery,
) -> list[Person]:
    """Who follows a user, latest first; whoever is signed in may see it."""
    return paging.answer(await follows.followers(db, images, user_id, query))


@router.get(
    "/mypage/{user_id}/followings",
    summary="List followings",
    responses=PAGED | refuses(UserNotFound),
)
async def list_followings(
    db: Db,
    images: Images,
    reader: CurrentUser,
    paging: Paging,
    user_id: Id,
    query: PageQuery,
) -> list[Person]:
    """Whom a user follows, latest first; whoever is signed in may see it."""
    return paging.answer(await follows.followings(db, images, user_id, query))


@router.get("/feed/home", summary="List feeds of those I follow", responses=PAGED)
async def list_home(
    db: Db,
    images: Images,
    user: CurrentUser,
    reader: CurrentReader,
    paging: Paging,
    query: PageQuery,
) -> list[FeedRead]:
    """A page of the feeds of those whom I follow, newest first."""
    return paging.answer(await home.page(db, images, reader, query))
