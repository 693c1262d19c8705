"""Access tokens: JWT (RFC 7519), signed with HS256 and nothing else."""

from datetime import UTC, datetime, timedelta

import jwt

from models.base import MAX_ID
from services.errors import NotAuthenticated

ALGORITHM = "HS256"
_NOT_VALID = "The access token is not valid; log in again."


class Tokens:
    def __init__(self, secret: str, minutes: int) -> None:
        self._secret = secret
        self.seconds = minutes * 60

    def issue(self, user_id: int) -> str:
        """Sign an access token whose subject is the user's id."""
        now = datetime.now(UTC)
        claims = {"sub": str(user_id), "iat": now, "exp": now + timedelta(seconds=self.seconds)}
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def user_id(self, token: str) -> int:
        """The user's id in a token; raises NotAuthenticated unless it is ours and still good."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                options={"require": ["sub", "iat", "exp"]},
            )
            user_id = int(claims["sub"])
        except jwt.ExpiredSignatureError:
            raise NotAuthenticated("The access token has expired; log in again.") from None
        except (jwt.InvalidTokenError, ValueError):
            raise NotAuthenticated(_NOT_VALID) from None
        if not 0 < user_id <= MAX_ID:
            raise NotAuthenticated(_NOT_VALID)
        return user_id
