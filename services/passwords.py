"""Passwords: Argon2id, in threads, few at a time; and a new one has to be hard to guess.

Accounts that came from another board have a hash by bcrypt until they log in. It is slower, so that
whoever guesses would be told by it which accounts there are: `even_out` makes up for that.
"""

import re
from collections.abc import Sequence

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from services.errors import InvalidInput
from services.strength import advice

# Of an account that nobody can log in to, until its owner has set a password by mail.
UNUSABLE = "!"
# Beyond these a hash from elsewhere would keep a core busy, or fill the memory, at each log-in.
_MAX_COST = 15
_MAX_KIB_PASSES = 2**20
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ARGON2 = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=\d{1,2}(\$[+/A-Za-z0-9]{11,86}){2}"
)


def is_usable(password_hash: str) -> bool:
    """Whether a hash from elsewhere is one that can be verified here."""
    if bcrypt := _BCRYPT.fullmatch(password_hash):
        return 4 <= int(bcrypt[1]) <= _MAX_COST
    argon2 = _ARGON2.fullmatch(password_hash)
    return argon2 is not None and int(argon2[1]) * int(argon2[2]) <= _MAX_KIB_PASSES


class _Bcrypt(BcryptHasher):
    """Looks at 72 bytes, as bcrypt always has; the library refuses longer passwords."""

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002 - pwdlib's
        encoded = password.encode() if isinstance(password, str) else password
        return super().verify(encoded[:72], hash)


class Passwords:
    """Hashes and verifies, never on the event loop.

    Cost: OWASP's Argon2id setting of 19 MiB, two passes, one lane (Password Storage Cheat Sheet;
    RFC 9106, section 4). One lane, so that a log-in takes one core and requests keep the others.
    """

    def __init__(self, workers: int) -> None:
        self._hasher = PasswordHash(
            [Argon2Hasher(time_cost=2, memory_cost=19 * 1024, parallelism=1), _Bcrypt()]
        )
        self._limiter = CapacityLimiter(workers)
        self._nobody = self._hasher.hash("what is compared when there is no such account")

    async def hash(self, password: str, *, known: Sequence[str], pointer: str = "/password") -> str:
        """Hash a password that somebody chose; `known` is what others know of them.

        Raises InvalidInput for one that is easily guessed.
        """
        return await to_thread.run_sync(self._hash, password, known, pointer, limiter=self._limiter)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Say whether the password has this hash; None costs the same time and is never right."""
        return (await self.verify_and_renew(password, password_hash))[0]

    async def verify_and_renew(
        self, password: str, password_hash: str | None
    ) -> tuple[bool, str | None]:
        """As `verify`, and the password's new hash where the given one is of another cost."""
        matches, renewed = await to_thread.run_sync(
            self._verify, password, password_hash or self._nobody, limiter=self._limiter
        )
        return (matches, renewed) if password_hash else (False, None)

    async def even_out(self, password: str, password_hash: str | None, *, cost: int) -> None:
        """Work on a password that was wrong until it has cost the same, whatever its hash was.

        `cost` is that of the hashes by bcrypt which there are: its logarithm, as they name it.
        """
        was_bcrypt = _BCRYPT.fullmatch(password_hash or "") is not None
        decoy = self._nobody if was_bcrypt else f"$2b${cost:02}${'.' * 53}"
        await to_thread.run_sync(self._verify, password, decoy, limiter=self._limiter)

    def _hash(self, password: str, known: Sequence[str], pointer: str) -> str:
        if weakness := advice(password, known):
            raise InvalidInput(weakness, pointer=pointer)
        return self._hasher.hash(password)

    def _verify(self, password: str, password_hash: str) -> tuple[bool, str | None]:
        try:
            return self._hasher.verify_and_update(password, password_hash)
        except UnknownHashError:
            self._hasher.verify(password, self._nobody)
            return False, None
