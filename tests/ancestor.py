"""The ancestor's database, made with plain SQL, with all that went wrong over years."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import bcrypt
from sqlalchemy.engine import make_url

from tests.pictures import annotated_png, photo

TABLES = """
CREATE TABLE users (id serial PRIMARY KEY, email varchar, password varchar, nickname varchar,
    create_dt timestamp);
CREATE TABLE feeds (id serial PRIMARY KEY, title varchar, content text, author_email varchar,
    image_urls json, create_dt timestamp, update_dt timestamp);
CREATE TABLE comments (id serial PRIMARY KEY, content text, author_email varchar, feed_id int,
    create_dt timestamp, update_dt timestamp);
CREATE TABLE likes (id serial PRIMARY KEY, user_email varchar, feed_id int, comment_id int);
CREATE TABLE follows (follower_id int, following_id int);
"""
PASSWORD = "an old password"


def hashed(password: str = PASSWORD, prefix: bytes = b"2b") -> str:
    """As the ancestor did, but at bcrypt's least cost; the first 72 bytes are what counts."""
    salt = bcrypt.gensalt(4, b"2b")
    return (
        bcrypt.hashpw(password.encode()[:72], salt).decode().replace("$2b$", f"${prefix.decode()}$")
    )


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection by the URL that SQLAlchemy takes."""
    parts = make_url(url)
    _, arguments = parts.get_dialect()().create_connect_args(parts)
    connection = await asyncpg.connect(**arguments)
    try:
        yield connection
    finally:
        await connection.close()


async def run(url: str, sql: str, *values: object) -> None:
    async with connected(url) as connection:
        await connection.execute(sql, *values)


async def fill(url: str) -> None:
    """A small board, of which some rows are broken in every way that there is."""
    async with connected(url) as connection:
        await connection.execute(TABLES)
        await connection.executemany(
            "INSERT INTO users VALUES ($1, $2, $3, $4, '2020-01-01 10:00')",
            [
                (1, "ada@example.com", hashed(), "Ada"),
                (2, "bob@example.com", hashed("x" * 80, b"2y"), "Ada"),
                (3, "no address", hashed(), "Nobody"),
                (4, "cy@example.com", "md5:1234", None),
                (5, "dee@example.com", hashed(prefix=b"2a"), "d" * 60),
                (6, "ADA@Example.com", hashed("another one"), "Ada, too"),
                (7, None, hashed(), "Null"),
            ],
        )
        await connection.executemany(
            "INSERT INTO feeds VALUES ($1, $2, $3, $4, $5, '2020-02-01', '2020-03-01 12:30')",
            [
                (10, "Whole", "Words", "ada@example.com", None),
                (11, "With images", "Words", "bob@example.com", _urls("one.png", "deep/two.png")),
                (12, "Of nobody", "Words", "nobody@example.com", None),
                (13, "t" * 201, "Words", "ada@example.com", None),
                (14, "", "Words", "ada@example.com", None),
                (15, "Lost image", "Words", "ada@example.com", _urls("gone.png", "one.png")),
                (16, "Broken image", "Words", "ada@example.com", _urls("broken.png", "one.png")),
                (17, "No list", "Words", "ada@example.com", '{"url": "one.png"}'),
                (18, "Of a broken user", "Words", "no address", None),
                (19, "No URL", "Words", "Ada@example.com", '[5, "../../etc/passwd", ""]'),
                (20, None, "Words", None, None),
            ],
        )
        await connection.executemany(
            "INSERT INTO comments VALUES ($1, $2, $3, $4, '2020-04-01', '2020-04-01')",
            [
                (1, "Mine", "ada@example.com", 10),
                (2, "On nothing", "ada@example.com", 999),
                (3, "On what was not taken", "ada@example.com", 13),
                (4, "Of nobody", "nobody@example.com", 10),
                (5, None, "ada@example.com", 10),
                (6, "Another", "bob@example.com", 10),
            ],
        )
        await connection.executemany(
            "INSERT INTO likes VALUES ($1, $2, $3, $4)",
            [
                (1, "ada@example.com", 10, None),
                (2, "ada@example.com", 10, None),
                (3, "bob@example.com", 10, None),
                (4, "bob@example.com", None, 1),
                (5, "bob@example.com", 999, None),
                (6, "nobody@example.com", 10, None),
                (7, "bob@example.com", None, None),
                (8, "bob@example.com", None, 999),
                (9, None, 10, None),
                (10, "ADA@example.com", 10, None),
            ],
        )
        await connection.executemany(
            "INSERT INTO follows VALUES ($1, $2)",
            [(1, 2), (1, 2), (2, 1), (2, 2), (1, 999), (3, 1), (6, 1), (5, None)],
        )


async def filled(make_database: Callable[[], Awaitable[str]]) -> str:
    """The URL of a database of its own, filled."""
    url = await make_database()
    await fill(url)
    return url


def _urls(*names: str) -> str:
    listed = ", ".join(f'"https://cdn.example.com/old-bucket/feeds/{name}?v=1"' for name in names)
    return f"[{listed}]"


def lay_images(folder: Path) -> Path:
    """The folder of its images, as a copy of its bucket."""
    (folder / "feeds" / "deep").mkdir(parents=True)
    (folder / "feeds" / "one.png").write_bytes(annotated_png())
    (folder / "feeds" / "deep" / "two.png").write_bytes(annotated_png(photo(500, 400, seed=2)))
    (folder / "feeds" / "broken.png").write_bytes(annotated_png()[:200])
    return folder


LOST = "its image 'https://cdn.example.com/old-bucket/feeds/gone.png?v=1' is not there"
# What is said of each broken row, and of each that could not be taken as it was.
SAID = {
    "users 2": ["the nickname 'Ada' is taken; it is 'Ada-2' now"],
    "users 3": ["email: value is not a valid email address: An email address must have an @-sign"],
    "users 4": [
        "the nickname cannot be one here; it is 'user' now",
        "the password is hashed in a way that is not known here; it has to be reset",
    ],
    "users 5": [f"the nickname cannot be one here; it is '{'d' * 50}' now"],
    "users 6": ["ada@example.com has an account here, which is used"],
    "users 7": ["email: input should be a valid string"],
    "feeds 12": ["its author nobody@example.com is not among the users"],
    "feeds 13": ["title: string should have at most 200 characters"],
    "feeds 14": ["title: string should have at least 1 character"],
    "feeds 15": [LOST],
    "feeds 16": ["broken.png is damaged or cut off"],
    "feeds 17": ["its image_urls are no list in JSON"],
    "feeds 18": ["its author, user 3, is not on this board"],
    "feeds 19": [
        "5 among its image_urls is no URL",
        "'' among its image_urls is no URL",
        "its image '../../etc/passwd' is not there",
    ],
    "feeds 20": ["it has no author"],
    "comments 2": ["its feed 999 is not on this board"],
    "comments 3": ["its feed 13 is not on this board"],
    "comments 4": ["its author nobody@example.com is not among the users"],
    "comments 5": ["it needs both an author and words"],
    "likes 5": ["feed 999 is not on this board"],
    "likes 6": ["its author nobody@example.com is not among the users"],
    "likes 7": ["it names either a feed or a comment"],
    "likes 8": ["comment 999 is not on this board"],
    "likes 9": ["it has no author"],
    "follows 1 → 999": ["user 999 is not on this board"],
    "follows 2 → 2": ["nobody follows themselves here"],
    "follows 3 → 1": ["user 3 is not on this board"],
    "follows 5 → null": ["followed_id: input should be a valid string"],
    "follows 6 → 1": ["nobody follows themselves here"],
}
TAKEN = {
    "users": 4,
    "feeds": 6,
    "comments": 2,
    "feed_likes": 2,
    "comment_likes": 1,
    "follows": 2,
}
NOTHING = dict.fromkeys(TAKEN, 0)
