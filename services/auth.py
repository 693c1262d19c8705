"""Accounts: signing up, logging in, and who a token speaks for."""

from sqlalchemy import bindparam, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW
from models.mail import MailKind
from models.nickname import nickname_key
from models.session import Session
from models.user import TokenRead, User, email_key
from services import idempotency, postman, sessions
from services.errors import EmailTaken, InvalidCredentials, NicknameTaken, NotAuthenticated
from services.passwords import Passwords
from services.revocations import ENDED
from services.sessions import Client
from services.tokens import Tokens


async def signup(
    db: AsyncSession,
    passwords: Passwords,
    *,
    email: str,
    password: str,
    nickname: str,
    is_admin: bool = False,
    verified: bool = False,
) -> User:
    """Open an account, and have a mail sent that asks whether the address is theirs, unless
    whoever opens it has `verified` that.

    Raises EmailTaken, NicknameTaken, and InvalidInput for a password that is easily guessed.
    """
    password_hash = await passwords.hash(password, known=(email, nickname))
    added = (
        insert(User)
        .values(
            email=email,
            email_key=email_key(email),
            password_hash=password_hash,
            nickname=nickname,
            nickname_key=nickname_key(nickname),
            is_admin=is_admin,
            verified_dt=NOW if verified else None,
        )
        # The indexes decide, not a look beforehand: two who sign up at once cannot both win.
        .on_conflict_do_nothing()
        .returning(User)
    )
    known = select(User.id).where(User.email_key == email_key(email))
    async with db.begin():
        if user := await db.scalar(added):
            if not verified:
                await postman.ask(db, MailKind.VERIFY, email)
            return await idempotency.keep(db, user)
        raise EmailTaken if await db.scalar(known) else NicknameTaken


async def login(
    db: AsyncSession,
    passwords: Passwords,
    tokens: Tokens,
    client: Client,
    *,
    email: str,
    password: str,
) -> TokenRead:
    """Begin a session by e-mail and password; raises InvalidCredentials, known e-mail or not."""
    async with db.begin():
        user = await db.scalar(select(User).where(User.email_key == email_key(email)))
    matches, renewed = await passwords.verify_and_renew(
        password, user.password_hash if user else None
    )
    if not matches or user is None:
        await _even_out(db, passwords, password, user.password_hash if user else None)
        raise InvalidCredentials
    # Locked, and looked at again: a session must not begin by a password that is being changed, and
    # whose change has ended all sessions.
    same = select(User.id).where(User.id == user.id, User.password_hash == user.password_hash)
    async with db.begin():
        if await db.scalar(same.with_for_update(read=renewed is None)) is None:
            raise InvalidCredentials
        if renewed:
            # The same password, at today's cost.
            renewal = update(User).where(User.id == user.id).values(password_hash=renewed)
            await db.execute(renewal.execution_options(synchronize_session=False))
        return await sessions.begin(db, tokens, user, client)


async def _even_out(
    db: AsyncSession, passwords: Passwords, password: str, password_hash: str | None
) -> None:
    """Let a wrong log-in tell nobody by its time whether there is such an account."""
    async with db.begin():
        cost = await db.scalar(_BCRYPT_COST)
    if cost:
        await passwords.even_out(password, password_hash, cost=int(cost))


async def authenticate(db: AsyncSession, tokens: Tokens, token: str) -> User:
    """The user whom a token speaks for, if its session goes on; raises NotAuthenticated."""
    access = tokens.read(token)
    async with db.begin():
        user = await db.scalar(_SIGNED_IN, access._asdict())
    if user is None:
        raise NotAuthenticated(ENDED)
    return user


# Written as the index is.
_BCRYPT_COST = text(
    "SELECT max(substr(password_hash, 5, 2)) FROM users WHERE password_hash LIKE '$2%'"
)
_SIGNED_IN = (
    select(User)
    .join(Session, Session.user_id == User.id)
    .where(
        User.id == bindparam("user_id"),
        Session.id == bindparam("session_id"),
        Session.ended_dt.is_(None),
    )
)
