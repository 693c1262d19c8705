"""Forms with files: how they are shown, sent and read."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import UploadFile
from pydantic import BeforeValidator, WithJsonSchema

from routers.problems import refuses
from services.errors import (
    ContentTooLarge,
    DamagedImage,
    DatabaseUnavailable,
    ImageTooLarge,
    InvalidInput,
    MalformedBody,
    NotAuthenticated,
    QuotaExceeded,
    StorageUnavailable,
    UnsupportedImage,
    UnsupportedMediaType,
)
from services.ledger import Upload

# What a route that takes images can refuse.
UPLOADS = refuses(
    MalformedBody,
    NotAuthenticated,
    ContentTooLarge,
    ImageTooLarge,
    QuotaExceeded,
    UnsupportedImage,
    UnsupportedMediaType,
    InvalidInput,
    DamagedImage,
    DatabaseUnavailable,
    StorageUnavailable,
)


def chosen(items: Any) -> Any:
    """Without what a form sends where nothing was chosen: empty text, or a file of no bytes."""
    if not isinstance(items, list):
        return items
    return [item for item in items if item != "" and getattr(item, "size", None) != 0]


# FastAPI marks files by contentMediaType alone, and Swagger UI shows a file picker for a format.
# An empty example is what it shows, and sends, where it would otherwise make up "string".
BLANK: dict[str, Any] = {"type": "string", "examples": [""]}
_File = Annotated[UploadFile, WithJsonSchema(BLANK | {"format": "binary"})]
Files = Annotated[list[_File], BeforeValidator(chosen)]


def parts(*fields: str, required: bool = True) -> dict[str, Any]:
    """What makes Swagger UI send each item of an array as a part, not all in one with commas."""
    encoding = {field: {"style": "form", "explode": True} for field in fields}
    content = {"multipart/form-data": {"encoding": encoding}}
    return {"requestBody": {"content": content, "required": required}}


def named(files: list[UploadFile], alts: Sequence[str] = ()) -> list[Upload]:
    """Files with their names, and with their descriptions where there are any."""
    pairs = zip(files, alts or [""] * len(files), strict=True)
    return [Upload(file.file, file.filename or "", alt) for file, alt in pairs]
