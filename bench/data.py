"""A board's worth of data, written by SQL: as many feeds as one likes, in the service's own tables.

A feed has up to three images with three variants each, rows only; Korean words; and up to two
likes. Everything follows from the feed's number, so that two boards of a size are the same. A
filled board is kept in a cache folder between runs.
"""

import base64
import os
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

import migrations
from app.parts import open_parts
from bench.board import PASSWORD
from config.settings import Settings
from services.passwords import Passwords

USERS = 1_000
LAST_DT = datetime(2025, 6, 1, tzinfo=UTC)
EVERY = timedelta(minutes=1)
USERS_SQL = f"""
    INSERT INTO users (email, email_key, password_hash, nickname, nickname_key, verified_dt)
    SELECT email, email, $1, nickname, nickname, now()
    FROM generate_series(1, {USERS}) AS n,
    LATERAL (SELECT 'user' || n || '@example.com' AS email, '닉네임' || n AS nickname) AS it
"""  # noqa: S608 - of a constant
# The last one was written at $2, each one before it a minute earlier; never at a whole second, as
# a time then has a shorter form in JSON.
FEEDS_SQL = f"""
    INSERT INTO feeds (id, title, content, author_id, like_count, create_dt, update_dt)
    SELECT n, '피드 제목 ' || n || ' ' || left(md5(n::text), 12),
        repeat('본문 내용 text ' || left(md5((n * 7)::text), 10) || ' ', 3 + n % 6),
        1 + n::bigint * 7919 % {USERS}, n % 3, written, written
    FROM generate_series(1, $1::int) AS n,
    LATERAL (SELECT $2::timestamptz + (n - $1) * '1min'::interval
        + (1 + n % 999999) * '1us'::interval AS written) AS it
"""  # noqa: S608
# The ids of a feed's images: its originals first, then their variants, as the service writes them.
IMAGES_SQL = f"""
    INSERT INTO images (id, key, state, owner_id, stored, feed_id, position, original_id,
        content_type, bytes, width, height, color, placeholder, reap_dt)
    SELECT image_id,
        'images/' || rtrim(translate(encode(decode(md5(image_id::text), 'hex'), 'base64'),
            '+/', '-_'), '=') || CASE WHEN size = 0 THEN '.jpg' ELSE '.webp' END,
        'attached', 1 + n::bigint * 7919 % {USERS}, true, n, k,
        CASE WHEN size > 0 THEN first + k END,
        CASE WHEN size = 0 THEN 'image/jpeg' ELSE 'image/webp' END,
        CASE WHEN size = 0 THEN 300000 ELSE 15000 * size * size END,
        (ARRAY[2048, 320, 960, 1920])[size + 1], (ARRAY[1536, 240, 720, 1440])[size + 1],
        CASE WHEN size = 0 THEN '#' || left(md5(image_id::text), 6) END,
        CASE WHEN size = 0 THEN left(encode(sha256(image_id::text::bytea), 'base64'), 28) END,
        now() + '1h'
    FROM generate_series(1, $1::int) AS n, generate_series(1, n % 4) AS k,
    generate_series(0, 3) AS size,
    LATERAL (SELECT (n - 1)::bigint * 12 AS first) AS it,
    LATERAL (SELECT CASE WHEN size = 0 THEN first + k ELSE first + 3 * k + size END AS image_id)
        AS that
    ORDER BY n, image_id
"""  # noqa: S608
LIKES_SQL = f"""
    INSERT INTO feed_likes (feed_id, user_id)
    SELECT n, 1 + (n * 31 + k * 337) % {USERS}
    FROM generate_series(1, $1::int) AS n, generate_series(1, n % 3) AS k
"""  # noqa: S608
_FILLED = ("feeds", "images", "feed_likes")
_INDEXES = """
    SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
    FROM pg_index WHERE indrelid = ANY($1::text[]::regclass[])
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""


@asynccontextmanager
async def board(feeds: int) -> AsyncGenerator[Settings]:
    """Embedded parts with that many feeds in them, as settings that lead there."""
    said = "".join((USERS_SQL, FEEDS_SQL, IMAGES_SQL, LIKES_SQL)).encode()
    newest = migrations.newest()
    folder = cache() / f"{feeds}-{newest}-{zlib.crc32(said):x}"
    folder.mkdir(parents=True, exist_ok=True)
    # Whatever the environment says: here is written to, and nowhere else.
    own = Settings(_env_file=None, data_dir=folder, database_url=None, s3_bucket=None)
    async with open_parts(own) as settings:
        engine = create_async_engine(str(settings.database_url))
        await migrations.upgrade(engine)
        await engine.dispose()
        connection = await asyncpg.connect(dsn(settings))
        try:
            if await connection.fetchval("SELECT max(id) FROM feeds") is None:
                print(f"filling a board with {feeds:,} feeds, once", flush=True)
                await _fill(connection, feeds)
            await connection.execute("DELETE FROM sessions")
            await clean(connection, feeds)
        finally:
            await connection.close()
        yield settings


def cache() -> Path:
    """Where what takes long to make is kept between runs."""
    kept = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEEDBOARD_BENCH_CACHE") or Path(kept) / "feedboard-bench")


def dsn(settings: Settings) -> str:
    """Where the database is, as drivers name it."""
    return str(settings.database_url).replace("+asyncpg", "")


def cursor(feeds: int, feed_id: int) -> str:
    """Where a page ended with this feed, as the service's `services.cursors` says it."""
    written = LAST_DT + (feed_id - feeds) * EVERY
    written += timedelta(microseconds=1 + feed_id % 999_999)
    microseconds = (written - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    text = f"create_dt_desc {microseconds} {feed_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


async def clean(connection: asyncpg.Connection, feeds: int) -> None:
    """Take away what was written after the board was filled, so that its newest feeds are again."""
    written = await connection.execute("DELETE FROM feeds WHERE id > $1", feeds)
    if written != "DELETE 0":
        await connection.execute("VACUUM feeds")


async def _fill(connection: asyncpg.Connection, feeds: int) -> None:
    password_hash = await Passwords(1).hash(PASSWORD, known=())
    async with connection.transaction():
        # What is written refers to what is there, and an index is made faster than it is kept.
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
        indexes = await connection.fetch(_INDEXES, _FILLED)
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        await connection.execute(USERS_SQL, password_hash)
        await connection.execute(FEEDS_SQL, feeds, LAST_DT)
        await connection.execute(IMAGES_SQL, feeds)
        await connection.execute(LIKES_SQL, feeds)
        for index in indexes:
            await connection.execute(index["definition"])
        for table in ("feeds", "images"):
            await connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"  # noqa: S608
            )
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
