"""Backups as they lie in a place: what is in which file, and how each is known to be whole.

    objects/<key>                       images, shared by all backups; one never changes
    backups/<UTC time>/database.dump    in PostgreSQL's custom format
    backups/<UTC time>/objects-*.jsonl  which objects belong to it, with their checksums
    backups/<UTC time>/manifest.json    what the backup is, with the checksums of the other files

The manifest is written last: without one a backup is unfinished, and its lists tell the next one
what was copied.
"""

import hashlib
import re
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import NamedTuple, Self

from obstore.store import ObjectStore
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from config.settings import SettingsError
from services.backups.copying import Damaged, Reading
from services.store import SHOWN

OBJECTS, BACKUPS = "objects/", "backups/"
# Images alone: what else lies in such a folder is not ours to delete.
SHOWN_OBJECTS = OBJECTS + SHOWN
_NAME = re.compile(r"\d{8}T\d{6}Z")
DUMP, MANIFEST, LIST = "database.dump", "manifest.json", "objects-{:06}.jsonl"
# Objects in a list.
LISTED = 1000


class Entry(NamedTuple):
    """An object of a backup; one that was missing in the bucket has no checksum."""

    key: str
    type: str
    size: int
    sha256: str | None

    @property
    def path(self) -> str:
        return OBJECTS + self.key


class File(BaseModel):
    """A file beside the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What a backup is: of what, when, how much, and in which files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    name: str
    create_dt: datetime
    # The release and the schema that it is of.
    feedboard: str
    revision: str
    objects: int
    size: int
    # Of the objects, those that were missing in the bucket.
    missing: int
    dump: File
    lists: tuple[File, ...]

    def sealed(self) -> bytes:
        """As it is written, with its own checksum."""
        body = self.model_dump(mode="json")
        return to_json(body | {"sha256": _sum(body)}, indent=1)

    @classmethod
    def unsealed(cls, text: bytes) -> Self:
        """Read what was written; raises ValueError if it is not that."""
        body = from_json(text)
        seal = body.pop("sha256", None) if isinstance(body, dict) else None
        if seal is None or seal != _sum(body):
            raise ValueError("its checksum does not match")
        return cls.model_validate(body)


def _sum(body: object) -> str:
    return hashlib.sha256(to_json(body)).hexdigest()


def path_of(name: str, file: str) -> str:
    return f"{BACKUPS}{name}/{file}"


async def put(place: ObjectStore, name: str, file: str, content: bytes) -> File:
    """Write a file of a backup."""
    await place.put_async(path_of(name, file), content)
    return File(name=file, size=len(content), sha256=hashlib.sha256(content).hexdigest())


async def names(place: ObjectStore) -> list[str]:
    """All backups in a place, also unfinished ones, oldest first."""
    found = await place.list_with_delimiter_async(BACKUPS)
    folders = (prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])
    return sorted(filter(_NAME.fullmatch, folders))


async def is_finished(place: ObjectStore, name: str) -> bool:
    try:
        await place.head_async(path_of(name, MANIFEST))
    except FileNotFoundError:
        return False
    return True


async def newest(place: ObjectStore) -> str | None:
    """The newest that was finished."""
    for name in reversed(await names(place)):
        if await is_finished(place, name):
            return name
    return None


async def choose(place: ObjectStore, name: str | None) -> Manifest:
    """A backup by its name, or the newest; raises SettingsError without it, and Damaged."""
    chosen = name or await newest(place)
    if chosen is None:
        raise SettingsError("There is no backup in this place, or none that was finished.")
    try:
        return await manifest(place, chosen)
    except FileNotFoundError:
        there = [it for it in await names(place) if await is_finished(place, it)]
        raise SettingsError(
            f"There is no backup {chosen!r} in this place, or it was not finished; "
            f"there are: {', '.join(there) or 'none'}."
        ) from None


async def manifest(place: ObjectStore, name: str) -> Manifest:
    """What a backup is; raises FileNotFoundError, and Damaged if it cannot be told."""
    path = path_of(name, MANIFEST)
    found = await place.get_async(path)
    try:
        return Manifest.unsealed(bytes(await found.bytes_async()))
    except (ValueError, ValidationError) as error:
        raise Damaged(f"{path} is damaged ({str(error).splitlines()[0]})") from error


async def listed(place: ObjectStore, name: str, file: File) -> Sequence[Entry]:
    """The objects in a list of a backup; raises Damaged, and FileNotFoundError."""
    path = path_of(name, file.name)
    reading = await Reading(place, path).open()
    text = b"".join([piece async for piece in reading.pieces(file.sha256)])
    return _parsed(path, text)


async def copied_before(place: ObjectStore, name: str) -> AsyncGenerator[Entry]:
    """What the lists of a backup name that was perhaps not finished; raises Damaged."""
    async for files in place.list(path_of(name, "")):
        for path in (file["path"] for file in files if file["path"].endswith(".jsonl")):
            found = await place.get_async(path)
            for entry in _parsed(path, bytes(await found.bytes_async())):
                yield entry


async def entries(place: ObjectStore, manifest: Manifest) -> AsyncGenerator[Entry]:
    """All objects of a backup, in the order of their keys; raises Damaged, FileNotFoundError."""
    for file in manifest.lists:
        for entry in await listed(place, manifest.name, file):
            yield entry


def _parsed(path: str, text: bytes) -> Sequence[Entry]:
    try:
        return [Entry(*from_json(line)) for line in text.splitlines()]
    except (ValueError, TypeError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error


async def sizes(place: ObjectStore, *folders: str) -> dict[str, int]:
    """What lies in folders of a place, by its path, with its size."""
    return {
        file["path"]: file["size"]
        for folder in folders
        async for files in place.list(folder, chunk_size=1000)
        for file in files
    }
