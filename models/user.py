"""A user: the account that writes."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from email_validator import EmailNotValidError, validate_email
from pydantic import (
    AfterValidator,
    BeforeValidator,
    EmailStr,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic.config import JsonDict
from sqlalchemy import Index, false, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    MAX_ID,
    Base,
    Identified,
    Integer,
    Shape,
    Storable,
    Timed,
    Versioned,
    storable,
)
from models.feed import ListQuery
from models.image import ImageRead
from models.nickname import Nickname


def email_key(email: str) -> str:
    """The form in which e-mail addresses are compared: one for all spellings of an address.

    The domain is taken as DNS has it (IDNA 2008), the rest without regard to case, in any script.
    """
    try:
        found = validate_email(email.strip(), check_deliverability=False)
    except EmailNotValidError:
        return email.strip().casefold()
    return f"{found.local_part.casefold()}@{(found.ascii_domain or found.domain).lower()}"


class User(Identified, Timed, Base):
    __tablename__ = "users"
    __table_args__ = (
        Index("ix_users_leaving_dt", "leaving_dt", postgresql_where=text("leaving_dt IS NOT NULL")),
        # The costs of hashes that came along from another board, as long as there are any.
        Index(
            "ix_users_bcrypt",
            text("substr(password_hash, 5, 2)"),
            postgresql_where=text("password_hash LIKE '$2%'"),
        ),
    )

    email: Mapped[str]
    email_key: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    nickname: Mapped[str]
    nickname_key: Mapped[str] = mapped_column(unique=True)
    bio: Mapped[str] = mapped_column(server_default="", default="")
    # May delete what others wrote; made by `feedboard user create --admin`, never over HTTP.
    is_admin: Mapped[bool] = mapped_column(server_default=false(), default=False)
    # Since when it is known that the address is theirs; null until then.
    verified_dt: Mapped[datetime | None]
    # Kept in the transaction of each follow.
    follower_count: Mapped[int] = mapped_column(server_default="0", default=0)
    following_count: Mapped[int] = mapped_column(server_default="0", default=0)
    # Since when the account is gone; its row, with nothing in it, goes after all that was its own.
    leaving_dt: Mapped[datetime | None]


def _encodable(password: SecretStr) -> SecretStr:
    try:
        password.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("must be text, and half a surrogate pair is none") from None
    return password


Password = Annotated[SecretStr, AfterValidator(_encodable)]
Bio = Annotated[str, StringConstraints(max_length=500), storable]
# White space around it is cut off, so some of it must be something else.
_SOME: JsonDict = {"pattern": r"[^\s\u0085]"}


def bare_address(email: object) -> object:
    """Refuse what EmailStr would take as well: a name in front of the address."""
    if isinstance(email, str) and "<" in email:
        raise ValueError("give the address alone, without a name")
    return email


class Signup(Shape):
    email: Annotated[EmailStr, BeforeValidator(bare_address)] = Field(
        max_length=254, examples=["ada@example.com"]
    )
    password: Password = Field(min_length=8, max_length=128, examples=["correct horse battery"])
    nickname: Nickname = Field(examples=["Ada"], json_schema_extra=_SOME)


class Credentials(Shape):
    # Not checked as an address: an unknown one is a wrong credential, not a malformed request.
    email: Storable = Field(max_length=254, examples=["ada@example.com"])
    password: Password = Field(max_length=128, examples=["correct horse battery"])


class PasswordGrant(Shape):
    """The form of OAuth 2.0's password grant (RFC 6749, section 4.3.2): what Authorize sends."""

    grant_type: Literal["password"] = Field(examples=["password"])
    username: Storable = Field(
        max_length=254, description="The e-mail address.", examples=["ada@example.com"]
    )
    password: Password = Field(max_length=128, examples=["correct horse battery"])
    scope: str = Field("", description="Taken and not used: there are no scopes.")
    client_id: str | None = Field(None, description="Taken and not used.")
    client_secret: str | None = Field(None, description="Taken and not used.")


class UserRead(Shape):
    id: int = Field(examples=[1])
    email: str = Field(examples=["ada@example.com"])
    nickname: str = Field(examples=["Ada"])
    create_dt: datetime


class TokenRead(Shape):
    email: str = Field(examples=["ada@example.com"])
    nickname: str = Field(examples=["Ada"])
    access_token: str = Field(examples=["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIn0.…"])
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a scheme, no secret
    expires_in: int = Field(description="Seconds for which the access token is good.")
    refresh_token: str = Field(
        description="Good for one use at `/api/auth/refresh`, which gives the next one.",
        examples=["kYb0n1J8oQq3mZ5vXw7Rt2cLs9dHf4gAe6uPi0yTnBM"],
    )


class Profile(Versioned):
    id: int = Field(examples=[1])
    nickname: str = Field(examples=["Ada"])
    email: str | None = Field(
        description="Null where the instance does not show addresses to others.",
        examples=["ada@example.com"],
    )
    bio: str = Field(examples=["I walk, and take pictures of it."])
    avatar: ImageRead | None
    feed_count: int = Field(examples=[12])
    follower_count: int = Field(examples=[3])
    following_count: int = Field(examples=[4])
    followed: bool | None = Field(
        description="Whether I follow them; null for whoever is not signed in."
    )
    create_dt: datetime

    def edited(self) -> list[Any]:
        return [self.nickname, self.bio, self.avatar and self.avatar.edited()]


class ProfileUpdate(Shape):
    """What is left out stays as it is."""

    nickname: Nickname = Field(default_factory=str, examples=["Ada"], json_schema_extra=_SOME)
    bio: Bio = Field(default_factory=str, examples=["I walk, and take pictures of it."])
    avatar_id: Integer | None = Field(
        None,
        ge=1,
        le=MAX_ID,
        description="One of my pending images, by id; null takes the avatar away.",
        examples=[None],
    )


class AuthorQuery(ListQuery):
    """Whose feeds: exactly one of the three says it."""

    user_id: int | None = Field(None, ge=1, le=MAX_ID)
    nickname: Storable | None = Field(None, max_length=200, description="Compared as in signup.")
    email: Storable | None = Field(
        None, max_length=254, description="Found only where I may see it, or if it is mine."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(it is not None for it in (self.user_id, self.nickname, self.email)) != 1:
            raise ValueError("give exactly one of user_id, nickname and email")
        return self
