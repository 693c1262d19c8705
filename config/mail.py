"""What the environment may say of mail: a server, a sender, a page to link to."""

from email.errors import MessageError
from email.headerregistry import Address
from email.utils import parseaddr
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

_SERVER = "smtp://user:password@host:587"


def _server(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        well_formed = (
            parts.scheme in {"smtp", "smtps"}
            and parts.hostname
            and parts.port != 0
            and (parts.username is None) == (parts.password is None)
            and not (parts.path.strip("/") or parts.query or parts.fragment)
        )
    except ValueError:
        # Its own text would show a piece of the password.
        well_formed = False
    if not well_formed:
        raise ValueError(f"it must be a URL such as {_SERVER}, percent-encoded")
    return value


def _sender(value: str) -> str:
    try:
        address = Address(addr_spec=parseaddr(value)[1])
        well_formed = address.username and address.domain and value.isprintable()
    except (ValueError, IndexError, MessageError):
        well_formed = False
    if not well_formed:
        raise ValueError("it must be an address such as Feedboard <board@example.com>")
    return value


def _page(value: str) -> str:
    parts = urlsplit(value)
    known = parts.scheme in {"http", "https"} and parts.hostname
    if not known or value.count("{token}") != 1 or not value.isprintable():
        raise ValueError("it must be a URL such as https://example.com/reset#token={token}")
    return value


MailServer = Annotated[SecretStr, AfterValidator(_server)]
Sender = Annotated[str, AfterValidator(_sender)]
Page = Annotated[str, AfterValidator(_page)]
