"""An image: the ledger's row for one object in the bucket."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from sqlalchemy import CheckConstraint, ForeignKey, Index, String, false
from sqlalchemy.orm import Mapped, mapped_column

from models.base import NOW, Base, Identified, Integer, Shape, Versioned, one_of, storable


class ImageState(StrEnum):
    """An object is written after its row is `pending`, and deleted after its row is `condemned`.

    Under an `incoming` row a client may write one by itself, which nobody is shown.
    """

    INCOMING = "incoming"
    PENDING = "pending"
    ATTACHED = "attached"
    CONDEMNED = "condemned"


class Image(Identified, Base):
    __tablename__ = "images"
    __table_args__ = (
        # To a feed, or to a user as avatar.
        CheckConstraint(
            "num_nonnulls(feed_id, avatar_of) = (state = 'attached')::int", name="attached_to_one"
        ),
        Index(None, "feed_id", "position"),
        Index(None, "avatar_of", postgresql_where="avatar_of IS NOT NULL"),
        # A user has one avatar, and it has variants.
        Index(
            "uq_images_avatar_of",
            "avatar_of",
            unique=True,
            postgresql_where="original_id IS NULL",
        ),
        Index(None, "reap_dt", postgresql_where="state <> 'attached'"),
        # What a user keeps is summed up out of the index alone.
        Index(None, "owner_id", postgresql_include=["bytes", "state"]),
    )

    # Sorted by bytes, as S3 lists its objects, so that both can be read side by side.
    key: Mapped[str] = mapped_column(String(collation="C"), unique=True)
    state: Mapped[ImageState] = mapped_column(one_of(ImageState, "state"))
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    # Of a pending image: that its object is there, and not on its way.
    stored: Mapped[bool] = mapped_column(server_default=false(), default=False)
    feed_id: Mapped[int | None] = mapped_column(ForeignKey("feeds.id"))
    position: Mapped[int] = mapped_column(default=0)
    avatar_of: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    # A variant is a smaller copy; it lives and dies with its original, in rows of its own.
    original_id: Mapped[int | None] = mapped_column(
        ForeignKey("images.id", ondelete="SET NULL"), index=True
    )
    content_type: Mapped[str]
    bytes: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    alt: Mapped[str] = mapped_column(server_default="", default="")
    color: Mapped[str | None]
    placeholder: Mapped[str | None]
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW)
    # When the reaper may delete the object, unless a feed shows it by then.
    reap_dt: Mapped[datetime]


Alt = Annotated[str, StringConstraints(max_length=1000), storable]


class VariantRead(Shape):
    url: str = Field(examples=["http://localhost:8000/images/8sJd0pQ3c1m0hQ2kH3v9rA.webp"])
    width: int = Field(description="Pixels.", examples=[320])
    height: int = Field(description="Pixels.", examples=[213])
    type: str = Field(description="Content type.", examples=["image/webp"])


class ImageRead(Versioned):
    id: int = Field(examples=[7])
    url: str = Field(examples=["http://localhost:8000/images/DmqkLjB9nV0aXjMzV0yq3A.jpg"])
    width: int = Field(description="Pixels, upright.", examples=[4032])
    height: int = Field(description="Pixels, upright.", examples=[2688])
    alt: str = Field(description="What the image shows, in words.", examples=["A bowl of bibimbap"])
    placeholder: str | None = Field(
        description="A ThumbHash, in base64: a blur to show while the image loads.",
        examples=["1QcSHQRnh493V4dIh4eXh1h4kJUI"],
    )
    color: str | None = Field(description="The dominant colour.", examples=["#7a6a4f"])
    variants: list[VariantRead] = Field(description="Smaller copies, narrow ones first.")

    def edited(self) -> list[Any]:
        return [self.id, self.alt]


class OwnImageRead(ImageRead):
    feed_id: int | None = Field(description="The feed that shows it; null when none does.")
    avatar: bool = Field(description="Whether it is my avatar.")
    create_dt: datetime


class ImageUpdate(Shape):
    alt: Alt = Field(examples=["A bowl of bibimbap"])


class ImageType(StrEnum):
    """The content types of images that are taken."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    GIF = "image/gif"
    WEBP = "image/webp"
    AVIF = "image/avif"


class ImagePresign(Shape):
    type: ImageType = Field(description="As the form will have it.", examples=["image/jpeg"])
    bytes: Integer = Field(ge=1, le=2**40, description="The file's size.", examples=[3_482_113])
    alt: Alt = Field("", examples=["A bowl of bibimbap"])


class PresignedUpload(Shape):
    """A form for the browser to fill: each of `fields`, then the file as `file`."""

    id: int = Field(description="Complete the upload under this id.", examples=[7])
    url: str = Field(description="Post the form here.", examples=["https://bucket.s3.example.com/"])
    fields: dict[str, str] = Field(description="Send them as they are, before the file.")
    expires_dt: datetime = Field(description="The upload has to begin before.")
