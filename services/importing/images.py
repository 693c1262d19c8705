"""Images of another board: found where they lie, and taken the way that uploads take."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import GenericError
from obstore.store import LocalStore, ObjectStore
from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.image import Image
from models.imported import Kind
from models.record import AvatarRecord, Picture
from models.user import User
from services import ledger
from services.errors import (
    DamagedImage,
    ImageTooLarge,
    NotAuthenticated,
    Refusal,
    UnsupportedImage,
)
from services.importing.arrival import Arrival, Found, users_here
from services.importing.arrivals import Degree, Row
from services.ledger import Upload
from services.several import each

_UNFIT = (UnsupportedImage, ImageTooLarge, DamagedImage)


_GONE = "its image {!r:.200} is not there"


class Unfit(Exception):
    """A file that is not there, or is no image that this board takes; the text says why."""


@asynccontextmanager
async def stored(
    db: AsyncSession,
    arrival: Arrival,
    kind: Kind,
    row: Row,
    owner_id: int,
    pictures: Sequence[Picture],
) -> AsyncGenerator[list[Image]]:
    """Put a row's images into the bucket, for the block to attach; those that cannot be are named.

    Raises NotAuthenticated for an owner who has left, and StorageUnavailable.
    """
    owner = User(id=owner_id)
    async with AsyncExitStack() as opened:
        uploads = []
        for picture in pictures:
            try:
                file = await opened.enter_async_context(_fetched(arrival, picture))
                uploads.append(Upload(file, _name(picture), picture.alt))
            except Unfit as error:
                arrival.report.remark(kind, row, Degree.LESSENED, str(error))
        try:
            images = await opened.enter_async_context(
                ledger.stored(db, arrival.images, owner, uploads)
            )
        except _UNFIT:
            fit = await _fit(arrival, kind, row, uploads)
            images = await opened.enter_async_context(ledger.stored(db, arrival.images, owner, fit))
        yield images


async def look_for(arrival: Arrival, kind: Kind, row: Row, pictures: Sequence[Picture]) -> int:
    """Count a row's images; those that are not there, or are too large, are named."""
    found = 0
    for picture in pictures:
        try:
            await _found(arrival, picture)
            found += 1
        except Unfit as error:
            arrival.report.remark(kind, row, Degree.LESSENED, str(error))
    return found


async def take_avatars(arrival: Arrival, avatars: Sequence[Found[AvatarRecord]]) -> None:
    """Give users the avatars that they had, unless they have one here."""
    await each(partial(_take_avatar, arrival), avatars, at_once=arrival.at_once)


async def _take_avatar(arrival: Arrival, avatar: Found[AvatarRecord]) -> None:
    old_id, report = avatar.record.user_id, arrival.report
    async with arrival.sessions() as db:
        async with db.begin():
            user_id = (await users_here(db, arrival, [old_id])).get(old_id)
            has_one = await db.scalar(select(exists().where(Image.avatar_of == user_id)))
        if user_id is None:
            report.skip(Kind.AVATARS, avatar.row, f"user {old_id} is not on this board")
            return
        if has_one:
            report.known[Kind.AVATARS] += 1
            return
        pictures = [avatar.record.image]
        if arrival.rehearsal:
            report.taken[Kind.AVATARS] += await look_for(
                arrival, Kind.AVATARS, avatar.row, pictures
            )
            return
        try:
            images = stored(db, arrival, Kind.AVATARS, avatar.row, user_id, pictures)
            async with images as rows, db.begin():
                for image in rows:
                    await ledger.attach_avatar(db, image, user_id=user_id)
                await arrival.book.note(db, Kind.AVATARS, {old_id: None})
            report.taken[Kind.AVATARS] += len(rows)
        except NotAuthenticated as error:
            report.skip(Kind.AVATARS, avatar.row, error.detail.rstrip("."))


async def _fit(arrival: Arrival, kind: Kind, row: Row, uploads: Sequence[Upload]) -> list[Upload]:
    """Those of some uploads that are taken, each tried by itself; the others are named."""
    fit = []
    for upload in uploads:
        try:
            async with arrival.images.cleaner.cleaned([(upload.file, upload.name)]):
                fit.append(upload)
        except _UNFIT as error:
            arrival.report.remark(kind, row, Degree.LESSENED, _sentence(error))
    return fit


@asynccontextmanager
async def _fetched(arrival: Arrival, picture: Picture) -> AsyncGenerator[BinaryIO]:
    """Lend an image's file, wherever it lies; raises Unfit."""
    place, path = await _found(arrival, picture)
    with tempfile.TemporaryFile() as file:
        try:
            result = await obstore.get_async(place, path)
        except FileNotFoundError:
            raise Unfit(_GONE.format(picture.file)) from None
        async for chunk in result.stream():
            await asyncio.to_thread(file.write, bytes(chunk))
        yield file


async def _found(arrival: Arrival, picture: Picture) -> tuple[ObjectStore, str]:
    """Where an image lies; raises Unfit, and NoImages when none ever is where it should be."""
    if arrival.place is None:
        raise Unfit(f"its image {picture.file!r:.200} is left behind")
    for path in _paths(picture.file):
        size = await _size(arrival.place, path)
        if size is None:
            continue
        arrival.report.look(found=True)
        if size > (limit := arrival.images.max_bytes):
            raise Unfit(f"{_name(picture)} has {size:,} bytes; the limit is {limit:,} bytes")
        return arrival.place, path
    arrival.report.look(found=False)
    raise Unfit(_GONE.format(picture.file))


def _paths(file: str) -> Iterator[str]:
    """Where a file may lie that is called by a URL or a path: the whole path, then ever less.

    A URL begins with the bucket's name or with none, and a place may be a folder of the bucket.
    """
    parts = [part for part in _path(file).split("/") if part]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


async def _size(place: ObjectStore, path: str) -> int | None:
    """The size of a file in bytes; None where there is none, or can be none."""
    try:
        return int((await obstore.head_async(place, path))["size"])
    except (FileNotFoundError, ValueError):  # ValueError: no path at all, such as one with `..`.
        return None
    except GenericError:
        # Such as a name that is too long, or a path through what is no folder.
        if isinstance(place, LocalStore):
            return None
        raise


def _path(file: str) -> str:
    return unquote(urlsplit(file).path) if "://" in file else file


def _name(picture: Picture) -> str:
    return PurePosixPath(_path(picture.file)).name


def _sentence(error: Refusal) -> str:
    return error.detail.rstrip(".")
