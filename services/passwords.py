"""Passwords: Argon2id, in threads, few at a time."""

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher


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

    async def hash(self, password: str) -> str:
        return await to_thread.run_sync(self._hasher.hash, password, limiter=self._limiter)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Say whether the password has this hash; None costs the same time and is never right."""
        matches = await to_thread.run_sync(
            self._verify, password, password_hash or self._nobody, limiter=self._limiter
        )
        return matches and password_hash is not None

    def _verify(self, password: str, password_hash: str) -> bool:
        try:
            return self._hasher.verify(password, password_hash)
        except UnknownHashError:
            return False
