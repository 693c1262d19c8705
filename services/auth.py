"""Accounts: signing up, logging in, and who a token speaks for."""

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from models.nickname import nickname_key
from models.user import TokenRead, User, email_key
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
) -> User:
    """Open an account; raises EmailTaken and NicknameTaken."""
    password_hash = await passwords.hash(password)
    added = (
        insert(User)
        .values(
            email=email,
            email_key=email_key(email),
            password_hash=password_hash,
            nickname=nickname,
            nickname_key=nickname_key(nickname),
            is_admin=is_admin,
        )
        # The indexes decide, not a look beforehand: two who sign up at once cannot both win.
        .on_conflict_do_nothing()
        .returning(User)
    )
    known = select(User.id).where(User.email_key == email_key(email))
    async with db.begin():
        if user := await db.scalar(added):
            return user
        raise EmailTaken if await db.scalar(known) else NicknameTaken


async def login(
    db: AsyncSession, passwords: Passwords, tokens: Tokens, *, email: str, password: str
) -> TokenRead:
    """Exchange e-mail and password for a token; raises InvalidCredentials, known e-mail or not."""
    async with db.begin():
        user = await db.scalar(select(User).where(User.email_key == email_key(email)))
    if not await passwords.verify(password, user.password_hash if user else None) or user is None:
        raise InvalidCredentials
    return TokenRead(
        email=user.email,
        nickname=user.nickname,
        access_token=tokens.issue(user.id),
        expires_in=tokens.seconds,
    )


async def authenticate(db: AsyncSession, tokens: Tokens, token: str) -> User:
    """The user whom a token speaks for; raises NotAuthenticated."""
    user_id = tokens.user_id(token)
    async with db.begin():
        user = await db.get(User, user_id)
    if user is None:
        raise NotAuthenticated(ACCOUNT_GONE)
    return user
