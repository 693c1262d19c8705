"""The postman: sends the mails that wait, in every process, each mail by one of them.

A mail is a row of the transaction that wants it, so a crash loses none. It is claimed by a time in
the future, longer than sending may take: should this process die, another one takes it up again. So
a mail may come twice (the server took it, and the process died before it was told), never not at
all, and no two processes send one knowingly.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from config.db import DatabaseError, Sessions
from models.base import NOW
from models.mail import Mail, MailKind
from models.user import User, email_key
from services import links
from services.mail import MailError, Post, Undeliverable

log = structlog.get_logger()

# Seconds between rounds; after rounds that failed the pause doubles, up to the second.
SEND_EVERY = 2.0
SEND_AT_LEAST_EVERY = 60.0
# Between attempts at one mail, and so no less than SPACING; twice as long each time, up to the
# second.
FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
# Between two mails of a kind to one address: nobody's post is flooded by who asks for them.
SPACING = timedelta(minutes=1)
# Who asked for a link a day ago has asked again.
GIVE_UP = timedelta(days=1)


@dataclass(frozen=True)
class Claimed:
    """A mail that is ours to send; without an address when there is nobody to send it to, and
    without a token when its kind has no link."""

    id: int
    kind: MailKind
    asked_dt: datetime
    attempt: int
    address: str = ""
    token: str = ""


async def ask(db: AsyncSession, kind: MailKind, email: str) -> None:
    """Have a mail sent, inside the caller's transaction, if there is an account of this address.

    Whether there is one is looked up when it is sent: the asking is the same work either way. One
    that waits already keeps its turn; after one that goes or went just now, the next one waits.
    """
    wanted = insert(Mail).values(email_key=email_key(email), kind=kind)
    due = func.least(Mail.due_dt, NOW + SPACING)
    again = {"attempts": 0, "create_dt": NOW, "due_dt": due, "done_dt": None}
    await db.execute(wanted.on_conflict_do_update(index_elements=["email_key", "kind"], set_=again))


async def claim(db: AsyncSession) -> Claimed | None:
    """Claim the mail that has waited longest, and make its link; None when none is due."""
    waiting = (Mail.due_dt <= NOW, Mail.done_dt.is_(None))
    due = select(Mail).where(*waiting).order_by(Mail.due_dt).limit(1)
    # One session serves many claims: nothing of an earlier one is taken for what is.
    fresh = {"populate_existing": True}
    async with db.begin():
        locked = due.with_for_update(skip_locked=True)
        mail = await db.scalar(locked, execution_options=fresh)
        if mail is None:
            return None
        pause = min(FIRST_PAUSE * 2 ** min(mail.attempts, 10), LONGEST_PAUSE)
        mail.attempts += 1
        mail.due_dt = NOW + pause
        await db.flush()
        claimed = Claimed(mail.id, mail.kind, mail.create_dt, mail.attempts)
        account = select(User).where(User.email_key == mail.email_key)
        user = await db.scalar(account, execution_options=fresh)
        if user is None or (mail.kind is MailKind.VERIFY and user.verified_dt):
            return claimed
        claimed = replace(claimed, address=user.email)
        if (link := mail.kind.link) is None:
            return claimed
        # A new link voids those of earlier mails, but not of earlier attempts at this one: a server
        # may have taken one of them after all.
        if mail.attempts == 1:
            await links.void(db, user.id, link)
        return replace(claimed, token=await links.issue(db, user, link))


async def send_one(db: AsyncSession, post: Post) -> bool:
    """Send the mail that has waited longest; False when none is due."""
    mail = await claim(db)
    if mail is None:
        return False
    if not mail.address or await _sent(post, mail):
        await _note(db, mail)
    return True


async def forget(db: AsyncSession) -> None:
    """Delete the mails that are done with, once the next one of their kind need not wait."""
    old = select(Mail.id).where(Mail.done_dt <= NOW - SPACING)
    async with db.begin():
        locked = old.with_for_update(skip_locked=True)
        await db.execute(delete(Mail).where(Mail.id.in_(locked)))


async def send_forever(sessions: Sessions, post: Post) -> None:
    """The service's own postman: a round now and then, and seldom while rounds fail."""
    pause = SEND_EVERY
    while True:
        pause = SEND_EVERY if await _round(sessions, post) else min(2 * pause, SEND_AT_LEAST_EVERY)
        await asyncio.sleep(pause)


async def _sent(post: Post, mail: Claimed) -> bool:
    """Whether it is done with: sent, or given up."""
    # What a server says may quote the mail, and so the link: a line tells the kind of error only.
    line = log.bind(mail=mail.id, kind=mail.kind.value, attempt=mail.attempt)
    try:
        await post.send(mail.kind, to=mail.address, token=mail.token)
    except Undeliverable as error:
        line.warning("a mail cannot be delivered", error=str(error))
    except Exception as error:
        if not isinstance(error, MailError):
            line.exception("a fault of ours in sending a mail")
        if datetime.now(UTC) - mail.asked_dt < GIVE_UP:
            line.warning("a mail is tried again later", error=_named(error))
            return False
        line.error("a mail was given up", error=_named(error))
    else:
        line.info("a mail was sent")
    return True


def _named(error: BaseException) -> str:
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


async def _note(db: AsyncSession, mail: Claimed) -> None:
    """Note that the mail is done with, unless it was asked for again in the meantime."""
    done = update(Mail).where(Mail.id == mail.id, Mail.create_dt == mail.asked_dt)
    async with db.begin():
        await db.execute(done.values(done_dt=NOW).execution_options(synchronize_session=False))


async def _round(sessions: Sessions, post: Post) -> bool:
    """Send all that is due; False, and a line in the log, when something failed."""
    try:
        async with sessions() as db:
            sent = False
            while await send_one(db, post):
                sent = True
            if sent:
                await links.forget(db)
            await forget(db)
            return True
    except DatabaseError as error:
        log.warning("mails could not be sent", error=str(error))
    except Exception:
        # A fault of ours must not end the postman for the rest of the process's life.
        log.exception("the postman failed")
    return False
