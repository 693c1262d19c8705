"""An image: the ledger's row for one object in the bucket."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, Enum, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified


class ImageState(StrEnum):
    """An object is written after its row is `pending`, and deleted after its row is `condemned`."""

    PENDING = "pending"
    ATTACHED = "attached"
    CONDEMNED = "condemned"


class Image(Identified, Base):
    __tablename__ = "images"
    __table_args__ = (
        CheckConstraint("(state = 'attached') = (feed_id IS NOT NULL)", name="attached_to_a_feed"),
        Index(None, "feed_id", "position"),
        Index(None, "reap_dt", postgresql_where="state <> 'attached'"),
    )

    key: Mapped[str] = mapped_column(unique=True)
    state: Mapped[ImageState] = mapped_column(
        Enum(
            ImageState,
            name="state",
            native_enum=False,
            create_constraint=True,
            length=16,
            values_callable=lambda states: [state.value for state in states],
        )
    )
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    feed_id: Mapped[int | None] = mapped_column(ForeignKey("feeds.id"))
    position: Mapped[int] = mapped_column(default=0)
    content_type: Mapped[str]
    bytes: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)
    # When the reaper may delete the object, unless a feed shows it by then.
    reap_dt: Mapped[datetime]
