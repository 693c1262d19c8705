"""An import: that a board of another name was brought in, and what has become of its things."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified, one_of


class Kind(StrEnum):
    """What a board is made of, in the order in which it is taken in."""

    USERS = "users"
    AVATARS = "avatars"
    FEEDS = "feeds"
    COMMENTS = "comments"
    LIKES = "likes"
    FOLLOWS = "follows"


class Import(Identified, Base):
    """A board that was brought in, by the name under which it was."""

    __tablename__ = "imports"

    name: Mapped[str] = mapped_column(unique=True)
    # Ids of feeds that are kept for its feeds: this board gives them to no others.
    feeds_after: Mapped[int] = mapped_column(BigInteger)
    feeds_until: Mapped[int] = mapped_column(BigInteger)
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)


class Imported(Identified, Base):
    """That something was taken, written in the transaction that took it.

    It stays when the thing goes: what was deleted here does not come back with the next import.
    """

    __tablename__ = "imported"
    __table_args__ = (UniqueConstraint("import_id", "kind", "old_id"),)

    import_id: Mapped[int] = mapped_column(ForeignKey("imports.id", ondelete="CASCADE"))
    kind: Mapped[Kind] = mapped_column(one_of(Kind, "kind"))
    # As the other board has it, which may be any text; of a like or a follow the ids of both ends.
    old_id: Mapped[str]
    # Null of what has no id of its own, and no foreign key, as it outlives what it names.
    new_id: Mapped[int | None] = mapped_column(BigInteger)
