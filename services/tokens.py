"""Access tokens: JWT (RFC 7519), signed with HS256 and nothing else."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

import jwt

from config.settings import Settings
from models.base import MAX_ID
from services.errors import NotAuthenticated

ALGORITHM = "HS256"
# Seconds by which the clocks of two machines may differ.
SKEW = 5
_EXPIRED = "The access token has expired; refresh it, or log in again."
_NOT_VALID = "The access token is not valid; log in again."


class Access(NamedTuple):
    """What a token says: who, in which session, and until when (seconds since 1970)."""

    user_id: int
    session_id: int
    expires: int


def key_id(key: str) -> str:
    """A key's short name in the header `kid`; it gives nothing of the key away."""
    return sha256(b"kid:" + key.encode()).hexdigest()[:16]


class Tokens:
    """Signs with the first of the keys, and verifies with any of them."""

    def __init__(self, settings: Settings) -> None:
        self._keys = {key_id(key): key for key in settings.keys}
        self._signing = key_id(settings.keys[0])
        self.seconds = settings.access_token_minutes * 60
        # How long a refresh token is good for.
        self.refresh = timedelta(days=settings.refresh_token_days)
        # Whoever comes again need not be checked again: a tenth of a small request's time.
        self._verified = lru_cache(maxsize=10_000)(self._verify)

    def issue(self, user_id: int, session_id: int) -> str:
        """Sign an access token whose subject is the user's id."""
        now = datetime.now(UTC)
        claims = {
            "sub": str(user_id),
            "sid": session_id,
            "iat": now,
            "exp": now + timedelta(seconds=self.seconds),
        }
        key = self._keys[self._signing]
        return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": self._signing})

    def read(self, token: str) -> Access:
        """What a token says; raises NotAuthenticated unless it is ours and still good.

        Whether its session goes on is for the database to say, or for `revocations`.
        """
        access = self._verified(token)
        if access.expires <= time.time():
            raise NotAuthenticated(_EXPIRED)
        return access

    def _verify(self, token: str) -> Access:
        try:
            claims = jwt.decode(
                token,
                self._keys[jwt.get_unverified_header(token)["kid"]],
                algorithms=[ALGORITHM],
                leeway=SKEW,
                options={"require": ["sub", "sid", "iat", "exp"]},
            )
            user_id, session_id = int(claims["sub"]), int(claims["sid"])
        except jwt.ExpiredSignatureError:
            raise NotAuthenticated(_EXPIRED) from None
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError, OverflowError):
            raise NotAuthenticated(_NOT_VALID) from None
        # As we write them, and no other spelling: int() would take 1.9, true, and "١".
        ours = claims["sub"] == str(user_id) and type(claims["sid"]) is int
        if not (ours and 0 < user_id <= MAX_ID and 0 < session_id <= MAX_ID):
            raise NotAuthenticated(_NOT_VALID)
        # No token outlives what is set now: the ends of sessions are remembered for no longer.
        expires = min(int(claims["exp"]), int(claims["iat"]) + self.seconds)
        return Access(user_id, session_id, expires)
