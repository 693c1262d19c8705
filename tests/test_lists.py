"""Pages of feeds: order, cursors, counting, and what a page costs."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event, insert, text

from models.feed import Feed
from models.user import User
from tests.pictures import annotated_png

ORDERS = ["create_dt_desc", "create_dt_asc", "update_dt_desc", "update_dt_asc"]


@pytest.fixture
async def board(db):
    """Sixty feeds in ten distinct times, so that ties are many; gives their ids by time."""
    async with db.begin():
        author = await db.scalar(
            insert(User).returning(User.id),
            {"email": "a@b.example", "email_key": "a", "password_hash": ""}
            | {"nickname": "A", "nickname_key": "a"},
        )
        for n in range(60):
            await db.execute(
                insert(Feed).values(
                    title=f"{n}",
                    content="C",
                    author_id=author,
                    create_dt=text(f"now() - interval '{10 - n % 10} seconds'"),
                    update_dt=text(f"now() - interval '{n % 7} microseconds'"),
                )
            )


async def walk(client, url):
    """Follow `Link` to the end; gives the pages."""
    pages = []
    while url:
        answer = await client.get(url)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        url = answer.links.get("next", {}).get("url")
    return pages


@pytest.mark.parametrize("order", ORDERS)
async def test_following_the_links_shows_every_feed_once_and_in_order(client, board, order):
    pages = await walk(client, f"/api/feed/list?limit=7&sort_by={order}")

    feeds = [feed for page in pages for feed in page]
    field = order.rpartition("_")[0]
    keys = [(feed[field], feed["id"]) for feed in feeds]
    assert [len(page) for page in pages] == [7] * 8 + [4]
    assert keys == sorted(keys, reverse=order.endswith("desc"))
    assert len(set(keys)) == 60


async def test_newest_first_and_twenty_unless_asked_otherwise(client, board):
    default = await client.get("/api/feed/list")

    asked = await client.get("/api/feed/list?limit=20&sort_by=create_dt_desc")
    assert len(default.json()) == 20
    assert default.json() == asked.json()


async def test_the_last_page_has_no_link(client, board):
    assert "link" not in (await client.get("/api/feed/list?limit=60")).headers
    assert "link" in (await client.get("/api/feed/list?limit=59")).headers


async def test_a_feed_posted_meanwhile_shifts_no_page(client, board, make_user, make_feed):
    first = await client.get("/api/feed/list?limit=10")
    before = await walk(client, first.links["next"]["url"])
    await make_feed(await make_user())

    assert await walk(client, first.links["next"]["url"]) == before


async def test_skip_is_taken_for_the_sake_of_older_clients(client, board):
    everything = (await client.get("/api/feed/list?limit=60")).json()

    skipped = await client.get("/api/feed/list?limit=5&skip=10")

    assert skipped.json() == everything[10:15]
    assert (await client.get(skipped.links["next"]["url"])).json() == everything[15:20]


async def test_the_total_is_counted_only_when_asked(client, board):
    assert "x-total-count" not in (await client.get("/api/feed/list")).headers
    counted = await client.get("/api/feed/list?total=true&limit=1")
    assert counted.headers["x-total-count"] == "60"


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=ten", "/limit"),
        ("limit=5&limit=6", "/limit"),
        ("skip=-1", "/skip"),
        ("skip=10001", "/skip"),
        ("sort_by=title", "/sort_by"),
        ("total=perhaps", "/total"),
        ("page=2", "/page"),
        ("cursor=nonsense", "/cursor"),
        ("cursor=" + "A" * 201, "/cursor"),
        ("cursor=%00", "/cursor"),
        ("cursor=Y3JlYXRlX2R0X2Rlc2MgOTk5OTk5OTk5OTk5OTk5OTk5OTk5IDE", "/cursor"),
    ],
)
async def test_a_bad_parameter_is_named(client, query, pointer):
    refused = await client.get(f"/api/feed/list?{query}")

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer


async def test_a_cursor_belongs_to_its_order(client, board):
    link = (await client.get("/api/feed/list?sort_by=update_dt_asc")).links["next"]["url"]
    cursor = link.partition("cursor=")[2].partition("&")[0]

    same = await client.get(f"/api/feed/list?cursor={cursor}")
    other = await client.get(f"/api/feed/list?cursor={cursor}&sort_by=create_dt_desc")
    skipping = await client.get(f"/api/feed/list?cursor={cursor}&skip=3")

    assert same.json() == (await client.get(link)).json()
    assert (other.status_code, skipping.status_code) == (422, 422)


@contextmanager
def counted_statements(engine, *, parameters=False):
    statements = []

    def count(connection, cursor, statement, values, *rest):
        statements.append((statement, values) if parameters else statement)

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    yield statements
    event.remove(engine.sync_engine, "before_cursor_execute", count)


async def test_a_page_costs_the_same_statements_for_one_feed_and_for_fifty(
    client, engine, make_user, make_feed, stored_keys
):
    author, image = await make_user(), annotated_png()
    for n in range(50):
        await make_feed(author, images=[image] * (n % 3))

    with counted_statements(engine) as for_one:
        await client.get("/api/feed/list?limit=1")
    with counted_statements(engine) as for_fifty:
        page = await client.get("/api/feed/list?limit=50")

    assert sum(len(feed["image_urls"]) for feed in page.json()) == 49
    assert len([s for s in for_one if s.startswith("SELECT")]) == 1
    assert len(for_fifty) == len(for_one)
