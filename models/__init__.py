"""What is: the tables, and the shapes that clients send and receive."""

from models import (
    comment,
    feed,
    follow,
    idempotency,
    image,
    imported,
    like,
    link,
    mail,
    session,
    user,
)
from models.base import Base

__all__ = [
    "comment",
    "feed",
    "follow",
    "idempotency",
    "image",
    "imported",
    "like",
    "link",
    "mail",
    "metadata",
    "session",
    "user",
]

metadata = Base.metadata
