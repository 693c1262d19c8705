"""A mail that waits to be sent: to which address, and what for."""

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified
from models.link import LINK_KIND, LinkKind


class Mail(Identified, Base):
    """Of an address, not of a user: so asking for one is the same work for an address that nobody
    has. The link is made when the mail is sent, so no token is ever stored."""

    __tablename__ = "mails"
    # Who asks again while a mail waits still gets one.
    __table_args__ = (UniqueConstraint("email_key", "kind"),)

    email_key: Mapped[str]
    kind: Mapped[LinkKind] = mapped_column(LINK_KIND)
    attempts: Mapped[int] = mapped_column(server_default="0", default=0)
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)
    due_dt: Mapped[datetime] = mapped_column(server_default=NOW, index=True)
