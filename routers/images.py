"""Images over HTTP: the service streams what the bucket holds."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import StreamingResponse

from routers.dependencies import Images, known_body, known_parameters
from routers.problems import refuses
from services.errors import (
    ContentTooLarge,
    ImageNotFound,
    InvalidInput,
    RangeNotSatisfiable,
    StorageUnavailable,
)
from services.images import CACHE_CONTROL

router = APIRouter(
    prefix="/images",
    tags=["Images"],
    dependencies=[Depends(known_parameters), Depends(known_body)],
    responses=refuses(
        ImageNotFound, ContentTooLarge, RangeNotSatisfiable, InvalidInput, StorageUnavailable
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
_ONE_RANGE = re.compile(r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")
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
@router.get("/{name}", summary="Load an image", response_class=StreamingResponse)
async def load_image(
    request: Request,
    images: Images,
    name: Name,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Immutable under its name, so it may be cached for ever; takes `Range` and `If-None-Match`."""
    conditions = {}
    if range_ and _ONE_RANGE.fullmatch(range_):
        conditions["Range"] = range_
    if if_none_match:
        conditions["IfNoneMatch"] = if_none_match
    with_body = request.method == "GET"
    image = await images.read(name, with_body=with_body, **conditions)
    headers = image.headers | {
        "accept-ranges": "bytes",
        "cache-control": CACHE_CONTROL,
        "x-content-type-options": "nosniff",
    }
    if image.body is None:
        return Response(status_code=image.status, headers=headers)
    return StreamingResponse(image.chunks(), status_code=image.status, headers=headers)
