"""A comment: words under a feed, or under another comment."""

from datetime import datetime

from sqlalchemy import ARRAY, BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Identified, Timed


class Comment(Identified, Timed, Base):
    __tablename__ = "comments"
    __table_args__ = (
        Index(None, "feed_id", "create_dt", "id"),
        Index(None, "author_id", "create_dt", "id"),
        # A thread, from its root on, in the order in which it is shown.
        Index(None, "root_id", "path"),
        Index(
            "ix_comments_deleted_dt", "deleted_dt", postgresql_where=text("deleted_dt IS NOT NULL")
        ),
    )

    feed_id: Mapped[int] = mapped_column(ForeignKey("feeds.id", ondelete="CASCADE"))
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("comments.id", ondelete="CASCADE"), index=True
    )
    # Its thread's first comment, which may be itself, and the ids from there down to it.
    root_id: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    content: Mapped[str]
    like_count: Mapped[int] = mapped_column(server_default="0", default=0)
    # Replies that are there, deleted ones included while they can be restored or have replies.
    reply_count: Mapped[int] = mapped_column(server_default="0", default=0)
    deleted_dt: Mapped[datetime | None]
