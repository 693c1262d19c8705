"""An export to be read: files of JSON Lines, and images, in a folder or a bucket."""

import json
from collections.abc import AsyncGenerator
from hashlib import sha256
from typing import Any

import obstore
from obstore.store import ObjectStore

from models.imported import Kind
from services.board_export import FORMAT, MANIFEST, VERSION, file_of
from services.importing.arrivals import Row, Survey

# Bytes that a line may have: more than the longest words take, however they are written.
MAX_LINE = 16 * 1024 * 1024


class NoExport(Exception):
    """The folder holds no whole export; the text says why."""


class Folder:
    """An export in a place."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place

    async def survey(self) -> Survey:
        """Read it all once; raises NoExport for one that was broken off, or is not as it was."""
        told = await self._manifest()
        counts: dict[str, int] = {}
        last_feed = 0
        for kind in Kind:
            file, digest, number = file_of(kind), sha256(), 0
            async for line in self._lines(kind, digest):
                number += 1
                if kind is Kind.FEEDS:
                    last_feed = max(last_feed, _number(line))
            counts[kind] = number
            said = told.get(file, {})
            if said.get("sha256", digest.hexdigest()) != digest.hexdigest():
                raise NoExport(f"{file} is not as it was when {MANIFEST} was written.")
        return Survey(counts, last_feed)

    async def rows(self, kind: str) -> AsyncGenerator[Row]:
        number = 0
        async for line in self._lines(kind):
            number += 1
            yield _row(line, number)

    async def _manifest(self) -> dict[str, Any]:
        try:
            found = await obstore.get_async(self._place, MANIFEST)
            manifest = json.loads(bytes(await found.bytes_async()))
        except FileNotFoundError:
            raise NoExport(
                f"There is no {MANIFEST}: the export was broken off, or this is none."
            ) from None
        except ValueError:
            raise NoExport(f"{MANIFEST} is no JSON.") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise NoExport(f"{MANIFEST} does not say that its format is {FORMAT!r}.")
        if manifest.get("version") != VERSION:
            raise NoExport(f"{MANIFEST} is of another version than {VERSION}.")
        files = manifest.get("files")
        return files if isinstance(files, dict) else {}

    async def _lines(self, kind: str, digest: Any = None) -> AsyncGenerator[bytes]:
        """The lines of a kind's file, if there is one."""
        try:
            found = await obstore.get_async(self._place, file_of(kind))
        except FileNotFoundError:
            return
        rest = b""
        async for chunk in found.stream():
            if digest is not None:
                digest.update(chunk)
            *lines, rest = (rest + bytes(chunk)).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line
            if len(rest) > MAX_LINE:
                raise NoExport(f"{file_of(kind)} has a line of more than {MAX_LINE:,} bytes.")
        if rest.strip():
            yield rest


def _row(line: bytes, number: int) -> Row:
    fields = _parsed(line)
    if fields is None:
        return Row(f"in line {number}", {}, fault="the line is no object of JSON")
    # Its number is how it is found, where it is one.
    label = str(fields.get("id", ""))
    return Row(label if 0 < len(label) <= 60 else f"in line {number}", fields)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _number(line: bytes) -> int:
    """The number of a feed; 0 of what has none."""
    id_ = str((_parsed(line) or {}).get("id"))
    return int(id_) if id_.isascii() and id_.isdigit() and len(id_) <= 18 else 0
