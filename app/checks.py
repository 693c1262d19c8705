"""What `feedboard doctor` looks at: how each part is, and what to do about it."""

import asyncio
import platform
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import aiohttp
from botocore.exceptions import ClientError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import migrations
from config import readers
from config.db import open_engine, require_bounds
from config.redis import open_redis
from config.s3 import S3Error, open_s3
from config.settings import Settings, SettingsError
from services.errors import StorageUnavailable
from services.mail import MailError, smtp_client
from services.pictures import Limits, open_cleaner
from services.store import INCOMING, ImageStore, prefix

# The oldest that the tests run on.
POSTGRESQL = 15
# What clocks may be apart: a signature is refused beyond fifteen minutes (Signature Version 4).
NOTABLE, REFUSED = timedelta(seconds=5), timedelta(minutes=15)
# Besides those of the pool and the readers, each process listens on one, and a command takes one.
_LISTENING, _COMMAND = 1, 1
SECONDS = 10
_NTP = "Let both hosts take their time from NTP."


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Found:
    """What was found of a part, and what to do about it, where it is not well."""

    part: str
    level: Level
    found: str
    do: str = ""


Examination = AsyncGenerator[Found]


async def configuration(settings: Settings) -> Examination:
    known = Settings.model_fields.items()
    named = [name for name, field in known if getattr(settings, name) != field.default]
    yield Found("settings", Level.OK, f"{len(named)} are set: {', '.join(map(str.upper, named))}")
    if settings.secret_key is None:
        yield Found(
            "settings",
            Level.FAILED,
            "SECRET_KEY is missing, which signs all tokens",
            'Make one: python -c "import secrets; print(secrets.token_urlsafe(48))"',
        )
    if settings.base_url.startswith("http:") and settings.public_url is not None:
        yield Found(
            "settings",
            Level.WARNING,
            "PUBLIC_URL begins with http: passwords and tokens cross the network in the clear",
            "Put a proxy that speaks TLS in front, and let PUBLIC_URL begin with https.",
        )
    if settings.workers > 1 and settings.redis is None:
        yield Found(
            "settings",
            Level.WARNING,
            f"WORKERS is {settings.workers}, and each process counts requests for itself",
            "Set REDIS_URL, so that RATE_LIMITS are those of all processes together.",
        )


async def versions(_: Settings) -> Examination:
    import pyvips

    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    found = f"Feedboard {version('feedboard')}, Python {platform.python_version()}"
    yield Found("versions", Level.OK, f"{found}, libvips {libvips}")


async def database(settings: Settings) -> Examination:
    try:
        async with open_engine(settings, patience=SECONDS) as engine:
            await require_bounds(engine, patience=SECONDS)
            async with engine.connect() as db:
                asked = datetime.now(UTC)
                facts = (await db.execute(_FACTS)).one()
                between = asked + (datetime.now(UTC) - asked) / 2
                current = await db.run_sync(migrations.current)
    except SettingsError as error:
        yield Found("database", Level.FAILED, "it does not keep what it is told", str(error))
        return
    except (DBAPIError, OSError) as error:
        why = getattr(error, "orig", None) or error
        do = "See that it runs, and that DATABASE_URL names its host, user, password and name."
        yield Found("database", Level.FAILED, f"it cannot be used: {why}", do)
        return
    for it in (_server(facts), _schema(current), _connections(settings, facts)):
        yield it
    yield _clock("the database's", facts.now - between)


_FACTS = text(
    """SELECT current_setting('server_version') AS version,
        current_setting('server_version_num')::int / 10000 AS major,
        current_setting('server_encoding') AS encoding,
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int AS connections,
        pg_is_in_recovery() AS is_replica, clock_timestamp() AS now"""
)


def _server(facts: Any) -> Found:
    found = f"PostgreSQL {facts.version}, {facts.encoding}"
    if facts.major < POSTGRESQL:
        return Found("database", Level.FAILED, found, f"Upgrade it to {POSTGRESQL} or newer.")
    if facts.encoding != "UTF8":
        do = "Make the database anew: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0."
        return Found("database", Level.FAILED, found, do)
    if facts.is_replica:
        do = "Let DATABASE_URL name the primary."
        return Found("database", Level.FAILED, f"{found}: a replica, which only reads", do)
    return Found("database", Level.OK, found)


def _schema(current: str | None) -> Found:
    newest = migrations.newest()
    if current == newest:
        return Found("schema", Level.OK, f"revision {current}, the newest")
    if current is not None and current > newest:
        do = "Run the newer Feedboard, or restore a backup of before."
        return Found("schema", Level.FAILED, f"revision {current}, newer than {newest}", do)
    found = f"revision {current}, older than {newest}" if current else "there is none yet"
    do = "The next start brings it up to date, or `feedboard migrate` does."
    return Found("schema", Level.WARNING, found, do)


def _connections(settings: Settings, facts: Any) -> Found:
    fast = readers.CONNECTIONS if settings.fast_reads else 0
    each = settings.database_pool_size + fast + _LISTENING
    wanted = settings.workers * each + _COMMAND
    found = f"{wanted} may be wanted ({settings.workers} x {each} + {_COMMAND})"
    if settings.database_pooler:
        return Found("connections", Level.OK, f"{found} of the pooler: see its max_client_conn")
    found = f"{found}, {facts.connections} are there"
    if wanted <= facts.connections:
        return Found("connections", Level.OK, found)
    do = "Raise PostgreSQL's max_connections, or lower DATABASE_POOL_SIZE or WORKERS."
    return Found("connections", Level.WARNING, found, do)


def _clock(whose: str, ahead: timedelta) -> Found:
    found = f"{abs(ahead.total_seconds()):.1f} s {'behind' if ahead > timedelta() else 'ahead of'}"
    apart, do = abs(ahead), _NTP
    if apart > REFUSED:
        return Found("clock", Level.FAILED, f"{found} {whose}; signatures are refused", do)
    if apart > NOTABLE:
        return Found("clock", Level.WARNING, f"{found} {whose}", do)
    return Found("clock", Level.OK, f"{found} {whose}")


async def store(settings: Settings) -> Examination:
    """Put, load and delete an object of its own, and one by a form, as clients upload."""
    key = f"{INCOMING}doctor-{secrets.token_urlsafe(8)}"
    limits = Limits(bytes=settings.max_image_bytes, pixels=settings.max_image_pixels)
    async with open_s3(settings) as s3, open_cleaner(limits, workers=1) as cleaner:
        named: dict[str, Any] = {"Bucket": settings.s3_bucket, "Key": prefix(settings) + key}
        store = ImageStore(s3, cleaner, settings)
        head = await _trying("reach the bucket", lambda: s3.head_bucket(Bucket=named["Bucket"]))
        yield head.found
        if head.answer is None:
            return
        date = head.answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is not None:
            # To the second, and cut off.
            ahead = parsedate_to_datetime(date) - datetime.now(UTC) + timedelta(seconds=0.5)
            yield _clock("the store's", ahead)
        try:
            for what, doing in (
                ("put an object", lambda: s3.put_object(**named, Body=_BODY)),
                ("load it", lambda: s3.get_object(**named)),
                ("have a client put one by a form", lambda: _by_form(store, key)),
            ):
                yield (await _trying(what, doing)).found
        finally:
            deleted = await _trying("delete it", lambda: s3.delete_object(**named))
        yield deleted.found


_BODY = b"feedboard doctor"


async def _by_form(store: ImageStore, key: str) -> bool:
    url, fields = await store.form(key, content_type="text/plain", size=len(_BODY))
    form = aiohttp.FormData(fields)
    form.add_field("file", _BODY, filename="doctor.txt")
    patience = aiohttp.ClientTimeout(total=SECONDS)
    async with (
        aiohttp.ClientSession(timeout=patience) as http,
        http.post(url, data=form) as answer,
    ):
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise OSError(f"{url} answers {answer.status}: {(await answer.text())[:200]}")
    return True


@dataclass(frozen=True)
class _Tried:
    found: Found
    answer: Any = None


async def _trying(what: str, doing: Callable[[], Awaitable[Any]]) -> _Tried:
    """Do something with the bucket; it says what came of it, whatever that is."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS):
            answer = await doing()
    except (*S3Error, StorageUnavailable, aiohttp.ClientError) as error:
        said = error.response.get("Error", {}) if isinstance(error, ClientError) else {}
        do = _DO.get(
            said.get("Code", ""), "See that S3_ENDPOINT_URL and S3_UPLOAD_URL can be reached."
        )
        return _Tried(Found("bucket", Level.FAILED, f"cannot {what}: {error}", do))
    took = (time.perf_counter() - started) * 1000
    return _Tried(Found("bucket", Level.OK, f"can {what}, in {took:.0f} ms"), answer)


# By the code of the store's error (S3 API, "Error responses").
_KEYS = "Check S3_ACCESS_KEY and S3_SECRET_KEY."
_RIGHTS = "Allow them s3:PutObject, s3:GetObject and s3:DeleteObject on the bucket's objects, and"
_MISSING = "The next start makes the bucket, or on AWS you do; or mend S3_BUCKET."
_REFUSED = f"{_KEYS} {_RIGHTS} s3:ListBucket on the bucket."
_DO = {
    # Where the answer has no body, the code is its status.
    **dict.fromkeys(("404", "NoSuchBucket"), _MISSING),
    **dict.fromkeys(("403", "AccessDenied"), _REFUSED),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch"), _KEYS),
    "RequestTimeTooSkewed": _NTP,
}


async def mail(settings: Settings) -> Examination:
    if settings.smtp_url is None:
        outbox = settings.data_dir / "outbox"
        level = Level.WARNING if settings.public_url else Level.OK
        do = "Set SMTP_URL and MAIL_FROM, if people are to get them." if settings.public_url else ""
        yield Found("mail", level, f"mails are files, in {outbox.absolute()}", do)
        return
    client = smtp_client(settings)
    try:
        async with asyncio.timeout(SECONDS), client:
            await client.noop()
    except MailError as error:
        found = f"the server does not take us: {error}"
        yield Found("mail", Level.FAILED, found, "Check SMTP_URL.")
        return
    yield Found("mail", Level.OK, f"{client.hostname}:{client.port} takes us")


async def redis(settings: Settings) -> Examination:
    if settings.redis is None:
        return
    try:
        async with open_redis(settings.redis, "doctor") as storage, asyncio.timeout(SECONDS):
            answers = await storage.check()
    except OSError:
        answers = False
    if answers:
        yield Found("redis", Level.OK, "it answers")
    else:
        do = "See that it runs, and check REDIS_URL; until then each process counts for itself."
        yield Found("redis", Level.WARNING, "it does not answer", do)


ALL = configuration, versions, database, store, mail, redis
