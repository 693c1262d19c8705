"""An idempotency key: that a request was sent under it, and, once it is, how it was answered."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified


class IdempotencyKey(Identified, Base):
    """A row is one attempt's, and its id that attempt's claim: whoever takes over makes a new row.

    Without an answer the request is under way, or its process has died.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("num_nulls(status, headers, body) IN (0, 3)", name="answered_whole"),
    )

    # Of whoever is not signed in, nobody; an account takes its answers along.
    user_id: Mapped[int | None] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    # Of the key and whose it is; of nobody's, also of the request.
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    # Tells whether it is the same request; signed, for requests hold passwords.
    fingerprint: Mapped[bytes]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    body: Mapped[bytes | None]
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW, index=True)
