"""Keeping an account: a new password, and whose e-mail address it is."""

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, Message
from models.link import LinkKind
from models.mail import MailKind
from models.user import User
from services import idempotency, links, postman, sessions
from services.attempts import LoginAttempts
from services.errors import EmailNotVerified, InvalidCredentials, InvalidInput
from services.passwords import Passwords
from services.revocations import Revocations

WRONG = (
    "This is not your password; if you forgot it, ask for a link to a new one with "
    "POST /api/auth/password/forgot."
)

_CHANGED = Message(message="Password Changed")
_ASKED = Message(message="If there is an account of this address, a mail is on its way.")
_SENT = Message(message="A mail is on its way.")
_VERIFIED = Message(message="Your e-mail address is confirmed already.")
_CONFIRMED = Message(message="E-Mail Address Confirmed")


async def change_password(
    db: AsyncSession,
    passwords: Passwords,
    attempts: LoginAttempts,
    revocations: Revocations,
    user: User,
    *,
    old: str,
    new: str,
    address: str,
    session_id: int,
) -> Message:
    """Change the password, end all sessions but this one, and tell the user by mail.

    Raises InvalidInput for an old password that is not the user's, and a new one that is easily
    guessed; TooManyAttempts, where too many old ones were wrong.
    """
    try:
        async with attempts.attempt(user.email, address):
            if not await passwords.verify(old, user.password_hash):
                raise InvalidCredentials
    except InvalidCredentials:
        raise InvalidInput(WRONG, pointer="/old_password") from None
    password_hash = await passwords.hash(
        new, known=(user.email, user.nickname), pointer="/new_password"
    )
    # Of two changes at once, the second one does not know the password any more.
    still = (User.id == user.id, User.password_hash == user.password_hash)
    change = update(User).where(*still).values(password_hash=password_hash).returning(User.id)
    async with db.begin():
        if await db.scalar(change.execution_options(synchronize_session=False)) is None:
            raise InvalidInput(WRONG, pointer="/old_password")
        await links.void(db, user.id, LinkKind.RESET)
        await postman.ask(db, MailKind.CHANGED, user.email)
        ended = await sessions.end_all(db, user.id, but=session_id)
        done = await idempotency.keep(db, _CHANGED)
    revocations.note(ended)
    return done


async def forget_password(db: AsyncSession, *, email: str) -> Message:
    """Have a mail sent with a link for a new password; the same work for an unknown address."""
    async with db.begin():
        await postman.ask(db, MailKind.RESET, email)
        return await idempotency.keep(db, _ASKED)


async def reset_password(
    db: AsyncSession, passwords: Passwords, revocations: Revocations, *, token: str, password: str
) -> Message:
    """Set the password by a mail's link, end all sessions, and tell the user by another mail. The
    address is verified by it.

    Raises LinkNotFound, and InvalidInput for a password that is easily guessed; the link is then
    still good.
    """
    async with db.begin():
        user = await links.owner(db, LinkKind.RESET, token)
    password_hash = await passwords.hash(password, known=(user.email, user.nickname))
    async with db.begin():
        user_id = await links.use(db, LinkKind.RESET, token)
        await _verified(db, user_id, password_hash=password_hash)
        await postman.ask(db, MailKind.CHANGED, user.email)
        ended = await sessions.end_all(db, user_id)
        done = await idempotency.keep(db, _CHANGED)
    revocations.note(ended)
    return done


async def send_verification(db: AsyncSession, user: User) -> Message:
    """Have another mail sent that verifies the address, unless it is verified already."""
    async with db.begin():
        if user.verified_dt is None:
            await postman.ask(db, MailKind.VERIFY, user.email)
        return await idempotency.keep(db, _VERIFIED if user.verified_dt else _SENT)


async def verify_email(db: AsyncSession, *, token: str) -> Message:
    """Verify an address by a mail's link; raises LinkNotFound."""
    async with db.begin():
        await _verified(db, await links.use(db, LinkKind.VERIFY, token))
        return await idempotency.keep(db, _CONFIRMED)


async def require_verified(db: AsyncSession, user_id: int) -> None:
    """Raise EmailNotVerified unless the user's address is; an account that is gone is told so
    elsewhere."""
    unverified = select(User.id).where(User.id == user_id, User.verified_dt.is_(None))
    async with db.begin():
        if await db.scalar(unverified) is not None:
            raise EmailNotVerified


async def _verified(db: AsyncSession, user_id: int, **also: str) -> None:
    since = func.coalesce(User.verified_dt, NOW)
    change = update(User).where(User.id == user_id).values(verified_dt=since, **also)
    await db.execute(change.execution_options(synchronize_session=False))
