"""A feed: a title, some words and any number of images, by one author."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints
from sqlalchemy import ARRAY, BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, CursorQuery, Identified, Shape, Timed, Versioned, storable
from models.image import ImageRead

DELETED = text("deleted_dt IS NOT NULL")


class Feed(Identified, Timed, Base):
    __tablename__ = "feeds"
    # Each list order is one index, read forwards or backwards; the id breaks ties.
    __table_args__ = (
        Index(None, "create_dt", "id", postgresql_where=text("deleted_dt IS NULL")),
        Index(None, "update_dt", "id", postgresql_where=text("deleted_dt IS NULL")),
        Index(None, "author_id", "create_dt", "id", postgresql_where=text("deleted_dt IS NULL")),
        # What can still be restored, by its author and by time.
        Index("ix_feeds_deleted", "author_id", "deleted_dt", postgresql_where=DELETED),
        Index("ix_feeds_deleted_dt", "deleted_dt", postgresql_where=DELETED),
    )

    title: Mapped[str]
    content: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    # Kept in the transaction of each like and each comment.
    like_count: Mapped[int] = mapped_column(server_default="0", default=0)
    comment_count: Mapped[int] = mapped_column(server_default="0", default=0)
    deleted_dt: Mapped[datetime | None]


class FeedRevision(Identified, Base):
    """A feed as it was until it was changed."""

    __tablename__ = "feed_revisions"

    feed_id: Mapped[int] = mapped_column(ForeignKey("feeds.id", ondelete="CASCADE"), index=True)
    title: Mapped[str]
    content: Mapped[str]
    image_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    # Until when it was so.
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)


Title = Annotated[str, StringConstraints(min_length=1, max_length=200), storable]
Content = Annotated[str, StringConstraints(min_length=1, max_length=100_000), storable]


class FeedRead(Versioned):
    EDITED: ClassVar = ("title", "content", "images", "update_dt")

    id: int = Field(examples=[1])
    title: str = Field(examples=["Two days in Jeonju"])
    content: str = Field(examples=["Bibimbap, and a walk through the old town."])
    author_id: int = Field(examples=[1])
    author_email: str | None = Field(
        description="Null where the instance does not show addresses to others.",
        examples=["ada@example.com"],
    )
    author_nickname: str = Field(examples=["Ada"])
    image_urls: list[str] = Field(
        description="Absolute URLs, in the order of their upload.",
        examples=[["http://localhost:8000/images/DmqkLjB9nV0aXjMzV0yq3A.jpg"]],
    )
    images: list[ImageRead] = Field(description="The same images, with all that a gallery needs.")
    like_count: int = Field(examples=[3])
    comment_count: int = Field(examples=[2])
    liked: bool | None = Field(description="Whether I like it; null for whoever is not signed in.")
    create_dt: datetime
    update_dt: datetime

    def edited(self) -> list[Any]:
        return [getattr(self, name) for name in self.EDITED]


class FeedRevisionRead(Shape):
    """A feed as it was."""

    id: int = Field(examples=[9])
    title: str = Field(examples=["Two days in Jeonju"])
    content: str = Field(examples=["Bibimbap, and a walk."])
    image_ids: list[int] = Field(description="In order; some may be deleted.", examples=[[3, 4]])
    create_dt: datetime = Field(description="Until when it was so.")


class Deleted(Shape):
    """Something of mine that I deleted and can restore."""

    kind: Literal["feed", "comment"]
    id: int = Field(examples=[1])
    title: str | None = Field(description="Of a feed.", examples=["Two days in Jeonju"])
    content: str = Field(examples=["Bibimbap, and a walk."])
    deleted_dt: datetime
    restorable_until: datetime


class SortBy(StrEnum):
    CREATE_DT_DESC = "create_dt_desc"
    CREATE_DT_ASC = "create_dt_asc"
    UPDATE_DT_DESC = "update_dt_desc"
    UPDATE_DT_ASC = "update_dt_asc"


class ListQuery(CursorQuery):
    sort_by: SortBy | None = Field(None, description="Default: `create_dt_desc`, newest first.")
    skip: int = Field(0, ge=0, le=10_000, description="How many to pass over; prefer `cursor`.")
    total: bool = Field(False, description="Count all in the header `X-Total-Count`.")
