"""Profiles over HTTP: a user, my own page, and the feeds of one author."""

from typing import Annotated

from fastapi import APIRouter, Query

from models.feed import Feed, FeedRead, ListQuery
from models.user import AuthorQuery, Profile, ProfileUpdate
from routers.conditions import Expected, Tag
from routers.dependencies import STRICT, CurrentReader, CurrentUser, Db, Id, Images
from routers.idempotency import keyed
from routers.paging import COUNTED, Paging
from routers.problems import refuses
from services import profiles, showing
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    InvalidInput,
    MalformedBody,
    NicknameTaken,
    NotAuthenticated,
    PreconditionFailed,
    StorageUnavailable,
    UnsupportedMediaType,
    UserNotFound,
)

router = APIRouter(
    prefix="/api",
    tags=["Profiles"],
    dependencies=STRICT,
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)


@router.get("/user/{user_id}", summary="See a user", responses=refuses(UserNotFound))
async def read_user(
    db: Db, images: Images, reader: CurrentReader, tag: Tag[Profile], user_id: Id
) -> Profile:
    """A user's profile; anybody may."""
    return tag(await profiles.read(db, images, reader, user_id))


@router.get("/mypage/profile", summary="See my profile")
async def read_my_profile(
    db: Db, images: Images, user: CurrentUser, reader: CurrentReader, tag: Tag[Profile]
) -> Profile:
    """My own profile, with my address."""
    return tag(await profiles.read(db, images, reader, user.id))


@router.patch(
    "/mypage/profile",
    summary="Change my profile",
    responses=refuses(
        MalformedBody,
        NicknameTaken,
        PreconditionFailed,
        UnsupportedMediaType,
        StorageUnavailable,
        DatabaseUnavailable,
    ),
)
@keyed
async def update_my_profile(
    db: Db,
    images: Images,
    user: CurrentUser,
    reader: CurrentReader,
    expected: Expected,
    tag: Tag[Profile],
    change: ProfileUpdate,
) -> Profile:
    """Change what is given; an avatar that is replaced or taken away is deleted."""
    return tag(await profiles.update_own(db, images, user, reader, change, expected=expected))


@router.get("/mypage/feeds", summary="List my feeds", responses=COUNTED)
async def list_my_feeds(
    db: Db,
    images: Images,
    author: CurrentUser,
    reader: CurrentReader,
    paging: Paging,
    query: Annotated[ListQuery, Query()],
) -> list[FeedRead]:
    """A page of my feeds, newest first unless `sort_by` says otherwise."""
    return paging.answer(await showing.page(db, images, reader, query, Feed.author_id == author.id))


@router.get(
    "/feed/list-by-user",
    summary="List a user's feeds",
    responses=COUNTED | refuses(UserNotFound),
)
async def list_feeds_by_user(
    db: Db,
    images: Images,
    reader: CurrentReader,
    paging: Paging,
    query: Annotated[AuthorQuery, Query()],
) -> list[FeedRead]:
    """A page of one author's feeds; say who by exactly one of `user_id`, `nickname`, `email`."""
    author_id = await profiles.find(db, reader, query)
    return paging.answer(await showing.page(db, images, reader, query, Feed.author_id == author_id))
