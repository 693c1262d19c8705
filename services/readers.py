"""Who reads, and what that one may see."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reader:
    """Somebody who is signed in (by id), or anybody (None)."""

    id: int | None
    # Whether the instance shows everybody's e-mail address to everybody.
    sees_emails: bool = True

    def email(self, address: str, *, of: int) -> str | None:
        """A user's address, if the reader may see it."""
        return address if self.sees_emails or self.id == of else None
