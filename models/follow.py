"""A follow: that somebody wants to see what somebody else posts."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field
from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Shape
from models.image import ImageRead


class Follow(Base):
    __tablename__ = "follows"
    __table_args__ = (
        CheckConstraint("follower_id <> followed_id", name="not_oneself"),
        Index(None, "followed_id", "create_dt", "follower_id"),
        Index(None, "follower_id", "create_dt", "followed_id"),
    )

    follower_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    followed_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)


class FollowAction(StrEnum):
    FOLLOWED = "followed"
    UNFOLLOWED = "unfollowed"


class FollowToggled(Shape):
    action: FollowAction = Field(description="What it came to.")


class FollowRead(Shape):
    followed: bool
    follower_count: int = Field(description="How many follow that user now.", examples=[3])


class Person(Shape):
    """One of those who follow, or are followed."""

    user_id: int = Field(examples=[1])
    nickname: str = Field(examples=["Ada"])
    avatar: ImageRead | None
    create_dt: datetime = Field(description="Since when.")
