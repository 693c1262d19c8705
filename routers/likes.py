"""Likes over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query

from models.like import Liked, LikeQuery, LikeRead, LikeToggled
from routers.dependencies import STRICT, CurrentReader, CurrentUserId, Db, Id, Likings
from routers.idempotency import keyed
from routers.paging import PAGED, PageQuery, Paging
from routers.problems import refuses
from services import likes as service
from services.errors import (
    CommentNotFound,
    ContentTooLarge,
    DatabaseUnavailable,
    FeedNotFound,
    InvalidInput,
    NotAuthenticated,
)
from services.idempotency import Claim

router = APIRouter(
    prefix="/api/like",
    tags=["Likes"],
    dependencies=STRICT,
    responses=refuses(ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
_OF_FEED = refuses(NotAuthenticated, FeedNotFound)
_OF_COMMENT = refuses(NotAuthenticated, CommentNotFound)


@router.patch(
    "/",
    summary="Like, or no longer",
    response_model=LikeToggled,
    responses=refuses(NotAuthenticated, FeedNotFound, CommentNotFound),
)
@keyed
async def toggle_like(
    likes: Likings,
    liker_id: CurrentUserId,
    query: Annotated[LikeQuery, Query()],
    claim: Claim | None = None,
) -> Liked:
    """Give `feed_id` or `comment_id`. Sent twice, it undoes itself; the other routes do not."""
    if query.feed_id is not None:
        return await service.toggle(likes, liker_id, service.FEED, query.feed_id, claim)
    return await service.toggle(likes, liker_id, service.COMMENT, query.comment_id or 0, claim)


@router.put("/feed/{feed_id}", summary="Like a feed", responses=_OF_FEED)
@keyed
async def like_feed(
    likes: Likings, liker_id: CurrentUserId, feed_id: Id, claim: Claim | None = None
) -> Liked:
    """It is liked then, whether or not it was."""
    return await service.add(likes, liker_id, service.FEED, feed_id, claim)


@router.delete("/feed/{feed_id}", summary="Like a feed no longer", responses=_OF_FEED)
@keyed
async def unlike_feed(
    likes: Likings, liker_id: CurrentUserId, feed_id: Id, claim: Claim | None = None
) -> Liked:
    """It is not liked then, whether or not it was."""
    return await service.remove(likes, liker_id, service.FEED, feed_id, claim)


@router.put("/comment/{comment_id}", summary="Like a comment", responses=_OF_COMMENT)
@keyed
async def like_comment(
    likes: Likings, liker_id: CurrentUserId, comment_id: Id, claim: Claim | None = None
) -> Liked:
    """It is liked then, whether or not it was."""
    return await service.add(likes, liker_id, service.COMMENT, comment_id, claim)


@router.delete("/comment/{comment_id}", summary="Like a comment no longer", responses=_OF_COMMENT)
@keyed
async def unlike_comment(
    likes: Likings, liker_id: CurrentUserId, comment_id: Id, claim: Claim | None = None
) -> Liked:
    """It is not liked then, whether or not it was."""
    return await service.remove(likes, liker_id, service.COMMENT, comment_id, claim)


@router.get(
    "/feed/{feed_id}",
    summary="Who likes a feed",
    responses=_OF_FEED | PAGED,
)
async def list_feed_likes(
    db: Db,
    reader: CurrentReader,
    paging: Paging,
    feed_id: Id,
    query: PageQuery,
) -> list[LikeRead]:
    """A page of who likes it, latest first; anybody may."""
    return paging.answer(await service.of_feed(db, feed_id, query))
