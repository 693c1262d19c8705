"""What the values of settings have to be; each says so in a sentence when one is not."""

import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, StringConstraints
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from config.addresses import parse_networks
from config.rates import parse_rates
from config.redis import redis_uri

# As browsers send it in the header Origin: no path, no capitals.
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_KEY_LENGTH = 32


def listed(secrets: SecretStr | None) -> list[str]:
    """Secrets that are separated by commas."""
    parts = secrets.get_secret_value().split(",") if secrets else []
    return [part.strip() for part in parts if part.strip()]


def _checked(parse: Callable[[Any], object]) -> AfterValidator:
    """Keep the text of a setting, if it can be parsed."""

    def check(text: Any) -> Any:
        parse(text)
        return text

    return AfterValidator(check)


def _database_url(value: str) -> str:
    try:
        url = make_url(value)
    except ArgumentError as error:
        raise ValueError("not a database URL") from error
    if url.drivername not in {"postgresql", "postgres", "postgresql+asyncpg"}:
        raise ValueError("it must begin with postgresql+asyncpg:// (or postgresql://)")
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")  # as asyncpg calls it
    url = url.set(drivername="postgresql+asyncpg", query=query)
    return url.render_as_string(hide_password=False)


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise ValueError("it must be a URL such as https://feeds.example.com")
    return value.rstrip("/")


def _secret_key(value: SecretStr) -> None:
    if len(value.get_secret_value().encode()) < _KEY_LENGTH:
        raise ValueError("it must be at least 32 characters long (try: openssl rand -hex 32)")


def _secret_keys(value: SecretStr) -> None:
    if any(len(key.encode()) < _KEY_LENGTH for key in listed(value)):
        raise ValueError("each key must be at least 32 characters long")


def _origins(value: str) -> str:
    origins = [origin.strip() for origin in value.split(",")]
    if origins != ["*"] and not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError(
            "it must be * alone, or origins such as https://board.example.com by commas, with no "
            "path and no slash at the end"
        )
    return ",".join(origins)


def _host_names(value: str) -> str:
    names = [name.strip().lower() for name in value.split(",")]
    if names != ["*"] and not all(map(_HOST_NAME.fullmatch, names)):
        raise ValueError(
            "it must be * alone, or names such as board.example.com or *.example.com by commas, "
            "with no port"
        )
    return ",".join(names)


Text = Annotated[str, StringConstraints(min_length=1)]
DatabaseUrl = Annotated[Text, AfterValidator(_database_url)]
HttpUrl = Annotated[Text, AfterValidator(_http_url)]
SecretKey = Annotated[SecretStr, _checked(_secret_key)]
SecretKeys = Annotated[SecretStr, _checked(_secret_keys)]
Origins = Annotated[str, AfterValidator(_origins)]
HostNames = Annotated[str, AfterValidator(_host_names)]
Networks = Annotated[str, _checked(parse_networks)]
Rates = Annotated[str, _checked(parse_rates)]
RedisUrl = Annotated[SecretStr, _checked(lambda url: redis_uri(url.get_secret_value()))]
