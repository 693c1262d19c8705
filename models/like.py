"""A like: that somebody likes a feed or a comment; a fact, which is there once or not at all."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import MAX_ID, NOW, Base, Shape


class FeedLike(Base):
    __tablename__ = "feed_likes"
    # Who likes it, latest first.
    __table_args__ = (Index(None, "feed_id", "create_dt", "user_id"),)

    feed_id: Mapped[int] = mapped_column(
        ForeignKey("feeds.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)


class CommentLike(Base):
    __tablename__ = "comment_likes"

    comment_id: Mapped[int] = mapped_column(
        ForeignKey("comments.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)


class LikeRead(Shape):
    user_id: int = Field(examples=[1])
    nickname: str = Field(examples=["Ada"])
    create_dt: datetime


class Liked(Shape):
    liked: bool = Field(description="Whether I like it now.")
    like_count: int = Field(description="How many do.", examples=[3])


class LikeToggled(Liked):
    message: Literal["Like toggled successfully"] = "Like toggled successfully"


_Id = Annotated[int, Field(ge=1, le=MAX_ID)]


class LikeQuery(Shape):
    """What to like: one feed, or one comment."""

    feed_id: _Id | None = None
    comment_id: _Id | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.feed_id is None) == (self.comment_id is None):
            raise ValueError("give either feed_id or comment_id")
        return self
