"""Records: a board's things as they travel, whatever board they come from.

They are the lines of an export, whose fields `docs/moving-in.md` tells.
"""

import json
from abc import abstractmethod
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    EmailStr,
    Field,
    StringConstraints,
    model_validator,
)

from models.base import Shape, Storable, storable
from models.comment import Words
from models.feed import Content, Title
from models.image import Alt
from models.user import Bio, bare_address


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sane(time: datetime) -> datetime:
    # Beyond these, a time cannot be brought to UTC, or PostgreSQL's "infinity" is meant.
    if not 1 < time.year < 9998:
        raise ValueError("is no time of this world")
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# Any text that the other board calls a thing by; numbers are taken as text, too.
OldId = Annotated[
    str, StringConstraints(min_length=1, max_length=200), storable, BeforeValidator(_as_text)
]
# Without a zone it is UTC.
Time = Annotated[datetime, AfterValidator(_sane)]


class Picture(Shape):
    """A file of the place where the board's images lie."""

    file: Storable
    alt: Alt = ""


class Record(Shape):
    @abstractmethod
    def key(self) -> str:
        """What the record is known by among those of its kind."""


class _Identified(Record):
    id: OldId
    create_dt: Time | None = None
    update_dt: Time | None = None

    def key(self) -> str:
        return self.id


class UserRecord(_Identified):
    email: Annotated[EmailStr, BeforeValidator(bare_address)] = Field(max_length=254)
    # Made fit, and free, where it is not.
    nickname: str | None = None
    password_hash: str | None = None
    bio: Bio = ""
    is_admin: bool = False
    verified_dt: Time | None = None


class AvatarRecord(Record):
    user_id: OldId
    image: Picture

    def key(self) -> str:
        return self.user_id


class FeedRecord(_Identified):
    author_id: OldId
    title: Title
    content: Content
    images: list[Picture] = Field(default_factory=list)


class CommentRecord(_Identified):
    """A comment; without author and content it is a deleted one, which holds its replies' place."""

    feed_id: OldId
    author_id: OldId | None
    content: Words | None
    parent_id: OldId | None = None

    @model_validator(mode="after")
    def _whole_or_none(self) -> Self:
        if (self.author_id is None) != (self.content is None):
            raise ValueError("needs both an author and words")
        return self


class LikeRecord(Record):
    user_id: OldId
    feed_id: OldId | None = None
    comment_id: OldId | None = None
    create_dt: Time | None = None

    def key(self) -> str:
        # As JSON, since ids may be any text, and none may run into the next.
        return json.dumps([self.user_id, self.feed_id, self.comment_id])

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.feed_id is None) == (self.comment_id is None):
            raise ValueError("names either a feed or a comment")
        return self


class FollowRecord(Record):
    follower_id: OldId
    followed_id: OldId
    create_dt: Time | None = None

    def key(self) -> str:
        return json.dumps([self.follower_id, self.followed_id])
