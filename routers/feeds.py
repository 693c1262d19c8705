"""Feeds over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Form, Query
from pydantic import BeforeValidator, Field, WithJsonSchema

from models.base import MAX_ID, NO_NUL, Message, Shape
from models.feed import Content, FeedRead, FeedRevisionRead, ListQuery, Title
from routers.conditions import Expected, Tag
from routers.dependencies import STRICT, Configured, CurrentReader, CurrentUser, Db, Id, Images
from routers.forms import BLANK, UPLOADS, Files, chosen, named, parts
from routers.idempotency import keyed
from routers.paging import COUNTED, PAGED, PageQuery, Paging
from routers.problems import refuses
from services import feeds, history, showing
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    FeedNotFound,
    Forbidden,
    InvalidInput,
    NotAuthenticated,
    PreconditionFailed,
)

router = APIRouter(
    prefix="/api/feed",
    tags=["Feeds"],
    dependencies=STRICT,
    responses=refuses(ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
_KEPT = BLANK | NO_NUL | {"description": "Left empty, it stays as it is."}
_Url = Annotated[str, WithJsonSchema(BLANK)]
_ImageId = Annotated[
    int,
    Field(ge=1, le=MAX_ID),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_ID, "examples": [""]}),
]
ImageIds = Annotated[list[_ImageId], BeforeValidator(chosen)]


class FeedCreate(Shape):
    title: Title = Field(examples=["Two days in Jeonju"])
    content: Content = Field(examples=["Bibimbap, and a walk through the old town."])
    images: Files = Field([], description="JPEG, PNG, GIF, WebP or AVIF, kept in order.")
    image_ids: ImageIds = Field(
        [], description="Images that you uploaded before, in order; they come before `images`."
    )


class FeedUpdate(Shape):
    """What is left out (or left empty) stays as it is."""

    title: Annotated[Title | None, WithJsonSchema(_KEPT | {"maxLength": 200})] = None
    content: Annotated[Content | None, WithJsonSchema(_KEPT | {"maxLength": 100_000})] = None
    new_images: Files = Field([], description="Added behind the images that stay.")
    target_image_urls: Annotated[list[_Url], BeforeValidator(chosen)] = Field(
        [], description="URLs, out of this feed's `image_urls`, of the images to remove."
    )
    image_ids: ImageIds = Field(
        [],
        description="The whole new order: ids of this feed's images (the others are removed) and "
        "of images that you uploaded before. `new_images` come behind.",
    )


@router.post(
    "/create", summary="Post a feed", responses=UPLOADS, openapi_extra=parts("images", "image_ids")
)
@keyed
async def create_feed(
    db: Db,
    images: Images,
    author: CurrentUser,
    reader: CurrentReader,
    tag: Tag[FeedRead],
    form: Annotated[FeedCreate, Form(media_type="multipart/form-data")],
) -> FeedRead:
    """Post a feed with its images: all of it, or nothing."""
    created = await feeds.create(
        db,
        images,
        author,
        reader,
        title=form.title,
        content=form.content,
        image_ids=form.image_ids,
        uploads=named(form.images),
    )
    return tag(created)


@router.get(
    "/read/{feed_id}", summary="Read a feed", responses=refuses(NotAuthenticated, FeedNotFound)
)
async def read_feed(
    db: Db, images: Images, reader: CurrentReader, tag: Tag[FeedRead], feed_id: Id
) -> FeedRead:
    """One feed; anybody may."""
    return tag(await showing.read(db, images, reader, feed_id))


@router.get(
    "/list",
    summary="List feeds",
    responses=refuses(NotAuthenticated) | COUNTED,
)
async def list_feeds(
    db: Db,
    images: Images,
    reader: CurrentReader,
    paging: Paging,
    query: Annotated[ListQuery, Query()],
) -> list[FeedRead]:
    """A page of all feeds, newest first unless `sort_by` says otherwise; anybody may."""
    return paging.answer(await showing.page(db, images, reader, query))


@router.patch(
    "/update/{feed_id}",
    summary="Change a feed",
    responses=UPLOADS | refuses(Forbidden, FeedNotFound, PreconditionFailed),
    # Every field may be left out, and so may all of them.
    openapi_extra=parts("new_images", "target_image_urls", "image_ids", required=False),
)
@keyed
async def update_feed(
    db: Db,
    images: Images,
    editor: CurrentUser,
    reader: CurrentReader,
    expected: Expected,
    tag: Tag[FeedRead],
    feed_id: Id,
    form: Annotated[FeedUpdate, Form(media_type="multipart/form-data")],
) -> FeedRead:
    """Change words, add images, remove images; only the author may. All of it, or nothing."""
    changed = await feeds.update(
        db,
        images,
        editor,
        reader,
        feed_id,
        title=form.title,
        content=form.content,
        remove_urls=form.target_image_urls,
        image_ids=form.image_ids,
        uploads=named(form.new_images),
        expected=expected,
    )
    return tag(changed)


@router.delete(
    "/delete/{feed_id}",
    summary="Delete a feed",
    responses=refuses(NotAuthenticated, Forbidden, FeedNotFound, PreconditionFailed),
)
@keyed
async def delete_feed(
    db: Db,
    images: Images,
    editor: CurrentUser,
    expected: Expected,
    feed_id: Id,
    settings: Configured,
) -> Message:
    """Delete a feed and its images; its author may, who can restore it for some days.

    So may an administrator, and then it is gone for good.
    """
    restorable = settings.restorable
    return await feeds.delete(db, images, editor, feed_id, restorable=restorable, expected=expected)


@router.post(
    "/restore/{feed_id}",
    summary="Restore a feed",
    responses=refuses(NotAuthenticated, Forbidden, FeedNotFound),
)
@keyed
async def restore_feed(
    db: Db,
    images: Images,
    editor: CurrentUser,
    reader: CurrentReader,
    tag: Tag[FeedRead],
    feed_id: Id,
    settings: Configured,
) -> FeedRead:
    """Bring a feed back that I deleted, with all that it had."""
    restorable = settings.restorable
    return tag(await feeds.restore(db, images, editor, reader, feed_id, restorable=restorable))


@router.get(
    "/history/{feed_id}",
    summary="See how a feed was",
    responses=refuses(NotAuthenticated, Forbidden, FeedNotFound) | PAGED,
)
async def list_revisions(
    db: Db,
    editor: CurrentUser,
    feed_id: Id,
    paging: Paging,
    query: PageQuery,
) -> list[FeedRevisionRead]:
    """How one of my feeds was before each change, latest first."""
    return paging.answer(await history.page(db, editor, feed_id, query))
