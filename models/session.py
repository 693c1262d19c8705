"""A session: that somebody is signed in on a device, and the refresh tokens that keep it going."""

from datetime import datetime

from pydantic import Field
from sqlalchemy import ForeignKey, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified, Shape
from models.user import Password


class Session(Identified, Base):
    __tablename__ = "sessions"
    __table_args__ = (
        # One's own, newest first.
        Index(None, "user_id", "create_dt", "id"),
        # Those that ended of late: what each process asks for every second.
        Index(None, "ended_dt", postgresql_where=text("ended_dt IS NOT NULL")),
    )

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    # As of the last use; what a client says of itself, and where it came from.
    device: Mapped[str]
    address: Mapped[str]
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)
    last_used_dt: Mapped[datetime] = mapped_column(server_default=NOW)
    # It ends by itself then; every refresh puts it off.
    expires_dt: Mapped[datetime] = mapped_column(index=True)
    ended_dt: Mapped[datetime | None]


class RefreshToken(Identified, Base):
    """Good for one use. A used one is kept until it expires, to be known if it comes back."""

    __tablename__ = "refresh_tokens"

    session_id: Mapped[int] = mapped_column(
        ForeignKey("sessions.id", ondelete="CASCADE"), index=True
    )
    # SHA-256; the token itself is random enough to need neither salt nor a slow hash.
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    expires_dt: Mapped[datetime] = mapped_column(index=True)
    used_dt: Mapped[datetime | None]


class RefreshGrant(Shape):
    refresh_token: Password = Field(
        min_length=1,
        max_length=200,
        description="From log-in, or from the last refresh.",
        examples=["kYb0n1J8oQq3mZ5vXw7Rt2cLs9dHf4gAe6uPi0yTnBM"],
    )


class LogoutQuery(Shape):
    everywhere: bool = Field(False, description="End all my sessions, not just this one.")


class SessionRead(Shape):
    id: int = Field(examples=[1])
    device: str = Field(
        description="The User-Agent of its last refresh or log-in.",
        examples=["Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"],
    )
    address: str = Field(description="Where that came from.", examples=["203.0.113.7"])
    create_dt: datetime
    last_used_dt: datetime = Field(description="Its last refresh, or the log-in.")
    expires_dt: datetime = Field(description="It ends then, unless it is refreshed before.")
    current: bool = Field(description="Whether it is the one that asks.")
