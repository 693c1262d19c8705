"""Who may do what with whose things; `tests/test_access.py` walks every route as everybody."""

from models.user import User
from services.errors import Forbidden


def require_own(user: User, owner_id: int) -> None:
    """Raise Forbidden unless it is theirs: nobody speaks in another's name."""
    if owner_id != user.id:
        raise Forbidden


def require_deletable(user: User, owner_id: int) -> None:
    """Raise Forbidden unless it is theirs, or they are an administrator, who keeps the house."""
    if owner_id != user.id and not user.is_admin:
        raise Forbidden
