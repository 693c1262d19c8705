"""What is: the tables, and the shapes that clients send and receive."""

from models import feed, image, user
from models.base import Base

__all__ = ["feed", "image", "metadata", "user"]

metadata = Base.metadata
