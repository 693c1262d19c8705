"""What home costs in PostgreSQL, by three plans, on 1 000 000 feeds of 100 000 authors.

Run by `python -m bench.home`; it makes the data in an embedded PostgreSQL, which takes a minute or
two. Milliseconds are those of EXPLAIN (ANALYZE), planning and execution, medians of RUNS warm ones;
`generic` is the chosen statement by a plan made without its values, as a prepared statement may be;
`of 100` is a page of 100; `served` is `services.home.page` as a whole, seen from Python.
docs/home.md explains.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

import migrations
from app import embedded
from config.db import session_factory
from models.base import CursorQuery
from models.feed import SortBy
from services import home
from services.cursors import Cursor
from services.readers import Reader

RUNS = 7
PAGE_SIZE = 20
# Author 1 wrote about 20 000 feeds, author 1 000 about 70, most authors three or four. 1 000 wrote
# a hundred each, and no more since 2022; 5 000 once, before that; the last 5 000 never. Feeds lie
# in the table in the order of their times.
DATA = """
    SELECT setseed(0.5);
    INSERT INTO users (email, email_key, password_hash, nickname, nickname_key)
    SELECT n, n, '', n, n FROM generate_series(1, 100010) AS n;
    INSERT INTO feeds (title, content, author_id, create_dt)
    SELECT 'Title', repeat('Content ', 20), 90000 + n,
        '2020-01-01'::timestamptz + n * '1s'::interval
    FROM generate_series(1, 5000) AS n;
    INSERT INTO feeds (title, content, author_id, create_dt)
    SELECT 'Title', repeat('Content ', 20), 89001 + n % 1000,
        '2022-01-01'::timestamptz + n * '1min'::interval
    FROM generate_series(1, 100000) AS n;
    INSERT INTO feeds (title, content, author_id, create_dt)
    SELECT 'Title', repeat('Content ', 20), 1 + floor(89000 * power(random(), 3)),
        '2024-01-01'::timestamptz + n * '1min'::interval
    FROM generate_series(1, 895000) AS n;
"""
READERS = {
    "1 000 authors": "SELECT n * 89 FROM generate_series(1, 1000) AS n",
    "the 1 000 busiest": "SELECT generate_series(1, 1000)",
    "the busiest one": "SELECT 1",
    "one inactive": "SELECT 92000",
    "1 000 inactive": "SELECT generate_series(91001, 92000)",
    "1 000 once busy": "SELECT generate_series(89001, 90000)",
    "1 000 silent": "SELECT generate_series(96001, 97000)",
    "1 busy, 999 silent": "SELECT 1 UNION ALL SELECT generate_series(96001, 96999)",
    "nobody": "SELECT 1 WHERE false",
    "5 000 authors": "SELECT n * 17 FROM generate_series(1, 5000) AS n",
}
# Where the page begins, who reads and how many, as in the chosen statement.
NEWEST = """
    SELECT id FROM feeds
    WHERE deleted_dt IS NULL AND (create_dt, id) < ($1::timestamptz, $2::bigint)
    AND EXISTS (SELECT FROM follows WHERE follower_id = $3::bigint AND followed_id = author_id)
    ORDER BY create_dt DESC, id DESC LIMIT $4::int
"""
EACH = """
    SELECT theirs.id FROM follows, LATERAL (
        SELECT id, create_dt FROM feeds
        WHERE author_id = followed_id AND deleted_dt IS NULL
        AND (create_dt, id) < ($1::timestamptz, $2::bigint)
        ORDER BY create_dt DESC, id DESC LIMIT $4::int
    ) AS theirs
    WHERE follower_id = $3::bigint ORDER BY theirs.create_dt DESC, theirs.id DESC LIMIT $4::int
"""
_ORDER = ("before_dt", "before_id", "reader_id", "page_size")
_CHOSEN = home.PAGE.compile(dialect=dialect())
# Statements, and what each one calls $1, $2, …
PLANS = {
    "newest": (NEWEST, _ORDER),
    "each": (EACH, _ORDER),
    "chosen": (str(_CHOSEN), _CHOSEN.positiontup or ()),
}

COLUMNS = [*PLANS, "generic", "of 100", "served"]


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="feedboard-bench-") as folder:
        async with embedded.postgres(Path(folder)) as url:
            engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
            await migrations.upgrade(create_async_engine(url))
            async with engine.connect() as connection:
                await _fill(connection)
                for plan, (statement, _) in PLANS.items():
                    await connection.exec_driver_sql(f"PREPARE {plan} AS {statement}")
                print(f"{'milliseconds':<28}" + "".join(f"{column:>9}" for column in COLUMNS))
                sessions = session_factory(create_async_engine(url))
                async with sessions() as db:
                    for number, name in enumerate(READERS, 100_001):
                        await _measure(connection, db, number, name)
            await engine.dispose()


async def _fill(connection: AsyncConnection) -> None:
    began = time.perf_counter()
    for statement in DATA.split(";")[:-1]:
        await connection.execute(text(statement.replace("::", r"\:\:")))
    for number, followed in enumerate(READERS.values(), 100_001):
        await connection.execute(
            text(
                "INSERT INTO follows (follower_id, followed_id) "  # noqa: S608 - of the above
                f"SELECT {number}, id FROM users WHERE id IN ({followed})"
            )
        )
    # What autovacuum does by itself on a board that has been there for a while.
    await connection.execute(text("VACUUM ANALYZE"))
    print(f"filled in {time.perf_counter() - began:.0f} s")


async def _measure(connection: AsyncConnection, db: AsyncSession, reader: int, name: str) -> None:
    for page, start in (
        (1, Cursor(SortBy.CREATE_DT_DESC, datetime.fromisoformat("9999-01-01T00:00Z"), 1)),
        (100, await _end_of_page(connection, reader, 99)),
    ):
        taken = [await _explained(connection, plan, reader, start) for plan in PLANS]
        taken.append(await _explained(connection, "chosen", reader, start, generic=True))
        taken.append(await _explained(connection, "chosen", reader, start, size=100))
        taken.append(await _served(db, reader, start))
        figures = "".join(f"{figure:9.2f}" for figure in taken)
        print(f"{f'{name}, page {page}':<28}{figures}")


async def _end_of_page(connection: AsyncConnection, reader: int, page: int) -> Cursor:
    """Of a reader who has no such page: where the last one ends."""
    found = text(
        "SELECT feeds.create_dt, feeds.id FROM feeds JOIN follows ON followed_id = author_id "
        "WHERE follower_id = :reader ORDER BY feeds.create_dt DESC, feeds.id DESC LIMIT :until"
    )
    asked = {"reader": reader, "until": page * PAGE_SIZE}
    rows: Sequence[Row[Any]] = (await connection.execute(found, asked)).all()
    time_, id_ = rows[-1] if rows else (datetime.fromisoformat("2020-01-01T00:00Z"), 1)
    return Cursor(SortBy.CREATE_DT_DESC, time_, id_)


async def _explained(
    connection: AsyncConnection,
    plan: str,
    reader: int,
    start: Cursor,
    *,
    size: int = PAGE_SIZE,
    generic: bool = False,
) -> float:
    mode = "force_generic_plan" if generic else "force_custom_plan"
    await connection.exec_driver_sql(f"SET plan_cache_mode = {mode}")
    values = dict(zip(_ORDER, (f"'{start.time}'", start.id, reader, size + 1), strict=True))
    asked = ", ".join(str(values[name]) for name in PLANS[plan][1])
    taken = []
    for _ in range(RUNS + 1):
        explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE {plan} ({asked})"
        explained = await connection.exec_driver_sql(explain)
        (document,) = explained.scalar_one()
        taken.append(document["Planning Time"] + document["Execution Time"])
    return statistics.median(taken[1:])


# No feed here has an image: nobody asks more of it than where images would be.
_IMAGES: Any = SimpleNamespace(url="https://board.example.com/".__add__)


async def _served(db: AsyncSession, reader: int, start: Cursor) -> float:
    taken, query = [], CursorQuery(limit=PAGE_SIZE, cursor=start.encode())
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        await home.page(db, _IMAGES, Reader(reader), query)
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[1:])


if __name__ == "__main__":
    asyncio.run(main())
