"""A follow: that somebody wants to see what somebody else posts."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base


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
