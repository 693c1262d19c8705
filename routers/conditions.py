"""Conditional requests (RFC 9110, section 13): the tag of an answer, and what If-Match says.

The tag of a single thing is `"<version>.<hash>"`: the version is of what its editors edit, the hash
of the whole answer. A like in between changes the hash, and is no reason to refuse an edit.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema

from models.base import Versioned
from services.errors import InvalidInput
from services.versions import Expected as _Expected

T = TypeVar("T", bound=Versioned)
# An entity tag (RFC 9110, section 8.8.3): `W/` and the text between its quotes.
TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
# Each blank is matched in one way alone: in two, a long row of them would take time by its square.
_TAGS = re.compile(rf"[ \t]*({TAG.pattern}[ \t]*)?(,[ \t]*({TAG.pattern}[ \t]*)?)*")
_HEADER = Header(
    alias="If-Match",
    description="The `ETag` of what you edit, or several by commas: if somebody has edited it "
    "since, nothing is done (412). Likes and comments do not count.",
)
_Condition = Annotated[str | None, WithJsonSchema({"type": "string", "format": "etag"}), _HEADER]


def etag(body: bytes, version: str | None) -> str:
    """The tag of an answer, without its quotes; single things have a version."""
    # Where processors have instructions for it, SHA-256 is several times as fast as BLAKE2.
    found = sha256(body).hexdigest()[:32]
    return f"{version}.{found}" if version else found


def has(given: str, tag: str) -> bool:
    """Whether the client has it, says If-None-Match; compared weakly (section 8.8.3.2)."""
    return given.strip() == "*" or any(text == tag for _, text in TAG.findall(given))


async def _tag(request: Request) -> Callable[[T], T]:
    def tag(shown: T) -> T:
        request.state.version = shown.version()
        return shown

    return tag


async def _expected(request: Request, if_match: _Condition = None) -> _Expected:
    if if_match is None:
        return None
    given = ", ".join(request.headers.getlist("if-match"))
    if given.strip() == "*":
        return None
    tags = TAG.findall(given)
    if not tags or not _TAGS.fullmatch(given):
        raise InvalidInput(
            'If-Match takes an ETag as it was sent, quotes included ("…"), or several by commas, '
            "or *.",
            pointer="/If-Match",
        )
    # Compared strongly: a weak tag is never the one of what is edited.
    return frozenset(text.partition(".")[0] for weak, text in tags if not weak)


# Remembers the version of what is answered, for its ETag.
Tag = Annotated[Callable[[T], T], Depends(_tag)]
Expected = Annotated[_Expected, Depends(_expected)]
