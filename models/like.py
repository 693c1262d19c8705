"""A like: that somebody likes a feed or a comment; a fact, which is there once or not at all."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base


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
