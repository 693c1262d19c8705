"""A user: the account that writes."""

from datetime import datetime
from typing import Annotated, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BeforeValidator, EmailStr, Field, SecretStr, StringConstraints
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Identified, Shape, Storable, Timed, storable


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

    email: Mapped[str]
    email_key: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    nickname: Mapped[str]


def _encodable(password: SecretStr) -> SecretStr:
    try:
        password.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("must be text, and half a surrogate pair is none") from None
    return password


Password = Annotated[SecretStr, AfterValidator(_encodable)]
Nickname = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=50), storable
]


def _bare(email: object) -> object:
    """Refuse what EmailStr would take as well: a name in front of the address."""
    if isinstance(email, str) and "<" in email:
        raise ValueError("give the address alone, without a name")
    return email


class Signup(Shape):
    email: Annotated[EmailStr, BeforeValidator(_bare)] = Field(
        max_length=254, examples=["ada@example.com"]
    )
    password: Password = Field(min_length=8, max_length=128, examples=["correct horse battery"])
    # White space around it is cut off, so some of it must be something else.
    nickname: Nickname = Field(examples=["Ada"], json_schema_extra={"pattern": r"[^\s\u0085]"})


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
