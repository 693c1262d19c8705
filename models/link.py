"""A link: what a mail carries so that its reader may do one thing, once, without logging in."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, EmailStr, Field, StringConstraints
from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Identified, Shape, one_of
from models.user import Password, bare_address


class LinkKind(StrEnum):
    RESET = "reset"
    VERIFY = "verify"

    @property
    def life(self) -> timedelta:
        """How long a link of this kind is good, from when its mail is sent."""
        return timedelta(minutes=30) if self is LinkKind.RESET else timedelta(days=1)


class Link(Identified, Base):
    __tablename__ = "links"
    __table_args__ = (Index(None, "user_id", "kind"),)

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    kind: Mapped[LinkKind] = mapped_column(one_of(LinkKind, "kind"))
    # SHA-256 of the token, which nobody but the mail's reader has. A token is random all through,
    # so that a slow hash would protect nothing more.
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    expires_dt: Mapped[datetime] = mapped_column(index=True)


Token = Annotated[str, StringConstraints(min_length=1, max_length=100)]
_WHERE = "What stands in the mail's link behind `#token=`."


class PasswordChange(Shape):
    old_password: Password = Field(max_length=128, examples=["correct horse battery"])
    new_password: Password = Field(min_length=8, max_length=128, examples=["four words, all mine"])


class PasswordForgotten(Shape):
    email: Annotated[EmailStr, BeforeValidator(bare_address)] = Field(
        max_length=254, examples=["ada@example.com"]
    )


class PasswordReset(Shape):
    token: Token = Field(
        description=_WHERE, examples=["DmqkLjB9nV0aXjMzV0yq3ADmqkLjB9nV0aXjMzV0yq3"]
    )
    password: Password = Field(min_length=8, max_length=128, examples=["four words, all mine"])


class EmailVerification(Shape):
    token: Token = Field(
        description=_WHERE, examples=["jMzV0yq3ADmqkLjB9nV0aXDmqkLjB9nV0aXjMzV0yq3"]
    )
