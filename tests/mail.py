"""Mails as tests see them: what the service would send, and a real mail server on loopback."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope

from config.db import Sessions
from config.settings import Settings
from models.mail import MailKind
from services import postman
from services.mail import open_post


def token_in(message: EmailMessage) -> str:
    """The token that a mail's link carries."""
    (line,) = [line for line in message.get_content().splitlines() if "#token=" in line]
    return line.partition("#token=")[2]


class Letterbox:
    """Sends what waits in the test's transaction, and keeps it."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self.mails: list[EmailMessage] = []
        self.post = replace(open_post(settings), deliver=self._keep)
        self._sessions = sessions

    async def _keep(self, message: EmailMessage) -> None:
        self.mails.append(message)

    async def fetch(self) -> list[EmailMessage]:
        """Have all sent that is due; gives what came."""
        before = len(self.mails)
        async with self._sessions() as db:
            while await postman.send_one(db, self.post):
                pass
        return self.mails[before:]

    async def token(self) -> str:
        (mail,) = await self.fetch()
        return token_in(mail)

    async def ask(self, kind: MailKind, email: str) -> None:
        async with self._sessions() as db, db.begin():
            await postman.ask(db, kind, email)


class MailServer:
    """What came to it, and how; `refuses` is its answer to recipients."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.credentials: list[tuple[bytes, bytes]] = []
        self.encrypted: list[bool] = []
        self.refuses: str | None = None
        self.hangs = False
        self.port = 0

    async def handle_RCPT(  # noqa: N802 - as aiosmtpd calls it
        self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuses:
            return self.refuses
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        if self.hangs:
            await asyncio.sleep(60)
        assert isinstance(envelope.content, bytes)
        message = BytesParser(EmailMessage, policy=default).parsebytes(envelope.content)
        self.mails.append(message)
        self.recipients += envelope.rcpt_tos
        self.encrypted.append(server.transport.get_extra_info("sslcontext") is not None)
        return "250 OK"

    def authenticate(
        self, server: Any, session: Any, envelope: Any, way: str, data: Any
    ) -> AuthResult:
        self.credentials.append((data.login, data.password))
        return AuthResult(success=data.password == b"p@ss word", handled=False)


@asynccontextmanager
async def mail_server(
    *, starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[MailServer]:
    """A mail server at a free port of loopback; it knows one password, `p@ss word`."""
    kept = MailServer()

    def talk() -> SMTP:
        return SMTP(
            kept,
            hostname="mail.example.com",
            tls_context=starttls,
            authenticator=kept.authenticate,
            auth_require_tls=bool(starttls),
            enable_SMTPUTF8=True,
        )

    server = await asyncio.get_running_loop().create_server(talk, "127.0.0.1", 0, ssl=tls)
    kept.port = server.sockets[0].getsockname()[1]
    try:
        yield kept
    finally:
        server.close()
