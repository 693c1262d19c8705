"""Images over HTTP: streamed from the bucket; uploaded, described, listed and deleted."""

import asyncio
import re
from typing import Annotated, Self

from fastapi import APIRouter, Form, Header, Path, Request, Response
from pydantic import Field, model_validator
from sqlalchemy import Row
from starlette.types import Receive, Scope, Send

from models.base import Message, Shape
from models.image import Alt, ImagePresign, ImageRead, ImageUpdate, OwnImageRead, PresignedUpload
from routers.conditions import Expected, Tag, has
from routers.dependencies import STRICT, CurrentUser, Db, Id, Images
from routers.forms import UPLOADS, Files, named, parts
from routers.idempotency import keyed
from routers.paging import PAGED, PageQuery, Paging
from routers.problems import refuses
from services import images as service
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    Forbidden,
    ImageNotFound,
    ImageTooLarge,
    InvalidInput,
    MalformedBody,
    NotAuthenticated,
    NothingUploaded,
    PreconditionFailed,
    QuotaExceeded,
    RangeNotSatisfiable,
    StorageUnavailable,
    UnsupportedMediaType,
)
from services.store import CACHE_CONTROL, ImageStore, StoredImage

router = APIRouter(
    prefix="/images",
    tags=["Images"],
    dependencies=STRICT,
    responses=refuses(
        ImageNotFound,
        ContentTooLarge,
        RangeNotSatisfiable,
        InvalidInput,
        StorageUnavailable,
        DatabaseUnavailable,
    )
    | {
        200: {
            "description": "The image, in its true content type.",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        206: {
            "description": "The bytes that `Range` asked for.",
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The client has it already (`If-None-Match`)."},
    },
)
# One range of bytes; anything else that a Range header may say is passed over, as RFC 9110
# (section 14.2) allows, and answered with the whole.
_ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-\d{1,18})")
# Seconds that a client may take for a chunk (64 KiB), before it is cut off.
SEND_PATIENCE = 30.0
Name = Annotated[
    str,
    Path(
        max_length=100,
        description="As in `image_urls`; never built by a client.",
        examples=["DmqkLjB9nV0aXjMzV0yq3A.jpg"],
    ),
]


@router.head(
    "/{name}", name="ask_about_image", summary="Ask about an image", response_class=Response
)
@router.get("/{name}", summary="Load an image", response_class=Response)
async def load_image(
    request: Request,
    db: Db,
    images: Images,
    name: Name,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Immutable under its name, so it may be cached for ever; takes `Range` and `If-None-Match`."""
    shown = await service.shown_by_name(db, name)
    head = shown if request.method == "HEAD" else None
    return await respond(images, name, range_=range_, known=if_none_match, head=head)


async def respond(
    images: ImageStore,
    name: str,
    *,
    range_: str | None,
    known: str | None,
    head: Row[str, str, int] | None = None,
) -> Response:
    """The answer with an image that is shown, or about one, by its row; it has to be sent.

    `range_` and `known` are what Range and If-None-Match say. Raises what `ImageStore.read` does.
    """
    # A name is never given again, so it says which bytes these are.
    tag = name.partition(".")[0]
    headers = {
        "accept-ranges": "bytes",
        "cache-control": CACHE_CONTROL,
        "content-security-policy": "default-src 'none'",
        "etag": f'"{tag}"',
    }
    if known and has(known, tag):
        return Response(status_code=304, headers=headers)
    if head is not None:
        headers |= {"content-type": head.content_type, "content-length": str(head.bytes)}
        return Response(headers=headers)
    image = await images.read(name, range_ if range_ and _is_one_range(range_) else None)
    return _ImageResponse(image, image.headers | headers)


class _ImageResponse(Response):
    """Streams an image, and lets go of it on every path: sent, cut off, or read too slowly."""

    def __init__(self, image: StoredImage, headers: dict[str, str]) -> None:
        super().__init__(status_code=image.status, headers=headers)
        self.image = image

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        now, left = asyncio.get_running_loop().time, asyncio.ensure_future(_left(receive))
        try:
            # One clock for all messages: one for each would cost as much as sending them.
            async with asyncio.timeout(SEND_PATIENCE) as clock:
                start = {"type": "http.response.start", "status": self.status_code}
                await send(start | {"headers": self.raw_headers})
                async for chunk in self.image.chunks():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    if left.done():
                        return
                    clock.reschedule(now() + SEND_PATIENCE)
                await send({"type": "http.response.body"})
        finally:
            left.cancel()
            self.image.close()


async def _left(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_one_range(text: str) -> bool:
    match = _ONE_RANGE.fullmatch(text)
    first, last = match.groups() if match else (None, None)
    return match is not None and not (first and last and int(first) > int(last))


api = APIRouter(
    prefix="/api/image",
    tags=["Images"],
    dependencies=STRICT,
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)


class ImageUpload(Shape):
    images: Annotated[Files, Field(min_length=1)] = Field(
        description="JPEG, PNG, GIF, WebP or AVIF."
    )
    alt: list[Alt] = Field(
        [], description="What each image shows, in words; one for each, or none at all."
    )

    @model_validator(mode="after")
    def _one_for_each(self) -> Self:
        if self.alt and len(self.alt) != len(self.images):
            raise ValueError(f"give one alt for each of the {len(self.images)} images, or none")
        return self


@api.post(
    "/upload", summary="Upload images", responses=UPLOADS, openapi_extra=parts("images", "alt")
)
@keyed
async def upload_images(
    db: Db,
    images: Images,
    owner: CurrentUser,
    form: Annotated[ImageUpload, Form(media_type="multipart/form-data")],
) -> list[ImageRead]:
    """Store images now and post them later, by their ids (`image_ids`), within the grace."""
    return await service.upload(db, images, owner, uploads=named(form.images, form.alt))


@api.post(
    "/presign",
    summary="Ask for a direct upload",
    responses=refuses(
        MalformedBody,
        ContentTooLarge,
        ImageTooLarge,
        QuotaExceeded,
        UnsupportedMediaType,
        StorageUnavailable,
        DatabaseUnavailable,
    ),
)
@keyed
async def presign_image(
    db: Db, images: Images, owner: CurrentUser, upload: ImagePresign
) -> PresignedUpload:
    """For a big file or a slow client: get a form, send the file to the store by it, `complete`."""
    return await service.presign(db, images, owner, upload)


@api.post(
    "/{image_id:int}/complete",
    summary="Complete a direct upload",
    responses=UPLOADS | refuses(Forbidden, ImageNotFound, NothingUploaded),
)
@keyed
async def complete_image(
    db: Db, images: Images, owner: CurrentUser, tag: Tag[ImageRead], image_id: Id
) -> ImageRead:
    """Have the uploaded file checked, cleaned and kept, as any other; then post it by its id."""
    return tag(await service.complete(db, images, owner, image_id))


@api.get("/mine", summary="List my images", responses=PAGED)
async def list_my_images(
    db: Db,
    images: Images,
    owner: CurrentUser,
    paging: Paging,
    query: PageQuery,
) -> list[OwnImageRead]:
    """What I uploaded, newest first, whether or not a feed shows it."""
    return paging.answer(await service.mine(db, images, owner, query))


@api.get(
    "/{image_id:int}", summary="See one of my images", responses=refuses(Forbidden, ImageNotFound)
)
async def read_image(
    db: Db, images: Images, owner: CurrentUser, tag: Tag[ImageRead], image_id: Id
) -> ImageRead:
    """One of my images, whether or not a feed shows it."""
    return tag(await service.read_own(db, images, owner, image_id))


@api.patch(
    "/{image_id:int}",
    summary="Describe an image",
    responses=refuses(
        MalformedBody, Forbidden, ImageNotFound, PreconditionFailed, UnsupportedMediaType
    ),
)
@keyed
async def describe_image(
    db: Db,
    images: Images,
    owner: CurrentUser,
    expected: Expected,
    tag: Tag[ImageRead],
    image_id: Id,
    change: ImageUpdate,
) -> ImageRead:
    """Say in words what one of my images shows."""
    alt = change.alt
    return tag(await service.describe(db, images, owner, image_id, alt=alt, expected=expected))


@api.delete(
    "/{image_id:int}",
    summary="Delete an image",
    responses=refuses(Forbidden, ImageNotFound, PreconditionFailed),
)
@keyed
async def delete_image(
    db: Db, images: Images, owner: CurrentUser, expected: Expected, image_id: Id
) -> Message:
    """Delete one of my images, also from the feed that shows it."""
    return await service.delete(db, images, owner, image_id, expected=expected)
