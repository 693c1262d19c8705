"""A feed: a title, some words and any number of images, by one author."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints
from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CursorQuery, Identified, Shape, Timed, storable
from models.image import ImageRead


class Feed(Identified, Timed, Base):
    __tablename__ = "feeds"
    # Each list order is one index, read forwards or backwards; the id breaks ties.
    __table_args__ = (Index(None, "create_dt", "id"), Index(None, "update_dt", "id"))

    title: Mapped[str]
    content: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)


Title = Annotated[str, StringConstraints(min_length=1, max_length=200), storable]
Content = Annotated[str, StringConstraints(min_length=1, max_length=100_000), storable]


class FeedRead(Shape):
    id: int = Field(examples=[1])
    title: str = Field(examples=["Two days in Jeonju"])
    content: str = Field(examples=["Bibimbap, and a walk through the old town."])
    author_email: str = Field(examples=["ada@example.com"])
    author_nickname: str = Field(examples=["Ada"])
    image_urls: list[str] = Field(
        description="Absolute URLs, in the order of their upload.",
        examples=[["http://localhost:8000/images/DmqkLjB9nV0aXjMzV0yq3A.jpg"]],
    )
    images: list[ImageRead] = Field(description="The same images, with all that a gallery needs.")
    create_dt: datetime
    update_dt: datetime


class SortBy(StrEnum):
    CREATE_DT_DESC = "create_dt_desc"
    CREATE_DT_ASC = "create_dt_asc"
    UPDATE_DT_DESC = "update_dt_desc"
    UPDATE_DT_ASC = "update_dt_asc"


class ListQuery(CursorQuery):
    sort_by: SortBy | None = Field(None, description="Default: `create_dt_desc`, newest first.")
    skip: int = Field(0, ge=0, le=10_000, description="How many to pass over; prefer `cursor`.")
    total: bool = Field(False, description="Count all in the header `X-Total-Count`.")
