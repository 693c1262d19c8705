"""Accounts: signing up, logging in, and who a token speaks for."""

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW
from models.link import LinkKind
from models.nickname import nickname_key
from models.user import TokenRead, User, email_key
from services import postman
from services.errors import EmailTaken, InvalidCredentials, NicknameTaken, NotAuthenticated
from services.passwords import Passwords
from services.tokens import Tokens

ACCOUNT_GONE = "The account of this access token no longer exists."


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
                await postman.ask(db, LinkKind.VERIFY, email)
            return user
        raise EmailTaken if await db.scalar(known) else NicknameTaken


async def login(
    db: AsyncSession, passwords: Passwords, tokens: Tokens, *, email: str, password: str
) -> TokenRead:
    """Exchange e-mail and password for a token; raises InvalidCredentials, known e-mail or not."""
    async with db.begin():
        user = await db.scalar(select(User).where(User.email_key == email_key(email)))
    matches, renewed = await passwords.verify_and_renew(
        password, user.password_hash if user else None
    )
    if not matches or user is None:
        raise InvalidCredentials
    if renewed:
        await _renew_hash(db, user, renewed)
    return TokenRead(
        email=user.email,
        nickname=user.nickname,
        access_token=tokens.issue(user.id),
        expires_in=tokens.seconds,
    )


async def _renew_hash(db: AsyncSession, user: User, password_hash: str) -> None:
    """Keep the same password at today's cost, unless it was changed in the meantime."""
    unchanged = (User.id == user.id, User.password_hash == user.password_hash)
    renewal = update(User).where(*unchanged).values(password_hash=password_hash)
    async with db.begin():
        await db.execute(renewal.execution_options(synchronize_session=False))


async def authenticate(db: AsyncSession, tokens: Tokens, token: str) -> User:
    """The user whom a token speaks for; raises NotAuthenticated."""
    user_id = tokens.user_id(token)
    async with db.begin():
        user = await db.get(User, user_id)
    if user is None:
        raise NotAuthenticated(ACCOUNT_GONE)
    return user
