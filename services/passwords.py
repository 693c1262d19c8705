"""Passwords: Argon2id, in threads, few at a time; and a new one has to be hard to guess."""

from collections.abc import Sequence

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

from services.errors import InvalidInput
from services.strength import advice


class Passwords:
    """Hashes and verifies, never on the event loop.

    Cost: OWASP's Argon2id setting of 19 MiB, two passes, one lane (Password Storage Cheat Sheet;
    RFC 9106, section 4). One lane, so that a log-in takes one core and requests keep the others.
    """

    def __init__(self, workers: int) -> None:
        self._hasher = PasswordHash(
            [Argon2Hasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)]
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
        return (matches, renewed) if password_hash is not None else (False, None)

    def _hash(self, password: str, known: Sequence[str], pointer: str) -> str:
        if weakness := advice(password, known):
            raise InvalidInput(weakness, pointer=pointer)
        return self._hasher.hash(password)

    def _verify(self, password: str, password_hash: str) -> tuple[bool, str | None]:
        try:
            return self._hasher.verify_and_update(password, password_hash)
        except UnknownHashError:
            return False, None
