"""Leaving: what it takes, and what is left of it."""

from datetime import datetime

from pydantic import Field

from models.base import Shape
from models.user import Password


class Leave(Shape):
    password: Password = Field(
        max_length=128,
        description="My password: a token alone erases nothing.",
        examples=["my very own password"],
    )


class Receipt(Shape):
    """That an account is gone, and how much of its own it had."""

    id: str = Field(
        description="Also in the log of this instance.",
        examples=["0199d4a2-7c1e-7b3f-9a54-3f1c2d6e8b90"],
    )
    leaving_dt: datetime = Field(description="Since when the account is gone.")
    complete: bool = Field(
        description="Whether all was erased before this answer; if not, the rest follows by itself."
    )
    feeds: int = Field(description="Those that could be restored included.", examples=[12])
    comments: int = Field(description="Those that could be restored included.", examples=[40])
    likes: int = Field(description="Of feeds and of comments.", examples=[99])
    follows: int = Field(description="How many people I followed.", examples=[4])
    images: int = Field(description="Smaller copies not counted.", examples=[30])
