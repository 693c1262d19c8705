"""A comment: words under a feed, or under another comment."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    MAX_ID,
    Base,
    CursorQuery,
    Identified,
    Integer,
    Shape,
    Timed,
    Versioned,
    storable,
)
from models.feed import SortBy

# Comments on a page of threads, at most. A thread may have any number of replies, a page may not:
# these are 20 threads of 25, and some hundred kilobytes where people write as people do.
MAX_TREE = 500


class Comment(Identified, Timed, Base):
    __tablename__ = "comments"
    __table_args__ = (
        CheckConstraint(
            "author_id IS NOT NULL OR deleted_dt IS NOT NULL", name="kept_has_an_author"
        ),
        Index(None, "feed_id", "create_dt", "id"),
        Index(None, "author_id", "create_dt", "id"),
        # Roots alone, of which a feed may have few among many replies.
        Index(
            "ix_comments_roots",
            "feed_id",
            "create_dt",
            "id",
            postgresql_where=text("parent_id IS NULL"),
        ),
        # A thread, from its root on, in the order in which it is shown.
        Index(None, "root_id", "path"),
        Index(
            "ix_comments_deleted_dt", "deleted_dt", postgresql_where=text("deleted_dt IS NOT NULL")
        ),
    )

    feed_id: Mapped[int] = mapped_column(ForeignKey("feeds.id", ondelete="CASCADE"))
    # Null in a deleted one whose author has left.
    author_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("comments.id", ondelete="CASCADE"), index=True
    )
    # Its thread's first comment, which may be itself, and the ids from there down to it.
    root_id: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    content: Mapped[str]
    like_count: Mapped[int] = mapped_column(server_default="0", default=0)
    # Replies that are shown: those not deleted, and deleted ones that have such replies in turn.
    reply_count: Mapped[int] = mapped_column(server_default="0", default=0)
    deleted_dt: Mapped[datetime | None]


Words = Annotated[str, StringConstraints(min_length=1, max_length=10_000), storable]


class CommentCreate(Shape):
    content: Words = Field(examples=["I had the bibimbap, too!"])
    feed_id: Integer = Field(ge=1, le=MAX_ID, examples=[1])
    parent_id: Integer | None = Field(
        None,
        ge=1,
        le=MAX_ID,
        description="The comment that it replies to, of the same feed.",
    )


class CommentUpdate(Shape):
    content: Words = Field(examples=["I had the bibimbap, twice!"])


class CommentRead(Versioned):
    """A comment; of a deleted one that has replies, no more than its place is left."""

    id: int = Field(examples=[1])
    content: str | None = Field(
        description="Null in a deleted one.", examples=["I had the bibimbap, too!"]
    )
    author_id: int | None = Field(description="Null in a deleted one.", examples=[1])
    author_email: str | None = Field(
        description="Null in a deleted one, and where the instance does not show addresses to "
        "others.",
        examples=["ada@example.com"],
    )
    author_nickname: str | None = Field(description="Null in a deleted one.", examples=["Ada"])
    feed_id: int = Field(examples=[1])
    parent_id: int | None = Field(description="The comment that it replies to.")
    depth: int = Field(description="1 on the feed itself, 2 for a reply to that.", examples=[1])
    like_count: int = Field(examples=[3])
    liked: bool | None = Field(description="Whether I like it; null for whoever is not signed in.")
    deleted: bool = Field(description="Whether it is shown for the sake of its replies only.")
    create_dt: datetime
    update_dt: datetime

    def edited(self) -> list[Any]:
        return [self.content, self.update_dt]


class CommentQuery(CursorQuery):
    sort_by: Literal[SortBy.CREATE_DT_DESC, SortBy.CREATE_DT_ASC] | None = Field(
        None, description="Default: `create_dt_desc`, newest first."
    )
    tree: bool = Field(
        False,
        description="Each comment on the feed itself with all its replies behind it, depth first "
        "and oldest first; `limit` and `sort_by` are then about those on the feed itself. A page "
        f"also ends after {MAX_TREE} comments; the next one goes on there, be it within a thread.",
    )
