"""A mail that waits to be sent: to which address, and what for."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified, one_of
from models.link import LinkKind


class MailKind(StrEnum):
    RESET = "reset"
    VERIFY = "verify"
    CHANGED = "changed"

    @property
    def link(self) -> LinkKind | None:
        """What the link in such a mail is for; None where there is none in it."""
        return None if self is MailKind.CHANGED else LinkKind(self)


class Mail(Identified, Base):
    """Of an address, not of a user: so asking for one is the same work for an address that nobody
    has. The link is made when the mail is sent, so no token is ever stored."""

    __tablename__ = "mails"
    # Who asks again while a mail waits still gets one.
    __table_args__ = (UniqueConstraint("email_key", "kind"),)

    email_key: Mapped[str]
    kind: Mapped[MailKind] = mapped_column(one_of(MailKind, "kind"))
    attempts: Mapped[int] = mapped_column(server_default="0", default=0)
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)
    due_dt: Mapped[datetime] = mapped_column(server_default=NOW, index=True)
    # Sent, or nobody to send it to; kept for a while, so that the next one does not follow at once.
    done_dt: Mapped[datetime | None]
