"""Sessions: begun by a log-in, kept going by refresh tokens, ended by whoever they belong to.

Whatever changes a session holds its row's lock. The lock is a statement of its own and the first:
those after it see all that was committed before. Many at once are locked in the order of their ids.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import NOW, CursorQuery, Message
from models.session import RefreshToken, Session, SessionRead
from models.user import TokenRead, User
from services import idempotency, purges
from services.access import require_own
from services.cursors import Cursor, Page, following, keyset
from services.errors import InvalidRefreshToken, RefreshTokenReused, SessionNotFound
from services.revocations import Revocations, notify
from services.tokens import Tokens

# For how long a used refresh token is taken once more: two tabs may send the same one at once, and
# an answer may be lost on its way.
GRACE = timedelta(seconds=10)
# How long after its end a session is forgotten; no access token lives longer.
KEPT = timedelta(days=2)
DEVICE_LENGTH = 200


@dataclass(frozen=True)
class Client:
    """What a request says of where it comes from."""

    device: str
    address: str

    @classmethod
    def of(cls, user_agent: str, address: str) -> "Client":
        """Cut to what is stored; PostgreSQL holds no U+0000."""
        return cls(user_agent.replace("\0", "")[:DEVICE_LENGTH], address)


async def begin(db: AsyncSession, tokens: Tokens, user: User, client: Client) -> TokenRead:
    """Begin a session, in the caller's transaction, which has locked the user."""
    session = Session(
        user_id=user.id,
        device=client.device,
        address=client.address,
        expires_dt=NOW + tokens.refresh,
    )
    db.add(session)
    await db.flush()
    return await _pair(db, tokens, user, session.id)


async def refresh(
    db: AsyncSession, tokens: Tokens, revocations: Revocations, client: Client, token: str
) -> TokenRead:
    """Exchange a refresh token for a new pair.

    Raises InvalidRefreshToken; and RefreshTokenReused when it was used before, longer ago than
    GRACE, which ends its session: one of two who had it is a thief, and nobody knows which.
    """
    digest = _digest(token)
    async with db.begin():
        session = await _locked_by(db, digest)
        found = select(RefreshToken.id, RefreshToken.used_dt < NOW - GRACE)
        token_id, reused = (await db.execute(found.where(RefreshToken.token_hash == digest))).one()
        if reused:
            await _end(db, session.user_id, Session.id == session.id)
        else:
            await _use(db, tokens, session, token_id, client)
            user = await db.get_one(User, session.user_id)
            pair = await _pair(db, tokens, user, session.id)
    if reused:
        revocations.note([session.id])
        raise RefreshTokenReused
    return pair


async def page(
    db: AsyncSession, user: User, query: CursorQuery, *, current_id: int
) -> Page[SessionRead]:
    """A page of a user's sessions that go on, newest first; raises InvalidInput for a cursor."""
    cursor = Cursor.newest_first(query.cursor)
    mine = select(Session).where(Session.user_id == user.id, *_going_on())
    statement = keyset(mine, Session.create_dt, Session.id, cursor, descending=True)
    async with db.begin():
        rows = (await db.scalars(statement.limit(query.limit + 1))).all()
    shown = [_shown(session, current_id) for session in rows[: query.limit]]
    return Page(shown, following(rows, query.limit))


async def end(db: AsyncSession, revocations: Revocations, user: User, session_id: int) -> Message:
    """End one of the user's sessions; raises SessionNotFound and Forbidden."""
    there = select(Session.user_id).where(Session.id == session_id, *_going_on())
    async with db.begin():
        owner_id = await db.scalar(there.with_for_update())
        if owner_id is None:
            raise SessionNotFound
        require_own(user, owner_id)
        ended = await _end(db, user.id, Session.id == session_id)
        done = await idempotency.keep(db, Message(message="Session Ended"))
    revocations.note(ended)
    return done


async def log_out(
    db: AsyncSession, revocations: Revocations, user: User, session_id: int, *, everywhere: bool
) -> None:
    """End this session of the user, or all of them; one that has ended meanwhile stays so."""
    async with db.begin():
        if everywhere:
            ended = await end_all(db, user.id)
        else:
            ended = await _end(db, user.id, Session.id == session_id)
    revocations.note(ended)


async def end_all(db: AsyncSession, user_id: int, *, but: int | None = None) -> Sequence[int]:
    """End a user's sessions, `but` one, in the caller's transaction; gives their ids.

    The commit, which should not be long in coming, tells every process. To be the first to know,
    the caller notes the ids in `revocations` after it. A caller that has locked the user's row lets
    no session begin meanwhile.
    """
    return await _end(db, user_id, *(() if but is None else (Session.id != but,)))


async def purge(db: AsyncSession, *, batch: int = 1000) -> None:
    """Forget refresh tokens that have expired, and sessions that ended KEPT ago or longer."""
    for table, over in (
        (RefreshToken, RefreshToken.expires_dt <= NOW),
        (Session, Session.ended_dt <= NOW - KEPT),
        (Session, Session.expires_dt <= NOW - KEPT),
    ):
        due = select(table.id).where(over).limit(batch).with_for_update(skip_locked=True)
        await purges.purge(db, delete(table).where(table.id.in_(due)), table.id)


def _going_on() -> tuple[ColumnElement[bool], ...]:
    return Session.ended_dt.is_(None), Session.expires_dt > NOW


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _shown(session: Session, current_id: int) -> SessionRead:
    return SessionRead(
        id=session.id,
        device=session.device,
        address=session.address,
        create_dt=session.create_dt,
        last_used_dt=session.last_used_dt,
        expires_dt=session.expires_dt,
        current=session.id == current_id,
    )


async def _locked_by(db: AsyncSession, digest: bytes) -> Session:
    """Lock the session of a refresh token that may be good; raises InvalidRefreshToken."""
    good = (
        select(RefreshToken.session_id)
        .where(RefreshToken.token_hash == digest, RefreshToken.expires_dt > NOW)
        .scalar_subquery()
    )
    locked = select(Session).where(Session.id == good, *_going_on()).with_for_update()
    session = await db.scalar(locked)
    if session is None:
        raise InvalidRefreshToken
    return session


async def _use(
    db: AsyncSession, tokens: Tokens, session: Session, token_id: int, client: Client
) -> None:
    """Note that a token was used for the first time, and that the session goes on."""
    first = update(RefreshToken).where(RefreshToken.id == token_id, RefreshToken.used_dt.is_(None))
    await db.execute(first.values(used_dt=NOW))
    session.device, session.address = client.device, client.address
    session.last_used_dt, session.expires_dt = NOW, NOW + tokens.refresh


async def _pair(db: AsyncSession, tokens: Tokens, user: User, session_id: int) -> TokenRead:
    token = secrets.token_urlsafe(32)
    kept = insert(RefreshToken).values(
        session_id=session_id, token_hash=_digest(token), expires_dt=NOW + tokens.refresh
    )
    await db.execute(kept)
    return TokenRead(
        email=user.email,
        nickname=user.nickname,
        access_token=tokens.issue(user.id, session_id),
        expires_in=tokens.seconds,
        refresh_token=token,
    )


async def _end(db: AsyncSession, user_id: int, *which: ColumnElement[bool]) -> Sequence[int]:
    mine = select(Session.id).where(Session.user_id == user_id, Session.ended_dt.is_(None), *which)
    locked = (await db.scalars(mine.order_by(Session.id).with_for_update())).all()
    ended = (
        update(Session)
        .where(Session.id.in_(locked))
        .values(ended_dt=NOW)
        .returning(Session.id)
        .cte("ended")
    )
    told = select(ended.c.id, notify(ended.c.id)).execution_options(synchronize_session=False)
    return (await db.scalars(told)).all()
