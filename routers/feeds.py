"""Feeds over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request, Response, UploadFile
from pydantic import BeforeValidator, Field, WithJsonSchema

from models.base import NO_NUL, Message, Shape
from models.feed import Content, FeedRead, ListQuery, Title
from routers.dependencies import (
    CurrentUser,
    Db,
    Id,
    Images,
    known_body,
    known_parameters,
    link_next,
)
from routers.problems import refuses
from services import feeds
from services.errors import (
    ContentTooLarge,
    DamagedImage,
    DatabaseUnavailable,
    FeedNotFound,
    Forbidden,
    ImageTooLarge,
    InvalidInput,
    MalformedBody,
    NotAuthenticated,
    StorageUnavailable,
    UnsupportedImage,
    UnsupportedMediaType,
)
from services.images import Upload

router = APIRouter(
    prefix="/api/feed",
    tags=["Feeds"],
    dependencies=[Depends(known_parameters), Depends(known_body)],
    responses=refuses(ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
_UPLOADS = refuses(
    MalformedBody,
    NotAuthenticated,
    ContentTooLarge,
    ImageTooLarge,
    UnsupportedImage,
    UnsupportedMediaType,
    InvalidInput,
    DamagedImage,
    DatabaseUnavailable,
    StorageUnavailable,
)


def _chosen(items: Any) -> Any:
    """Without what a form sends where nothing was chosen: empty text, or a file of no bytes."""
    if not isinstance(items, list):
        return items
    return [item for item in items if item != "" and getattr(item, "size", None) != 0]


# FastAPI marks files by contentMediaType alone, and Swagger UI shows a file picker for a format.
# An empty example is what it shows, and sends, where it would otherwise make up "string".
_BLANK: dict[str, Any] = {"type": "string", "examples": [""]}
_KEPT = _BLANK | NO_NUL | {"description": "Left empty, it stays as it is."}
_File = Annotated[UploadFile, WithJsonSchema(_BLANK | {"format": "binary"})]
_Url = Annotated[str, WithJsonSchema(_BLANK)]
Files = Annotated[list[_File], BeforeValidator(_chosen)]


def _parts(*fields: str, required: bool = True) -> dict[str, Any]:
    """What makes Swagger UI send each item of an array as a part, not all in one with commas."""
    encoding = {field: {"style": "form", "explode": True} for field in fields}
    content = {"multipart/form-data": {"encoding": encoding}}
    return {"requestBody": {"content": content, "required": required}}


def _named(files: list[UploadFile]) -> list[Upload]:
    return [(file.file, file.filename or "") for file in files]


class FeedCreate(Shape):
    title: Title = Field(examples=["Two days in Jeonju"])
    content: Content = Field(examples=["Bibimbap, and a walk through the old town."])
    images: Files = Field([], description="JPEG, PNG, GIF, WebP or AVIF, kept in order.")


class FeedUpdate(Shape):
    """What is left out (or left empty) stays as it is."""

    title: Annotated[Title | None, WithJsonSchema(_KEPT | {"maxLength": 200})] = None
    content: Annotated[Content | None, WithJsonSchema(_KEPT | {"maxLength": 100_000})] = None
    new_images: Files = Field([], description="Added behind the images that stay.")
    target_image_urls: Annotated[list[_Url], BeforeValidator(_chosen)] = Field(
        [], description="URLs, out of this feed's `image_urls`, of the images to remove."
    )


@router.post("/create", summary="Post a feed", responses=_UPLOADS, openapi_extra=_parts("images"))
async def create_feed(
    db: Db,
    images: Images,
    author: CurrentUser,
    form: Annotated[FeedCreate, Form(media_type="multipart/form-data")],
) -> FeedRead:
    """Post a feed with its images: all of it, or nothing."""
    return await feeds.create(
        db, images, author, title=form.title, content=form.content, uploads=_named(form.images)
    )


@router.get("/read/{feed_id}", summary="Read a feed", responses=refuses(FeedNotFound))
async def read_feed(db: Db, images: Images, feed_id: Id) -> FeedRead:
    """One feed; anybody may."""
    return await feeds.read(db, images, feed_id)


@router.get(
    "/list",
    summary="List feeds",
    responses={
        200: {
            "headers": {
                "Link": {
                    "description": 'While there is more: the next page, `rel="next"` (RFC 8288).',
                    "schema": {"type": "string"},
                },
                "X-Total-Count": {
                    "description": "With `total=true`: how many feeds there are.",
                    "schema": {"type": "integer"},
                },
            }
        }
    },
)
async def list_feeds(
    db: Db,
    images: Images,
    request: Request,
    response: Response,
    query: Annotated[ListQuery, Query()],
) -> list[FeedRead]:
    """A page of all feeds, newest first unless `sort_by` says otherwise; anybody may."""
    page = await feeds.page(db, images, query)
    link_next(request, response, page.next)
    if page.total is not None:
        response.headers["X-Total-Count"] = str(page.total)
    return page.feeds


@router.patch(
    "/update/{feed_id}",
    summary="Change a feed",
    responses=_UPLOADS | refuses(Forbidden, FeedNotFound),
    # Every field may be left out, and so may all of them.
    openapi_extra=_parts("new_images", "target_image_urls", required=False),
)
async def update_feed(
    db: Db,
    images: Images,
    editor: CurrentUser,
    feed_id: Id,
    form: Annotated[FeedUpdate, Form(media_type="multipart/form-data")],
) -> FeedRead:
    """Change words, add images, remove images; only the author may. All of it, or nothing."""
    return await feeds.update(
        db,
        images,
        editor,
        feed_id,
        title=form.title,
        content=form.content,
        remove_urls=form.target_image_urls,
        uploads=_named(form.new_images),
    )


@router.delete(
    "/delete/{feed_id}",
    summary="Delete a feed",
    responses=refuses(NotAuthenticated, Forbidden, FeedNotFound),
)
async def delete_feed(db: Db, images: Images, editor: CurrentUser, feed_id: Id) -> Message:
    """Delete a feed and its images; only the author may."""
    await feeds.delete(db, images, editor, feed_id)
    return Message(message="Feed Deleted")
