"""Moving in: another board's people, feeds, comments, likes and follows are taken into this one.

Kind after kind, and batch after batch, each batch a transaction of its own, which also writes down
what it took: so an import that was broken off goes on where it ended, and one that is run again
takes what has come since, and changes nothing of what it took before.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from models.imported import Kind
from models.record import (
    AvatarRecord,
    CommentRecord,
    FeedRecord,
    FollowRecord,
    LikeRecord,
    Record,
    UserRecord,
)
from services.importing.arrival import Arrival, Found
from services.importing.arrivals import Degree, Row, Source
from services.importing.feeds import take_feeds
from services.importing.images import take_avatars
from services.importing.people import Accounts, take_follows
from services.importing.words import Comments, take_likes
from services.several import batches

# Of each kind its record, and how many are taken at a time: feeds may be long.
_RECORDS: dict[Kind, tuple[type[Record], int]] = {
    Kind.USERS: (UserRecord, 500),
    Kind.AVATARS: (AvatarRecord, 100),
    Kind.FEEDS: (FeedRecord, 200),
    Kind.COMMENTS: (CommentRecord, 1000),
    Kind.LIKES: (LikeRecord, 2000),
    Kind.FOLLOWS: (FollowRecord, 2000),
}


async def take(arrival: Arrival, source: Source, advance: Callable[[Kind, int], object]) -> None:
    """Take all that can be taken; the report is told of the rest.

    Raises BrokenRow when the report is strict, AnotherBoard for a name under which another board's
    things were taken, StorageUnavailable, and what the source and the database raise.
    """
    accounts, comments = Accounts(arrival), Comments(arrival)

    steps: dict[Kind, Callable[[Any], Awaitable[None]]] = {
        Kind.USERS: accounts.take,
        Kind.AVATARS: lambda avatars: take_avatars(arrival, avatars),
        Kind.FEEDS: lambda feeds: take_feeds(arrival, feeds),
        Kind.COMMENTS: comments.take,
        Kind.LIKES: lambda likes: take_likes(arrival, likes),
        Kind.FOLLOWS: lambda follows: take_follows(arrival, follows),
    }
    for kind, step in steps.items():
        async with aclosing(batches(source.rows(kind), _RECORDS[kind][1])) as taken:
            async for batch in taken:
                found = _judged(arrival, kind, batch)
                if kind is Kind.USERS:
                    await accounts.require_same(found)
                if new := await _unknown(arrival, kind, found):
                    await step(new)
                advance(kind, sum(row.times for row in batch))


def _judged(arrival: Arrival, kind: Kind, rows: Sequence[Row]) -> list[Found[Any]]:
    """The rows that are records; what is wrong with the others is said."""
    found = []
    for row in rows:
        if row.fault is not None:
            arrival.report.skip(kind, row, row.fault)
            continue
        try:
            found.append(Found(row, _RECORDS[kind][0].model_validate(row.fields)))
        except ValidationError as error:
            arrival.report.skip(kind, row, _sentence(error))
    return found


async def _unknown(arrival: Arrival, kind: Kind, found: Sequence[Found[Any]]) -> list[Found[Any]]:
    """Those that were not taken before, each once; what they lack is said."""
    by_key: dict[str, Found[Any]] = {}
    for it in found:
        key = it.record.key()
        arrival.report.twice[kind] += it.row.times - 1 + (key in by_key)
        by_key.setdefault(key, it)
    async with arrival.sessions() as db, db.begin():
        known = await arrival.book.known(db, kind, list(by_key))
    arrival.report.known[kind] += len(known)
    new = [it for key, it in by_key.items() if key not in known]
    for it in new:
        for loss in it.row.losses:
            arrival.report.remark(kind, it.row, Degree.LESSENED, loss)
    return new


def _sentence(error: ValidationError) -> str:
    """What is wrong with a record; its values stay out, as they may be anything."""
    wrong = error.errors(include_input=False, include_url=False, include_context=False)
    said = []
    for it in wrong[:3]:
        field = ".".join(str(part) for part in it["loc"])
        message = it["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:].rstrip(".")
        said.append(f"{field}: {message}" if field else f"it {message}")
    return "; ".join(said)
