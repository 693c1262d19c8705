"""Pages of comments: by time, by threads, by author, and what a page costs."""

import random
from datetime import UTC, datetime
from itertools import chain

import pytest
from sqlalchemy import insert, text, update

from models.base import MAX_ID
from models.comment import Comment
from models.feed import Feed, SortBy
from models.like import CommentLike
from services import comments
from services.cursors import Cursor
from tests.comments import delete, ids, say, shown
from tests.conftest import bearer, client_of
from tests.test_lists import counted_statements, walk


@pytest.fixture
async def ada(make_user):
    return await make_user(email="ada@example.com")


@pytest.fixture
async def bob(make_user):
    return await make_user()


@pytest.fixture
async def feed(ada, make_feed):
    return await make_feed(author=ada)


@pytest.fixture
async def board(db, ada, feed):
    """Forty threads in ten distinct times, of three comments each; some deleted, some stones."""
    async with db.begin():
        for n in range(40):
            root = await put(db, ada, feed, second=n % 10)
            first = await put(db, ada, feed, root, second=n % 10 + 20)
            await put(db, ada, feed, root, first, second=n % 10 + 40)
        threads = (await db.scalars(ROOTS)).all()
        # Every third root is a stone; every fourth thread is gone altogether.
        await mark_deleted(db, Comment.id.in_(threads[::3]))
        await mark_deleted(db, Comment.root_id.in_(threads[::4]), reply_count=0)
    return feed


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
ROOTS = text("SELECT id FROM comments WHERE parent_id IS NULL ORDER BY id")


async def put(db, author, feed, *above, second):
    """Write a comment as if it had been written then; gives its id."""
    new = await db.scalar(
        insert(Comment).returning(Comment.id),
        {
            "feed_id": feed["id"],
            "author_id": author["id"],
            "parent_id": above[-1] if above else None,
            "root_id": above[0] if above else 0,
            "path": [],
            "content": "Words",
            "reply_count": 1 if len(above) < 2 else 0,
            "create_dt": (await db.scalar(text(f"SELECT now() + interval '{second} seconds'"))),
        },
    )
    placed = {"path": [*above, new], "root_id": above[0] if above else new}
    await db.execute(update(Comment).where(Comment.id == new).values(**placed))
    return new


async def mark_deleted(db, of, **values):
    await db.execute(update(Comment).where(of).values(deleted_dt=text("now()"), **values))


@pytest.mark.parametrize("order", ["create_dt_desc", "create_dt_asc"])
async def test_following_the_links_shows_every_comment_once_and_in_order(client, board, order):
    pages = await walk(client, f"/api/comment/feed/{board['id']}?limit=7&sort_by={order}")

    rows = list(chain(*pages))
    keys = [(row["create_dt"], row["id"]) for row in rows]
    assert [len(page) for page in pages] == [7] * 12 + [6]
    assert keys == sorted(keys, reverse=order.endswith("desc"))
    assert len(set(keys)) == 90
    assert [row["content"] is None for row in rows] == [row["deleted"] for row in rows]
    assert sum(row["deleted"] for row in rows) == 10


@pytest.mark.parametrize("order", ["create_dt_desc", "create_dt_asc"])
async def test_following_the_links_shows_every_thread_once_and_whole(client, board, order):
    url = f"/api/comment/feed/{board['id']}?tree=true&limit=4&sort_by={order}"
    pages = await walk(client, url)

    rows = list(chain(*pages))
    roots = [row for row in rows if row["parent_id"] is None]
    keys = [(row["create_dt"], row["id"]) for row in roots]
    assert [len(page) for page in pages] == [12] * 7 + [6]
    assert [row["depth"] for row in rows] == [1, 2, 3] * 30
    assert all(
        [row["parent_id"] for row in rows[n + 1 : n + 3]] == ids(rows[n : n + 2])
        for n in range(0, 90, 3)
    )
    assert keys == sorted(keys, reverse=order.endswith("desc"))
    assert sorted(ids(rows)) == sorted(ids(await everything(client, board)))


@pytest.mark.parametrize("order", ["create_dt_desc", "create_dt_asc"])
@pytest.mark.parametrize("most", [1, 2, 4, 7])
async def test_a_page_may_end_within_a_thread_and_the_next_goes_on_there(
    client, board, monkeypatch, order, most
):
    url = f"/api/comment/feed/{board['id']}?tree=true&sort_by={order}&limit="
    whole = (await client.get(f"{url}100")).json()
    monkeypatch.setattr(comments, "MAX_TREE", most)

    pages = await walk(client, f"{url}2")

    assert list(chain(*pages)) == whole
    # All but the last end at the bound of comments, or in front of a third thread.
    for n, page in enumerate(pages[:-1]):
        roots = [row for row in page if row["depth"] == 1]
        assert len(page) == most or (len(roots) == 2 and pages[n + 1][0]["depth"] == 1)
        assert len(page) <= most
        assert len(roots) <= 2


async def test_a_thread_of_any_length_comes_in_pages_of_five_hundred(client, db, ada, feed):
    root = await say(client, ada, feed)
    await reply_often(db, ada, feed, root, times=1200)
    after = await say(client, ada, feed)

    url = f"/api/comment/feed/{feed['id']}?tree=true&sort_by=create_dt_asc"
    pages = await walk(client, url)

    rows = list(chain(*pages))
    assert [len(page) for page in pages] == [500, 500, 202]
    assert ids(rows) == [root["id"], *sorted(ids(rows[1:-1])), after["id"]]


async def reply_often(db, author, feed, root, *, times):
    async with db.begin():
        await db.execute(
            text(
                """
                INSERT INTO comments
                    (id, feed_id, author_id, parent_id, root_id, path, content)
                SELECT id, :feed, :author, :root, :root, ARRAY[:root, id], 'Words'
                FROM (
                    SELECT nextval(pg_get_serial_sequence('comments', 'id')) AS id
                    FROM generate_series(1, :times)
                ) new
                """
            ),
            {"feed": feed["id"], "author": author["id"], "root": root["id"], "times": times},
        )
        await db.execute(text("ANALYZE comments"))


@pytest.mark.parametrize("order", ["create_dt_desc", "create_dt_asc"])
async def test_threads_are_walked_without_a_hole_or_a_repeat_while_others_write(
    client, board, ada, monkeypatch, order
):
    chosen = random.Random(order)
    monkeypatch.setattr(comments, "MAX_TREE", 5)
    url = f"/api/comment/feed/{board['id']}?tree=true&limit=2&sort_by={order}"
    before = [row for row in await everything(client, board) if not row["deleted"]]
    gone, seen, following = set(), [], url
    while following:
        answer = await client.get(following)
        seen += ids(answer.json())
        following = answer.links.get("next", {}).get("url")
        # The last one seen, and where the walk has been or will be.
        for parent in (answer.json()[-1], None, *chosen.sample(before, 2)):
            if not parent or not (parent["deleted"] or parent["id"] in gone):
                await say(client, ada, board, parent=parent)
        for row in {row["id"]: row for row in (answer.json()[-1], *chosen.sample(before, 2))}:
            gone.add(row)
            await delete(client, ada, {"id": row})

    monkeypatch.setattr(comments, "MAX_TREE", 10_000)
    after = ids(chain(*await walk(client, url.replace("limit=2", "limit=100"))))
    assert len(set(seen)) == len(seen)
    assert {row["id"] for row in before} - gone <= set(seen)
    # In the one order, old and new; some of the new lay ahead.
    assert [id_ for id_ in after if id_ in set(seen)] == [id_ for id_ in seen if id_ in set(after)]
    assert set(seen) - set(ids(before))


async def everything(client, feed):
    return list(chain(*await walk(client, f"/api/comment/feed/{feed['id']}?limit=100")))


async def test_in_a_thread_each_reply_follows_what_it_replies_to_and_its_elders(client, ada, feed):
    first = await say(client, ada, feed)
    second = await say(client, ada, feed)
    of_second = await say(client, ada, feed, parent=second)
    younger = await say(client, ada, feed, parent=first)
    youngest = await say(client, ada, feed, parent=first)
    of_younger = await say(client, ada, feed, parent=younger)

    oldest_first = await shown(client, feed, "tree=true&sort_by=create_dt_asc")
    newest_first = await shown(client, feed, "tree=true")

    threads = [first, younger, of_younger, youngest], [second, of_second]
    assert ids(oldest_first) == ids([*threads[0], *threads[1]])
    assert ids(newest_first) == ids([*threads[1], *threads[0]])


async def test_the_newest_twenty_unless_asked_otherwise(client, board):
    default = await shown(client, board, "")

    assert len(default) == 20
    assert default == await shown(client, board, "limit=20&sort_by=create_dt_desc&tree=false")


async def test_what_is_written_and_deleted_meanwhile_shifts_no_page(client, board, ada):
    url = f"/api/comment/feed/{board['id']}?limit=10&sort_by=create_dt_asc"
    first = await client.get(url)
    link = first.links["next"]["url"]
    before = list(chain(*await walk(client, link)))
    for row in (first.json()[-1], before[2]):
        await delete(client, ada, row)

    after = list(chain(*await walk(client, link)))

    kept = [row for row in after if not row["deleted"]]
    assert [row for row in before if not row["deleted"] and row != before[2]] == kept


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("sort_by=update_dt_desc", "/sort_by"),
        ("tree=perhaps", "/tree"),
        ("limit=0", "/limit"),
        ("skip=1", "/skip"),
        ("cursor=nonsense", "/cursor"),
    ],
)
async def test_a_bad_parameter_is_named(client, feed, query, pointer):
    refused = await client.get(f"/api/comment/feed/{feed['id']}?{query}")

    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("tree", ["", "&tree=true"])
async def test_a_cursor_belongs_to_its_order(client, board, make_feed, ada, tree):
    url = f"/api/comment/feed/{board['id']}?limit=3{tree}"
    link = (await client.get(f"{url}&sort_by=create_dt_asc")).links["next"]["url"]
    cursor = link.partition("cursor=")[2].partition("&")[0]
    for _ in range(2):
        await make_feed(author=ada)
    feeds = await client.get("/api/feed/list?limit=1&sort_by=update_dt_asc")
    other = feeds.links["next"]["url"].rpartition("cursor=")[2]

    assert (await client.get(f"{url}&cursor={cursor}")).json() == (await client.get(link)).json()
    for query, pointer in {
        f"{url}&cursor={cursor}&sort_by=create_dt_desc": "/sort_by",
        f"{url}&cursor={other}": "/cursor",
    }.items():
        refused = await client.get(query)
        assert refused.json()["errors"][0]["pointer"] == pointer
    mine = await client.get(f"/api/mypage/comments?cursor={cursor}", headers=bearer(ada))
    assert mine.json()["errors"][0]["pointer"] == "/cursor"


@pytest.mark.parametrize("order", ["create_dt_desc", "create_dt_asc"])
async def test_a_cursor_of_threads_and_one_of_a_list_do_not_fit_each_other(
    client, board, ada, order
):
    url = f"/api/comment/feed/{board['id']}?limit=3&sort_by={order}"
    links = [(await client.get(f"{url}{tree}")).links["next"]["url"] for tree in ("", "&tree=true")]
    by_time, nested = (link.partition("cursor=")[2].partition("&")[0] for link in links)

    for query in (
        f"{url}&tree=true&cursor={by_time}",
        f"{url}&cursor={nested}",
        f"/api/feed/list?cursor={nested}",
        f"/api/mypage/comments?cursor={nested}",
    ):
        refused = await client.get(query, headers=bearer(ada))
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/cursor"


async def test_a_cursor_may_be_as_deep_as_replies_may_go(client, board):
    deepest = Cursor(SortBy.CREATE_DT_DESC, LONG_AGO, MAX_ID, (MAX_ID,) * 100).encode()

    answer = await client.get(f"/api/comment/feed/{board['id']}?tree=true&cursor={deepest}")

    assert (answer.status_code, answer.json()) == (200, [])


async def test_a_feed_that_is_not_there_has_no_list(client):
    for query in ("", "?tree=true"):
        refused = await client.get(f"/api/comment/feed/999999999{query}")
        assert refused.json()["type"] == "/problems/feed-not-found"


async def test_my_comments_are_mine_and_kept_and_newest_first(client, db, ada, bob, make_feed):
    feeds = [await make_feed(author=bob) for _ in range(3)]
    own = [await say(client, ada, feed) for feed in feeds for _ in range(3)]
    await say(client, bob, feeds[0], parent=own[0])
    for gone in own[:2]:
        await delete(client, ada, gone)
    async with db.begin():
        of = update(Feed).where(Feed.id == feeds[1]["id"])
        await db.execute(of.values(deleted_dt=text("now()")))
    client.headers.update(bearer(ada))

    pages = await walk(client, "/api/mypage/comments?limit=3")

    assert pages == [[own[8], own[7], own[6]], [own[2]]]


async def test_whether_i_like_it_is_told_to_me(client, db, ada, bob, feed):
    said = [await say(client, ada, feed) for _ in range(2)]
    async with db.begin():
        db.add(CommentLike(comment_id=said[0]["id"], user_id=bob["id"]))

    for query in ("sort_by=create_dt_asc", "sort_by=create_dt_asc&tree=true"):
        for reader, told in ((bob, [True, False]), (ada, [False] * 2), (None, [None] * 2)):
            rows = await shown(client, feed, query, reader)
            assert [row["liked"] for row in rows] == told


async def test_addresses_are_shown_to_their_owners_alone_where_the_instance_says_so(
    make_app, ada, bob, feed
):
    async with client_of(await make_app(show_emails=False)) as client:
        said = await say(client, ada, feed)
        seen = [await shown(client, feed, reader=reader) for reader in (ada, bob, None)]

    assert said["author_email"] == "ada@example.com"
    assert [row[0]["author_email"] for row in seen] == ["ada@example.com", None, None]


@pytest.mark.parametrize("query", ["limit=", "tree=true&limit="])
async def test_a_page_costs_the_same_statements_for_one_comment_and_for_many(
    client, engine, board, query
):
    with counted_statements(engine) as for_one:
        await shown(client, board, f"{query}1")
    with counted_statements(engine) as for_many:
        rows = await shown(client, board, f"{query}100")

    assert len(rows) == 90
    # Whether the feed is there, and all the rest.
    assert len([s for s in for_one if s.startswith("SELECT")]) == 2
    assert len(for_many) == len(for_one)


@pytest.mark.parametrize("query", ["limit=20", "tree=true&limit=20"])
async def test_a_page_is_read_by_its_indexes_and_sorts_no_more_than_itself(
    client, db, ada, feed, engine, query
):
    await fill(db, ada, feed)

    nodes = await plan_of(client, db, engine, f"/api/comment/feed/{feed['id']}?{query}")

    scans = [node for node in nodes if node.get("Relation Name") == "comments"]
    assert all(node["Node Type"] in {"Index Scan", "Index Only Scan"} for node in scans), scans
    # The page, and the next comment, or thread.
    assert all(node["Actual Rows"] <= 105 for node in nodes if "Sort" in node["Node Type"])


async def test_a_page_within_a_long_thread_reads_no_more_than_itself(client, db, ada, feed, engine):
    await fill(db, ada, feed)
    await reply_often(db, ada, feed, await say(client, ada, feed), times=3000)
    first = url = f"/api/comment/feed/{feed['id']}?tree=true"
    for _ in range(5):
        url = (await client.get(url)).links["next"]["url"]

    for page in (first, url):
        nodes = await plan_of(client, db, engine, page)
        scans = [node for node in nodes if node.get("Relation Name") == "comments"]
        assert all(node["Node Type"] == "Index Scan" for node in scans), scans
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) <= 21 + 501


async def plan_of(client, db, engine, url):
    """The nodes of the plan by which PostgreSQL has read a page of comments."""
    with counted_statements(engine, parameters=True) as sent:
        await client.get(url)
    ((statement, values),) = [s for s in sent if "FROM comments" in s[0]]
    async with db.begin():
        connection = await db.connection()
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
        plan = (await connection.exec_driver_sql(explain, values)).scalar_one()
    return list(flat(plan[0]["Plan"]))


async def fill(db, author, feed):
    """Comments in threads of five: ten thousand on the feed, as many on a hundred others."""
    async with db.begin():
        await db.execute(
            text(
                """
                WITH board AS (
                    INSERT INTO feeds (title, content, author_id)
                    SELECT 'T', 'C', :author FROM generate_series(1, 100) RETURNING id
                ), feed AS (SELECT id, 99 AS last FROM board UNION SELECT :feed, 9999),
                new AS (
                    SELECT feed.id AS feed_id, n, 1000000000 + row_number() OVER () AS id
                    FROM feed, generate_series(0, last) n
                )
                INSERT INTO comments
                    (id, feed_id, author_id, parent_id, root_id, path, content, create_dt)
                SELECT id, feed_id, :author, nullif(id - n % 5, id), id - n % 5,
                    CASE n % 5 WHEN 0 THEN ARRAY[id] ELSE ARRAY[id - n % 5, id] END,
                    'Words', now() + n * interval '1 second'
                FROM new
                """
            ),
            {"author": author["id"], "feed": feed["id"]},
        )
        await db.execute(text("ANALYZE comments"))
        await db.execute(text("ANALYZE feeds"))


def flat(node):
    yield node
    for child in node.get("Plans", ()):
        yield from flat(child)
