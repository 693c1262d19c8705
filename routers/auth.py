"""Accounts over HTTP: sign up, log in, and the token route behind Swagger UI's Authorize."""

from typing import Annotated

from fastapi import APIRouter, Form

from models.user import Credentials, PasswordGrant, Signup, TokenRead, User, UserRead
from routers.dependencies import STRICT, AccessTokens, Attempts, Calling, Db, PasswordHasher
from routers.idempotency import keyed_for_anybody
from routers.problems import refuses
from services import auth
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    EmailTaken,
    InvalidCredentials,
    InvalidInput,
    MalformedBody,
    NicknameTaken,
    TooManyAttempts,
    UnsupportedMediaType,
)

router = APIRouter(
    prefix="/api/auth",
    tags=["Auth"],
    dependencies=STRICT,
    responses=refuses(
        MalformedBody, ContentTooLarge, UnsupportedMediaType, InvalidInput, DatabaseUnavailable
    ),
)


@router.post(
    "/signup",
    summary="Open an account",
    response_model=UserRead,
    responses=refuses(EmailTaken, NicknameTaken),
)
@keyed_for_anybody
async def signup(db: Db, passwords: PasswordHasher, account: Signup) -> User:
    """One address is one account, and one nickname; both are compared without regard to case."""
    return await auth.signup(
        db,
        passwords,
        email=account.email,
        password=account.password.get_secret_value(),
        nickname=account.nickname,
    )


@router.post("/login", summary="Log in", responses=refuses(InvalidCredentials, TooManyAttempts))
async def login(
    db: Db,
    passwords: PasswordHasher,
    tokens: AccessTokens,
    attempts: Attempts,
    client: Calling,
    credentials: Credentials,
) -> TokenRead:
    """Exchange e-mail and password for an access token, sent as `Authorization: Bearer …`, and a
    refresh token, for when that has expired.

    An `Idempotency-Key` has no effect here: tokens are not written down.
    """
    async with attempts.attempt(credentials.email, client.address):
        return await auth.login(
            db,
            passwords,
            tokens,
            client,
            email=credentials.email,
            password=credentials.password.get_secret_value(),
        )


@router.post(
    "/token", summary="Log in with a form", responses=refuses(InvalidCredentials, TooManyAttempts)
)
async def token(
    db: Db,
    passwords: PasswordHasher,
    tokens: AccessTokens,
    attempts: Attempts,
    client: Calling,
    form: Annotated[PasswordGrant, Form()],
) -> TokenRead:
    """The same tokens for OAuth 2.0's password form; `username` is the e-mail address.

    An `Idempotency-Key` has no effect here either.
    """
    async with attempts.attempt(form.username, client.address):
        return await auth.login(
            db,
            passwords,
            tokens,
            client,
            email=form.username,
            password=form.password.get_secret_value(),
        )
