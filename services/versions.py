"""Versions: that nobody overwrites, unseen, what somebody else has changed meanwhile."""

from models.base import Versioned
from services.errors import PreconditionFailed

# What the editor has seen: any of these, or (None) whatever there is now.
Expected = frozenset[str] | None


def require(expected: Expected, shown: Versioned) -> None:
    """Raise PreconditionFailed unless what is shown, and locked, is what the editor has seen."""
    if expected is not None and shown.version() not in expected:
        raise PreconditionFailed
