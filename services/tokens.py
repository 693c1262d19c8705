"""Access tokens: JWT (RFC 7519), signed with HS256 and nothing else."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import jwt

from models.base import MAX_ID
from services.errors import NotAuthenticated

ALGORITHM = "HS256"
_EXPIRED = "The access token has expired; log in again."
_NOT_VALID = "The access token is not valid; log in again."


class Tokens:
    def __init__(self, secret: str, minutes: int) -> None:
        self._secret = secret
        self.seconds = minutes * 60
        # Whoever comes again need not be checked again: a tenth of a small request's time.
        self._verified = lru_cache(maxsize=10_000)(self._verify)

    def issue(self, user_id: int) -> str:
        """Sign an access token whose subject is the user's id."""
        now = datetime.now(UTC)
        claims = {"sub": str(user_id), "iat": now, "exp": now + timedelta(seconds=self.seconds)}
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def user_id(self, token: str) -> int:
        """The user's id in a token; raises NotAuthenticated unless it is ours and still good."""
        user_id, expires = self._verified(token)
        if expires <= time.time():
            raise NotAuthenticated(_EXPIRED)
        return user_id

    def _verify(self, token: str) -> tuple[int, int]:
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                options={"require": ["sub", "iat", "exp"]},
            )
            user_id = int(claims["sub"])
        except jwt.ExpiredSignatureError:
            raise NotAuthenticated(_EXPIRED) from None
        except (jwt.InvalidTokenError, ValueError):
            raise NotAuthenticated(_NOT_VALID) from None
        if not 0 < user_id <= MAX_ID:
            raise NotAuthenticated(_NOT_VALID)
        return user_id, int(claims["exp"])
