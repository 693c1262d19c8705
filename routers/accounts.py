"""Keeping an account over HTTP: a new password, and whose e-mail address it is."""

from fastapi import APIRouter

from models.base import Message
from models.link import EmailVerification, PasswordChange, PasswordForgotten, PasswordReset
from routers.dependencies import (
    STRICT,
    Attempts,
    ClientAddress,
    CurrentSessionId,
    CurrentUser,
    Db,
    EndedSessions,
    PasswordHasher,
)
from routers.idempotency import keyed, keyed_for_anybody
from routers.problems import refuses
from services import accounts
from services.errors import (
    ContentTooLarge,
    DatabaseUnavailable,
    InvalidInput,
    LinkNotFound,
    MalformedBody,
    NotAuthenticated,
    TooManyAttempts,
    UnsupportedMediaType,
)

router = APIRouter(
    prefix="/api/auth",
    tags=["Auth"],
    dependencies=STRICT,
    responses=refuses(ContentTooLarge, InvalidInput, DatabaseUnavailable),
)
_READS_JSON = refuses(MalformedBody, UnsupportedMediaType)


@router.post(
    "/password/change",
    summary="Change my password",
    responses=_READS_JSON | refuses(NotAuthenticated, TooManyAttempts),
)
@keyed
async def change_password(
    db: Db,
    passwords: PasswordHasher,
    attempts: Attempts,
    address: ClientAddress,
    revocations: EndedSessions,
    user: CurrentUser,
    session_id: CurrentSessionId,
    change: PasswordChange,
) -> Message:
    """Change the password, which logs out everywhere else, and is told by mail.

    A wrong old one counts with those at log-in, and has to wait like them.
    """
    return await accounts.change_password(
        db,
        passwords,
        attempts,
        revocations,
        user,
        old=change.old_password.get_secret_value(),
        new=change.new_password.get_secret_value(),
        address=address,
        session_id=session_id,
    )


@router.post("/password/forgot", summary="Ask for a new password", responses=_READS_JSON)
@keyed_for_anybody
async def forgot_password(db: Db, account: PasswordForgotten) -> Message:
    """If there is an account of this address, a mail goes there with a link that works once, for
    30 minutes; links of earlier mails stop working. The answer is the same for every address."""
    return await accounts.forget_password(db, email=account.email)


@router.post(
    "/password/reset",
    summary="Choose a new password",
    responses=_READS_JSON | refuses(LinkNotFound),
)
@keyed_for_anybody
async def reset_password(
    db: Db, passwords: PasswordHasher, revocations: EndedSessions, reset: PasswordReset
) -> Message:
    """Set the password by the token of a mail's link, which logs out everywhere, and is told by
    another mail."""
    password = reset.password.get_secret_value()
    return await accounts.reset_password(
        db, passwords, revocations, token=reset.token, password=password
    )


@router.post(
    "/email/send",
    summary="Ask for another mail to confirm my address",
    responses=refuses(NotAuthenticated),
)
@keyed
async def send_verification(db: Db, user: CurrentUser) -> Message:
    """Send another link for confirming my address; links of earlier mails stop working."""
    return await accounts.send_verification(db, user)


@router.post(
    "/email/verify",
    summary="Confirm an address",
    responses=_READS_JSON | refuses(LinkNotFound),
)
@keyed_for_anybody
async def verify_email(db: Db, verification: EmailVerification) -> Message:
    """Confirm an address by the token of a mail's link."""
    return await accounts.verify_email(db, token=verification.token)
