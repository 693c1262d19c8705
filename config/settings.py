"""Everything that the environment may change, each with a line of why."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from config.addresses import Network, parse_networks
from config.mail import MailServer, Page, Sender
from config.rates import Rate, RouteClass, parse_rates
from config.redis import redis_uri
from config.values import (
    DatabaseUrl,
    HostNames,
    HttpUrl,
    Networks,
    Origins,
    Rates,
    RedisUrl,
    SecretKey,
    SecretKeys,
    Text,
    listed,
)

MIB = 1024 * 1024


class SettingsError(Exception):
    """The service cannot start in this environment; the text tells a person why."""


class Settings(BaseSettings):
    """Read from the environment and from `.env`; handed to `create_app`, never a global."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    database_url: DatabaseUrl | None = Field(
        None,
        description="PostgreSQL, as `postgresql+asyncpg://user:password@host/name` "
        "(`postgresql://` is taken too; a Unix socket is `?host=/folder`). Unset: an embedded one "
        "under `DATA_DIR`.",
    )
    database_pool_size: int = Field(
        10, ge=1, le=1000, description="Connections to the database that a process keeps, at most."
    )
    database_pooler: bool = Field(
        False,
        description="Whether `DATABASE_URL` leads to a pooler of transactions, such as PgBouncer "
        "([scaling.md](scaling.md#pgbouncer)).",
    )
    database_direct_url: DatabaseUrl | None = Field(
        None,
        description="Behind a pooler: PostgreSQL itself, for migrations and for hearing at once of "
        "sessions that end elsewhere. Unset: both go through the pooler, and it takes a second.",
    )
    s3_bucket: Text | None = Field(
        None, description="Where images are kept. Unset: an embedded store under `DATA_DIR`."
    )
    s3_access_key: Text | None = Field(
        None,
        description="Access key id. Unset with its secret: the AWS chain (role, profile) decides.",
    )
    s3_secret_key: SecretStr | None = Field(None, description="Secret of the access key.")
    s3_region: Text = Field("ap-northeast-2", description="Region of the bucket.")
    s3_endpoint_url: HttpUrl | None = Field(
        None, description="An S3-compatible store of your own; unset means AWS."
    )
    s3_public_url: HttpUrl | None = Field(
        None,
        description="Where clients load images from (a CDN, a public bucket), before `/images/…`. "
        "Unset: the service streams them itself.",
    )
    s3_key_prefix: str = Field(
        "",
        pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$",
        description="A folder in the bucket, such as `boards/one`, for one that is shared.",
    )
    s3_upload_url: HttpUrl | None = Field(
        None,
        description="The store as clients reach it, for direct uploads, where `S3_ENDPOINT_URL` is "
        "an inner address.",
    )
    other_s3_endpoint_url: HttpUrl | None = Field(
        None,
        description="The store of `s3://…` that commands are given (backup, restore, import, "
        "export, move), if it is not the board's own.",
    )
    other_s3_access_key: Text | None = Field(None, description="Access key id of that store.")
    other_s3_secret_key: SecretStr | None = Field(None, description="Secret of that key.")
    other_s3_region: Text | None = Field(None, description="Its region. Unset: `S3_REGION`.")
    public_url: HttpUrl | None = Field(
        None,
        validate_default=False,
        description="How clients reach the service. Default: `http://localhost:{PORT}`.",
    )
    secret_key: SecretKey | None = Field(
        None,
        description="Signs access tokens; at least 32 characters. Needed with an external "
        "database; with the embedded one it is made once and kept under `DATA_DIR`.",
    )
    former_secret_keys: SecretKeys | None = Field(
        None,
        description="What `SECRET_KEY` was before, separated by commas: access tokens that they "
        "signed stay good. See below.",
    )
    access_token_minutes: int = Field(
        15, ge=1, le=60 * 24, description="How long an access token is good for, in minutes."
    )
    refresh_token_days: int = Field(
        30, ge=1, le=365, description="How long a session lasts that nobody uses, in days."
    )
    host: Text = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    data_dir: Path = Field(
        Path("data"), description="What the embedded parts keep, they keep here."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that serve requests.")
    max_image_bytes: int = Field(
        10 * MIB, ge=1024, le=1024 * MIB, description="Largest image taken, in bytes."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=1_000_000_000, description="Largest image taken, in pixels."
    )
    max_images: int = Field(10, ge=0, le=100, description="Images that a feed may have.")
    image_widths: str = Field(
        "320,960,1920",
        pattern=r"^[0-9]+(,[0-9]+)*$",
        description="Widths, in pixels, in which smaller copies of an image are made, by commas.",
    )
    image_workers: int = Field(
        2, ge=1, le=64, description="Images that a process checks and cleans at the same time."
    )
    image_grace: int = Field(
        3600,
        ge=60,
        le=7 * 86400,
        description="Seconds after which an upload that no feed took is deleted.",
    )
    max_pending_images: int = Field(
        100,
        ge=1,
        le=100_000,
        description="Images that a user may have waiting for a feed, forms for direct uploads "
        "included.",
    )
    max_user_bytes: int = Field(
        10 * 1024 * MIB,
        ge=1024,
        le=2**60,
        description="Bytes of images that a user may keep, smaller copies included.",
    )
    comment_depth: int = Field(
        8, ge=1, le=100, description="How deep replies may go; a comment on the feed itself is 1."
    )
    password_workers: int = Field(
        1, ge=1, le=64, description="Passwords that a process hashes at the same time."
    )
    restore_days: int = Field(
        7,
        ge=0,
        le=365,
        description="Days in which authors can restore what they deleted; 0: it is gone at once.",
    )
    show_emails: bool = Field(
        True,
        description="Whether users see each other's e-mail addresses; if not, `author_email` is "
        "null for all but oneself.",
    )
    smtp_url: MailServer | None = Field(
        None,
        description="The mail server, as `smtp://user:password@host:587` (STARTTLS when offered; "
        "demanded where a password goes to another machine) or `smtps://…`. Unset: a mail lands as "
        "a file in `DATA_DIR/outbox`.",
    )
    mail_from: Sender | None = Field(
        None,
        description="Who mails are from, such as `Feedboard <board@example.com>`. Needed with "
        "`SMTP_URL`.",
    )
    reset_url: Page | None = Field(
        None,
        description="Your own page for a new password, as mails link to it; `{token}` is put in. "
        "Unset: the service's, `/account/reset`.",
    )
    verify_url: Page | None = Field(
        None,
        description="Your own page for confirming an address, likewise. Unset: the service's, "
        "`/account/verify`.",
    )
    require_verified_email: bool = Field(
        False, description="Whether only those write who have confirmed their e-mail address."
    )
    cors_origins: Origins = Field(
        "*", description="Origins whose pages may call the API, separated by commas; `*` is any."
    )
    rate_limits: Rates = Field(
        "",
        description="`off`, or other limits than usual, such as `read=100/second,sign-up=20/hour`, "
        "of `log-in`, `sign-up`, `write`, `upload`, `read`. Unset: those that no person reaches.",
    )
    redis_url: RedisUrl | None = Field(
        None,
        description="A Redis or Valkey in which all processes count together, as "
        "`redis://:password@host:6379/0` (`rediss://`, `unix:///path`). Unset: each for itself.",
    )
    trusted_proxies: Networks = Field(
        "",
        description="Addresses or networks, by commas, of the proxies whose `X-Forwarded-For`, "
        "`Forwarded` and `X-Forwarded-Proto` are believed. Unset: nobody's are.",
    )
    allowed_hosts: HostNames = Field(
        "*",
        description="Names that the service answers to, separated by commas; `*.example.com` is "
        "all below it, `*` any. Health is answered under every name.",
    )
    max_connections: int = Field(
        2000, ge=10, le=100_000, description="Connections of clients that a process keeps open."
    )
    request_timeout: int = Field(
        120,
        ge=1,
        le=3600,
        description="Seconds that a request may keep the service busy before it answers; the time "
        "that a client takes to send a body is not counted.",
    )
    drain_seconds: int = Field(
        0,
        ge=0,
        le=300,
        description="Seconds for which the service goes on serving after it was told to stop, "
        "while `/readyz` says 503 and each answer closes its connection, so that a proxy turns to "
        "others.",
    )
    fast_reads: bool = Field(
        True,
        description="Whether feeds, pages of all feeds and images are read the fast way. It "
        "changes nothing but the speed.",
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port on which Prometheus finds `/metrics`. Unset: none."
    )
    metrics_host: Text = Field("127.0.0.1", description="Address to listen on for it.")
    access_log: bool = Field(True, description="Whether each request is logged, one line each.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto` is `console` on a terminal and `json` elsewhere."
    )

    @property
    def keys(self) -> list[str]:
        """What signs access tokens, and after it what did so before."""
        key = self.secret_key
        return ([key.get_secret_value()] if key else []) + listed(self.former_secret_keys)

    @property
    def rates(self) -> Mapping[RouteClass, Rate] | None:
        """How often each class of routes may be asked; None: as often as one likes."""
        return parse_rates(self.rate_limits)

    @property
    def proxies(self) -> tuple[Network, ...]:
        return parse_networks(self.trusted_proxies)

    @property
    def redis(self) -> str | None:
        """Where all processes count together, as the library takes it; None is nowhere."""
        return None if self.redis_url is None else redis_uri(self.redis_url.get_secret_value())

    @property
    def origins(self) -> list[str]:
        """Whose pages may call the API; `*` is anybody's."""
        return self.cors_origins.split(",")

    @property
    def hosts(self) -> list[str]:
        """The names that the service answers to; none is any."""
        return [] if self.allowed_hosts == "*" else self.allowed_hosts.split(",")

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of variants in pixels, narrowest first; 0 is none."""
        return tuple(sorted({int(width) for width in self.image_widths.split(",")} - {0}))

    @property
    def restorable(self) -> timedelta:
        """How long what is deleted can be restored."""
        return timedelta(days=self.restore_days)

    @property
    def base_url(self) -> str:
        """Where clients reach the service, with no slash at its end."""
        return self.public_url or f"http://localhost:{self.port}"

    @property
    def max_body_bytes(self) -> int:
        """The largest request body: a feed with all its images, and room for its words."""
        return self.max_images * self.max_image_bytes + MIB

    @property
    def direct(self) -> Self:
        """These settings, past the pooler where there is a way."""
        if self.database_direct_url is None:
            return self
        return self.replace(database_url=self.database_direct_url, database_pooler=False)

    @property
    def embeds_database(self) -> bool:
        return self.database_url is None

    @property
    def embeds_store(self) -> bool:
        return self.s3_bucket is None

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment; `overrides` win over it.

        Raises SettingsError, whose text names each missing or malformed setting.
        """
        try:
            settings = cls(**{k: v for k, v in overrides.items() if v is not None})
        except ValidationError as error:
            raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from error
        settings.require_complete()
        return settings

    def replace(self, **changes: Any) -> Self:
        """These settings with some changed, which are checked like any other."""
        return type(self)(_env_file=None, **(self.model_dump() | changes))

    def require_complete(self) -> None:
        """Raise SettingsError where one setting needs another that is missing."""
        if not self.embeds_database and self.secret_key is None:
            raise SettingsError(
                "SECRET_KEY is missing: with an external database (DATABASE_URL) it must be given, "
                "at least 32 characters (try: openssl rand -hex 32)."
            )
        if self.database_direct_url and not self.database_pooler:
            raise SettingsError(
                "DATABASE_DIRECT_URL is the way past a pooler: set DATABASE_POOLER=true with it."
            )
        if self.embeds_database and self.database_pooler:
            raise SettingsError("DATABASE_URL is missing: DATABASE_POOLER says what it leads to.")
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            missing = "S3_ACCESS_KEY" if self.s3_access_key is None else "S3_SECRET_KEY"
            raise SettingsError(f"{missing} is missing: the two S3 keys are given together.")
        if (self.other_s3_access_key is None) != (self.other_s3_secret_key is None):
            raise SettingsError("OTHER_S3_ACCESS_KEY and OTHER_S3_SECRET_KEY are given together.")
        if self.smtp_url and not self.mail_from:
            raise SettingsError("MAIL_FROM is missing: with SMTP_URL it says who mails are from.")
        if self.embeds_store and (self.s3_endpoint_url or self.s3_access_key):
            raise SettingsError(
                "S3_BUCKET is missing: S3_ENDPOINT_URL or S3_ACCESS_KEY is set, so name the bucket."
            )


def _sentence(error: Any) -> str:
    name = str(error["loc"][0]).upper() if error["loc"] else "The environment"
    message = str(error["msg"]).removeprefix("Value error, ")
    # The value itself is left out: it may be a secret.
    return f"{name} is not valid: {message[:1].lower()}{message[1:].rstrip('.')}."
