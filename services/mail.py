"""Mail: what it says, and the way out: a mail server, or files where none is set."""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, localtime, make_msgid, parseaddr
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog
from uuid_utils import uuid7

from config.settings import Settings
from models.link import LinkKind

log = structlog.get_logger()

# Seconds for one step of the talk with the server, and for all of it.
STEP_PATIENCE = 10
PATIENCE = 30
# What a way out raises where the same mail may well go later.
MailError = (OSError, aiosmtplib.SMTPException)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SUBJECTS = {
    LinkKind.RESET: "Choose a new password",
    LinkKind.VERIFY: "Confirm your e-mail address",
}
# Nothing in them is by a user: else whoever signs up could have us send words to anybody.
_TEXTS = {
    LinkKind.RESET: """\
Somebody, hopefully you, asked for a new password for the account that this
address has at {board}

To choose one, open this page within 30 minutes:

{link}

It works once. If it was not you, do nothing: your password stays as it is.
""",
    LinkKind.VERIFY: """\
Somebody, hopefully you, opened an account with this address at
{board}

To confirm that the address is yours, open this page within a day:

{link}

If it was not you, do nothing.
""",
}


class Undeliverable(Exception):
    """The server refuses this recipient for good; the text says by which code, and nothing else."""


@dataclass(frozen=True)
class Post:
    """What a mail is made of, and how it leaves."""

    sender: str
    board: str
    pages: dict[LinkKind, str]
    deliver: Callable[[EmailMessage], Awaitable[None]]

    async def send(self, kind: LinkKind, *, to: str, token: str) -> None:
        """Send the mail that carries this token; raises Undeliverable and what MailError names."""
        message = EmailMessage(SMTPUTF8)
        message["From"] = self.sender
        message["To"] = to
        message["Subject"] = _SUBJECTS[kind]
        message["Date"] = format_datetime(localtime())
        message["Message-ID"] = make_msgid(domain=parseaddr(self.sender)[1].rpartition("@")[2])
        # No holiday notice is to answer it (RFC 3834).
        message["Auto-Submitted"] = "auto-generated"
        link = self.pages[kind].replace("{token}", token)
        text = _TEXTS[kind].format(board=self.board, link=link)
        # As it is, so that the link in a file can be copied; quoted-printable would break it.
        message.set_content(text, cte="7bit" if text.isascii() else "8bit")
        async with asyncio.timeout(PATIENCE):
            await self.deliver(message)


def open_post(settings: Settings) -> Post:
    """The way out that the settings say."""
    # Behind the #, where a browser keeps it to itself: it is in no log and in no Referer.
    pages = {
        LinkKind.RESET: settings.reset_url or f"{settings.base_url}/account/reset#token={{token}}",
        LinkKind.VERIFY: settings.verify_url
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


def _smtp(settings: Settings) -> Callable[[EmailMessage], Awaitable[None]]:
    url = urlsplit(settings.smtp_url.get_secret_value() if settings.smtp_url else "")
    secure = url.scheme == "smtps"
    client_of = partial(
        aiosmtplib.SMTP,
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

    async def deliver(message: EmailMessage) -> None:
        client = client_of()
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
