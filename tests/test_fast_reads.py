"""One truth: the fast lane and the plain way give the same, for whatever is asked of whatever is
there. `FEEDBOARD_FUZZ=1000` (`make fuzz`) is the long form.
"""

import asyncio
import itertools
import json
import os
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote

import jwt
import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, text, update

from models.base import MAX_ID
from models.feed import Feed, SortBy
from models.image import Image
from models.like import FeedLike
from models.user import User
from services.cursors import Cursor
from tests import lanes
from tests.conftest import SECRET
from tests.lanes import ADA, BOB, LEAVING, LIST, NOW, READ, Wish, ask, logged, tokens

# Boards per settings. Unset: a few, drawn alike each time, so that no run of the suite fails by
# chance; set: that many, new ones each time.
FUZZ = int(os.environ.get("FEEDBOARD_FUZZ", "0"))
database, service, answered = lanes.database, lanes.service, lanes.answered
one_moment = lanes.one_moment


def mostly(usual, *odd):
    """One in four is odd; `|` would take equal strategies for one."""
    return st.integers(0, 3).flatmap(lambda n: st.one_of(*odd) if n == 3 else usual)


# What is there.


def moments(around=NOW):
    """Few, so that many feeds have the same; whole seconds, and the ends of time."""
    whole = around.replace(microsecond=0)
    few = [around, whole, whole + timedelta(microseconds=1), whole.replace(microsecond=500_000)]
    far = [datetime(1969, 7, 20, 20, 17, 40, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)]
    return st.sampled_from([*few, *few, *far, datetime(9999, 12, 30, 23, 59, 59, 999999, UTC)])


NASTY = [
    *map(chr, range(1, 33)),
    *'\x7f\x80\x85\x9f\u00a0\u0301\u200d\u2028\u2029\ufeff\ufffd\ufffe\uffff\U0001f600\U0010ffff"\\/',
    *('"liked":null', '"liked":true}', "],[", "]},", '"}', '","', "},{", "\\u0001", "\\x02", "%s"),
    *(",null,", "<script>", "&amp;", "e\u0301", "한글", "\U0001f469\u200d\U0001f4bb", "{}", "\r\n"),
]
WORDS = st.lists(
    st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    min_size=1,
    max_size=4,
).map("".join)
NUMBERS = st.integers(0, 3) | st.sampled_from([-1, 2**31 - 1])
IDS = st.integers(1, 12) | st.sampled_from([10**18 - 1, 10**18, MAX_ID])


class Picture(NamedTuple):
    alt: str
    color: str | None
    placeholder: str | None
    suffix: str
    content_type: str
    size: int
    smaller: list[int]


PICTURES = st.builds(
    Picture,
    alt=WORDS | st.just(""),
    color=st.none() | WORDS,
    placeholder=st.none() | WORDS,
    suffix=WORDS | st.just(".png"),
    content_type=st.sampled_from(["image/webp", "image/jpeg"]) | WORDS,
    size=NUMBERS,
    smaller=st.lists(st.integers(1, 5), max_size=3, unique=True),
)


class Post(NamedTuple):
    id: int
    title: str
    content: str
    author: int
    pictures: list[Picture]
    likes: set[int]
    like_count: int
    comment_count: int
    created: datetime
    updated: datetime
    deleted: bool


POSTS = st.builds(
    Post,
    id=IDS,
    title=WORDS,
    content=WORDS,
    author=st.sampled_from([ADA, BOB, LEAVING]),
    pictures=st.lists(PICTURES, max_size=4),
    likes=st.sets(st.sampled_from([ADA, BOB, LEAVING])),
    like_count=NUMBERS,
    comment_count=NUMBERS,
    created=moments(),
    updated=moments(NOW + timedelta(days=1)),
    deleted=st.sampled_from([False] * 4 + [True]),
)
BOARDS = st.integers(0, 6).flatmap(
    lambda size: st.lists(POSTS, min_size=size, max_size=size, unique_by=lambda post: post.id)
)


# What is asked.


def escaped(byte):
    return f"%{byte:02x}"


def an_id(posts):
    there = st.sampled_from([post.id for post in posts] or [1]).map(str)
    return mostly(there, IDS.map(str))


ODD_IDS = [
    *("", "0", "00", "-1", "-0", "1.0", "1e0", "1_0", "0x1", "%20", "%20{}", "{}%20", "{}%00"),
    *("0{}", "+{}", "%2B{}", "{}.", "{}/", "{}?", "{}?x=1", "{}?limit=1", "{}%2F", "{}%3Fx", "/{}"),
    *("\u0661", "\uff11", "\xb2", "\u0967", "\U0001d7cf"),  # a digit, elsewhere
    *("9" * 18, "9" * 19, str(MAX_ID), str(MAX_ID + 1), "9" * 40, "9" * 5000, "list", "{}/{}"),
]


def of_one(posts):
    odd = st.builds(lambda form, id_: quote(form.format(id_, id_), "/?=+%-"), ODD, an_id(posts))
    spelled = an_id(posts).map(lambda id_: "".join(map(escaped, id_.encode())))
    return mostly(an_id(posts), odd, spelled).map(READ.__add__)


ODD = st.sampled_from(ODD_IDS)
SORTS = st.sampled_from(list(SortBy))


def cursors(posts):
    """Where a page may end, and texts that are no cursors of this list."""
    times = st.sampled_from(
        [time for post in posts for time in (post.created, post.updated)] or [NOW]
    )
    good = st.builds(Cursor, SORTS, times | moments(), an_id(posts).map(int) | st.just(0))
    nested = st.builds(Cursor, SORTS, moments(), st.just(1), st.just((1, 2)))
    negative = st.builds(Cursor, SORTS, moments(), st.just(-1))
    text_ = mostly(good, nested, negative).map(Cursor.encode)
    wrong = ["", "x", "null", "%00", "YQ==", "\u20ac", "a" * 3001, "Y3JlYXRlX2R0X2Rlc2MgMSAx="]
    return mostly(text_, text_.map(lambda it: it + "="), st.sampled_from(wrong).map(quote))


def parameters(posts):
    """Parameters of a list: those that are understood, and all that is not."""
    usual = {
        "limit": st.sampled_from(["1", "2", "3", "20", "100"]),
        "sort_by": SORTS.map(str),
        "cursor": cursors(posts),
    }
    numbers = ["0", "101", "-1", "+1", "01", "1.0", "1_0", "%31", "", "9" * 5000, "%D9%A1", "1%20"]
    odd = {
        "limit": st.sampled_from([*numbers, "true", "2%30"]),
        "sort_by": st.sampled_from(["", "CREATE_DT_DESC", "id", "create%5Fdt_desc", "a+b"]),
        "skip": st.sampled_from(["0", "1", "-1", "x", "10001"]),
        "total": st.sampled_from(["true", "false", "1", "no", ""]),
        **{name: st.just("1") for name in ("x", "Limit", "li%6dit", "", "%00")},
    }
    broken = st.sampled_from(["limit", "", "=", ";limit=1", "&&"])
    return mostly(pairs(usual), pairs(odd), broken)


def pairs(named):
    names = st.sampled_from(list(named))
    return names.flatmap(lambda name: named[name].map(lambda value: f"{name}={value}"))


def of_all(posts):
    odd = [LIST + "/", "/api//feed/list", "/API/feed/list", "/api/feed/li%73t", "/api/feed/./list"]
    paths = st.sampled_from([LIST] * 12 + odd)
    distinct = st.lists(parameters(posts), max_size=3, unique_by=lambda it: it.partition("=")[0])
    queries = mostly(distinct, st.lists(parameters(posts), max_size=4)).map("&".join)
    return st.builds(lambda path, query: f"{path}?{query}" if query else path, paths, queries)


TOKENS = list(tokens(lambda *_: jwt.encode({}, SECRET, headers={"kid": "x"})))
AUTHORIZATION = mostly(st.sampled_from(["good", "bob"]), st.sampled_from(TOKENS))
HEADERS = {
    "authorization": AUTHORIZATION,
    "if-none-match": st.sampled_from(
        [
            *('"{tag}"', '"{tag}"', 'W/"{tag}"', '"x", "{tag}"', 'W/"x",W/"{tag}"', "*", " * "),
            *("{tag}", '"{tag}', '"x"', "", '"*"', '"\xe9", "{tag}"', '"x""{tag}"', "'{tag}'"),
        ]
    ),
    "x-request-id": st.sampled_from(["a-sane.ID_1", "z" * 128, "z" * 129, "", "two words", "\xe9"]),
    "origin": st.sampled_from(["https://page.example.com", "https://evil.example", "null", ""]),
    "access-control-request-method": st.sampled_from(["GET", "PATCH", "EVIL"]),
    "content-type": st.sampled_from(["application/json", "multipart/form-data", ""]),
    "accept": st.sampled_from(["application/json", "text/html", "*/*;q=0"]),
    "accept-encoding": st.sampled_from(["gzip, br", "identity;q=0", ""]),
    "if-match": st.sampled_from(["*", '"x"', "x"]),
    "if-modified-since": st.just("Sun, 22 Nov 2026 12:00:00 GMT"),
    "range": st.just("bytes=0-1"),
    "cookie": st.just("session=1"),
    "idempotency-key": st.just("a key of mine"),
    "x-forwarded-for": st.just("192.0.2.1"),
    "x-http-method-override": st.just("DELETE"),
    "user-agent": st.just("x"),
}
SINGLE = st.sampled_from(["authorization", "authorization", "if-none-match", *HEADERS])
PAIRS = SINGLE.flatmap(lambda name: HEADERS[name].map(lambda value: (name, value)))
PLAIN = ["authorization", "if-none-match", "x-request-id", "accept"]
PLAIN_PAIRS = st.sampled_from(PLAIN).flatmap(
    lambda name: HEADERS[name].map(lambda value: (name, value))
)
HOSTS = ["localhost"] * 12 + [
    *(
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "board.example.com",
        "evil.example",
        "",
        "[::1]",
    ),
    *("localhost:x", "a.b@localhost", "board.example.com, localhost"),
]


def wishes(posts):
    alone = st.lists(PAIRS, max_size=3, unique_by=lambda pair: pair[0])
    twice = st.lists(PAIRS, min_size=1, max_size=2).map(lambda it: [*it, *it])
    odd_hosts = st.sampled_from([(), ("localhost", "localhost"), ("localhost", "evil.example")])
    hosts = st.sampled_from(HOSTS).map(lambda host: (host,))
    odd = st.builds(
        Wish,
        of_one(posts) | of_all(posts),
        mostly(st.just("GET"), st.sampled_from(["HEAD", "OPTIONS", "POST"])),
        mostly(alone, twice).map(tuple),
        mostly(hosts, odd_hosts),
        mostly(st.just(b""), st.sampled_from([b"{}", b"chunked"])),
    )
    usual = st.builds(
        lambda target, headers: Wish(target, headers=tuple(headers)),
        of_one(posts) | of_all(posts),
        st.lists(PLAIN_PAIRS, max_size=2, unique_by=lambda pair: pair[0]),
    )
    return usual | odd


TALKS = BOARDS.flatmap(
    lambda posts: st.tuples(st.just(posts), st.lists(wishes(posts), min_size=8, max_size=12))
)


def feed_of(post):
    return {
        "id": post.id,
        "title": post.title,
        "content": post.content,
        "author_id": post.author,
        "like_count": post.like_count,
        "comment_count": post.comment_count,
        "create_dt": post.created,
        "update_dt": post.updated,
        "deleted_dt": NOW if post.deleted else None,
    }


def images_of(post, ids):
    """Each picture, and behind it its smaller copies."""
    for position, picture in enumerate(post.pictures):
        original = next(ids)
        for width in [None, *picture.smaller]:
            yield {
                "id": original if width is None else next(ids),
                "key": f"images/{original}-{width}{picture.suffix}",
                "state": "attached",
                "owner_id": post.author,
                "stored": True,
                "feed_id": post.id,
                "position": position,
                "original_id": None if width is None else original,
                "content_type": picture.content_type,
                "bytes": 1,
                "width": width or picture.size,
                "height": picture.size,
                "alt": picture.alt if width is None else "",
                "color": picture.color,
                "placeholder": picture.placeholder,
                "reap_dt": NOW,
            }


async def fill(service, posts, names=("Ada", "Bob", "Leaving")):
    """Let this be on the board, and nothing else."""
    ids = itertools.count(1000)
    rows = {
        Feed: [feed_of(post) for post in posts],
        Image: [image for post in posts for image in images_of(post, ids)],
        FeedLike: [{"feed_id": post.id, "user_id": user} for post in posts for user in post.likes],
    }
    async with service.able.sessions() as db, db.begin():
        await db.execute(text("DELETE FROM images"))
        await db.execute(text("DELETE FROM feeds"))
        for id_, name in zip((ADA, BOB, LEAVING), names, strict=True):
            values = {"nickname": name, "email": f"{name}@example.com"}
            await db.execute(update(User).where(User.id == id_).values(values))
        for table, of_table in rows.items():
            if of_table:
                await db.execute(insert(table), of_table)


def shown(service, post, images, names):
    """A feed as everybody is to see it, out of what was put in."""
    name = dict(zip((ADA, BOB, LEAVING), names, strict=True))[post.author]
    hides = not service.apps[0].state.settings.show_emails

    def part(image, *more):
        url = {"url": service.able.images.url(image["key"])}
        return url | {column: image[column] for column in ("width", "height", *more)}

    originals = [image for image in images if image["original_id"] is None]
    return {
        "id": post.id,
        "title": post.title,
        "content": post.content,
        "author_id": post.author,
        "author_email": None if hides else f"{name}@example.com",
        "author_nickname": name,
        "image_urls": [part(image)["url"] for image in originals],
        "images": [
            part(image, "id", "alt", "placeholder", "color")
            | {
                "variants": [
                    part(smaller) | {"type": smaller["content_type"]}
                    for smaller in sorted(images, key=lambda it: it["width"])
                    if smaller["original_id"] == image["id"]
                ]
            }
            for image in originals
        ],
        "like_count": post.like_count,
        "comment_count": post.comment_count,
        "liked": None,
        "create_dt": post.created,
        "update_dt": post.updated,
    }


async def assert_shown(service, posts, names):
    """Also what both say alike is what is there."""
    ids = itertools.count(1000)
    wanted = [(post, shown(service, post, list(images_of(post, ids)), names)) for post in posts]
    answer, _ = await service.both(Wish(LIST + "?limit=100"))
    found = {feed["id"]: feed for feed in json.loads(answer.body)}
    for feed in found.values():
        for time in ("create_dt", "update_dt"):
            feed[time] = datetime.fromisoformat(feed[time])
    hidden = {post.id for post in posts if post.deleted or post.author == LEAVING}
    assert found == {post.id: feed for post, feed in wanted if post.id not in hidden}


async def test_the_lane_answers_as_the_plain_way_does(service, answered):
    here, asked = asyncio.get_running_loop(), 0

    async def talk(posts, wanted, names, doubt):
        nonlocal asked
        await fill(service, posts, names)
        service.begin(doubt=doubt)
        await assert_shown(service, posts, names)
        service.begin(doubt=doubt)
        for wish in wanted:
            with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
                fast, plain = await service.compare(wish)
                asked += 1
                if service.name != "usual" and fast.request_id != plain.request_id:
                    of_fast, of_plain = await logged(lines, fast, plain)
                    assert of_fast == of_plain
                    assert len(of_fast) == 1

    @settings(
        max_examples=FUZZ or 20,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink] if FUZZ else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TALKS, st.tuples(WORDS, WORDS, WORDS), st.sampled_from([False] * 9 + [True]))
    def compared(talk_, names, doubt):
        asyncio.run_coroutine_threadsafe(talk(*talk_, names, doubt), here).result()

    await asyncio.to_thread(compared)

    print(f"{len(answered)} of {asked} requests by the lane")  # For -s.
    assert len(answered) > asked / 5


def posts(number=5):
    """The later a feed, the later it was changed."""
    picture = Picture('"', "#7a6a4f", None, ".png", "image/webp", 1, [1, 2])
    return [
        Post(id_, "T", "C", ADA, [picture], {BOB}, 1, 0, NOW, changed(id_), deleted=False)
        for id_ in range(1, number + 1)
    ]


def changed(id_):
    return NOW + timedelta(days=id_)


MIDDLE = Cursor(SortBy.UPDATE_DT_ASC, changed(2), 2).encode()
NESTED = Cursor(SortBy.CREATE_DT_DESC, NOW, 2, (1, 2)).encode()
# The tokens that there is nothing to say against.
FINE = {"good", "bob", "leaving", "stranger", "gone", "blank behind"}


@pytest.mark.parametrize("service", ["usual"], indirect=True)
@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (READ + "1", {}, 200),
        (READ + "1", {"authorization": "good"}, 200),
        (READ + "1", {"authorization": "bob", "if-none-match": 'W/"{tag}"'}, 304),
        (READ + "5", {"if-none-match": '"{tag}"', "accept-encoding": "gzip"}, 304),
        (LIST, {"origin": "https://page.example.com", "authorization": "good"}, 200),
        (READ + "1", {"origin": "https://evil.example", "if-none-match": '"{tag}"'}, 304),
        (READ + "2", {"x-request-id": "mine", "user-agent": "x", "accept": "*/*"}, 200),
        (LIST, {}, 200),
        (LIST, {"authorization": "bob", "if-none-match": '"{tag}"'}, 304),
        (LIST + "?limit=4", {}, 200),
        (LIST + "?limit=5", {}, 200),
        (LIST + "?limit=%2B02&", {}, 200),
        (LIST + "?sort_by=update_dt_asc&limit=2", {}, 200),
        (LIST + f"?cursor={MIDDLE}&limit=2", {"authorization": "good"}, 200),
        (LIST + f"?sort_by=update_dt_asc&cursor={MIDDLE}", {}, 200),
    ],
)
async def test_the_lane_answers_what_is_usual(service, answered, target, headers, status):
    await fill(service, posts())
    service.begin(doubt=False)

    fast, _ = await service.compare(Wish(target, headers=tuple(headers.items())))

    assert fast.status.startswith(f"HTTP/1.1 {status} ")
    assert answered == [target.partition("?")[0].encode()] * (
        2 if "if-none-match" in headers else 1
    )


TWICE = [("authorization", "good"), ("if-none-match", '"x"'), ("x-request-id", "mine")]
UNUSUAL = [
    *(Wish(READ + id_) for id_ in ("01", "0", "9", "+1", "1/", "%D9%A1", str(MAX_ID), "9" * 19)),
    *(Wish(f"{READ}1?{query}") for query in ("x=1", "limit=1", "=")),
    *(Wish(f"{LIST}?limit={limit}") for limit in ("0", "101", "-1", "1.5", "")),
    *(Wish(f"{LIST}?{query}") for query in ("total=true", "skip=1", "limit=2&x=1", "limit")),
    *(Wish(f"{LIST}?{query}") for query in ("limit=2&limit=2", "sort_by=id")),
    Wish(f"{LIST}?cursor={'x' * 5000}"),
    *(Wish(f"{LIST}?cursor={cursor}") for cursor in ("x", "", MIDDLE + "=", NESTED)),
    Wish(f"{LIST}?cursor={MIDDLE}&sort_by=update_dt_desc"),
    Wish(f"{LIST}?cursor={MIDDLE}&skip=1"),
    *(Wish(target) for target in (LIST + "/", "/api//feed/list", "/API/feed/list")),
    *(Wish(target, method) for target in (LIST, READ + "1") for method in ("HEAD", "OPTIONS")),
    *(Wish(LIST, body=body) for body in (b"{}", b"chunked")),
    Wish(LIST, headers=(("content-type", "application/json"),)),
    *(Wish(READ + "1", headers=(pair, pair)) for pair in TWICE),
    Wish(LIST, hosts=("localhost", "localhost")),
    *(Wish(LIST, headers=(("authorization", which),)) for which in sorted({*TOKENS} - FINE)),
]


@pytest.mark.parametrize("service", ["usual"], indirect=True)
@pytest.mark.parametrize("wish", UNUSUAL, ids=range(len(UNUSUAL)))
async def test_what_is_not_usual_goes_the_plain_way_alone(service, answered, wish):
    await fill(service, posts())
    service.begin(doubt=False)

    await service.compare(wish)
    assert answered == []

    await service.compare(Wish(LIST))
    assert answered == [LIST.encode()]


@pytest.mark.parametrize("service", ["usual"], indirect=True)
async def test_a_token_goes_the_plain_way_while_its_session_is_in_doubt(service, answered):
    await fill(service, posts())
    service.begin(doubt=True)

    await service.compare(Wish(LIST, headers=(("authorization", "good"),)))

    assert answered == []


@pytest.mark.parametrize("service", ["usual", "public"], indirect=True)
async def test_each_of_those_who_share_a_statement_gets_what_is_theirs(service, answered):
    everybody = [None, "good", "bob", "leaving", "stranger"]
    liked = [post._replace(likes={ADA} if post.id % 2 else {BOB, LEAVING}) for post in posts(8)]
    await fill(service, liked)
    service.begin(doubt=False)
    targets = [LIST, LIST + "?limit=3", *(f"{READ}{id_}" for id_ in range(1, 10))]
    wanted = [
        service.resolved(Wish(target, headers=(("authorization", who),) if who else ()), "")
        for who in everybody
        for target in targets
    ]
    fast, plain = service.ports

    alone = [await ask(plain, wish) for wish in wanted]
    together = await asyncio.gather(*(ask(fast, wish) for wish in wanted))

    def told(answer):
        # Whose turn it was is not the same.
        return [it for it in answer.comparable() if it[0] != "ratelimit"]

    assert [told(answer) for answer in together] == [told(answer) for answer in alone]
    assert len(answered) > len(wanted) / 2
