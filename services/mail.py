"""Mail: what it says, and the way out: a mail server, or files where none is set."""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, localtime, parseaddr
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog
from uuid_utils import uuid7

from config.settings import Settings
from models.mail import MailKind

log = structlog.get_logger()

# Seconds for one step of the talk with the server, and for all of it.
STEP_PATIENCE = 10
PATIENCE = 30
# What a way out raises where the same mail may well go later.
MailError = (OSError, aiosmtplib.SMTPException)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SUBJECTS = {
    MailKind.RESET: "Choose a new password",
    MailKind.VERIFY: "Confirm your e-mail address",
    MailKind.CHANGED: "Your password was changed",
}
# Nothing in them is by a user: else whoever signs up could have us send words to anybody.
_TEXTS = {
    MailKind.RESET: """\
Somebody, hopefully you, asked for a new password for the account that this
address has at {board}

To choose one, open this page within 30 minutes:

{link}

It works once. If it was not you, do nothing: your password stays as it is.
""",
    MailKind.VERIFY: """\
Somebody, hopefully you, opened an account with this address at
{board}

To confirm that the address is yours, open this page within a day:

{link}

If it was not you, do nothing.
""",
    # No link to click, so that nobody gets used to one in such a mail.
    MailKind.CHANGED: """\
The password was changed of the account that this address has at
{board}

If it was you, there is nothing to do.

If it was not you, somebody knew your password, or reads your mail. Make sure
that your mail is yours alone; then ask for a new password, by "forgot password"
where you log in. That logs out everybody else.
""",
}


class Undeliverable(Exception):
    """The server refuses this recipient for good; the text says by which code, and nothing else."""


@dataclass(frozen=True)
class Post:
    """What a mail is made of, and how it leaves."""

    sender: str
    board: str
    pages: dict[MailKind, str]
    deliver: Callable[[EmailMessage], Awaitable[None]]

    async def send(self, kind: MailKind, *, to: str, token: str) -> None:
        """Send a mail, with this token where its kind has a link; raises Undeliverable and what
        MailError names."""
        message = EmailMessage(SMTPUTF8)
        message["From"] = self.sender
        message["To"] = to
        message["Subject"] = _SUBJECTS[kind]
        message["Date"] = format_datetime(localtime())
        # Not by `make_msgid`, which tells the process's id.
        message["Message-ID"] = f"<{uuid7()}@{parseaddr(self.sender)[1].rpartition('@')[2]}>"
        # No holiday notice is to answer it (RFC 3834).
        message["Auto-Submitted"] = "auto-generated"
        link = self.pages.get(kind, "").replace("{token}", token)
        text = _TEXTS[kind].format(board=self.board, link=link)
        # As it is, so that the link in a file can be copied; quoted-printable would break it.
        message.set_content(text, cte="7bit" if text.isascii() else "8bit")
        async with asyncio.timeout(PATIENCE):
            await self.deliver(message)


def open_post(settings: Settings) -> Post:
    """The way out that the settings say."""
    # Behind the #, where a browser keeps it to itself: it is in no log and in no Referer.
    pages = {
        MailKind.RESET: settings.reset_url or f"{settings.base_url}/account/reset#token={{token}}",
        MailKind.VERIFY: settings.verify_url
        or f"{settings.base_url}/account/verify#token={{token}}",
    }
    return Post(
        sender=settings.mail_from or "Feedboard <feedboard@localhost>",
        board=settings.base_url,
        pages=pages,
        deliver=_smtp(settings)
        if settings.smtp_url
        else partial(_to_file, settings.data_dir / "outbox"),
    )


def smtp_client(settings: Settings) -> aiosmtplib.SMTP:
    """A client of the server that the settings name; it connects, and logs in, when it is told."""
    url = urlsplit(settings.smtp_url.get_secret_value() if settings.smtp_url else "")
    secure = url.scheme == "smtps"
    return aiosmtplib.SMTP(
        hostname=url.hostname,
        port=url.port or (465 if secure else 587),
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        use_tls=secure,
        # A password does not cross a network in the clear because somebody hid the server's offer.
        start_tls=True if url.username and not secure and url.hostname not in _LOOPBACK else None,
        tls_context=ssl.create_default_context(),
        local_hostname=urlsplit(settings.base_url).hostname,
        timeout=STEP_PATIENCE,
    )


def _smtp(settings: Settings) -> Callable[[EmailMessage], Awaitable[None]]:
    async def deliver(message: EmailMessage) -> None:
        client = smtp_client(settings)
        try:
            await client.connect()
            await client.send_message(message)
            # The server has it; what becomes of the farewell is no reason to send it again.
            with suppress(*MailError):
                await client.quit(timeout=1)
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = {refused.code for refused in error.recipients}
            if min(codes) >= 500:
                raise Undeliverable(f"SMTP {min(codes)}") from None
            raise
        finally:
            client.close()

    return deliver


async def _to_file(outbox: Path, message: EmailMessage) -> None:
    path = outbox / f"{uuid7()}.eml"
    await asyncio.to_thread(_write, path, message.as_bytes(policy=SMTPUTF8))
    log.info("a mail is in a file, as there is no SMTP_URL", path=str(path.absolute()))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    # For the service's own account alone: a mail opens an account.
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
