"""Pages of comments: by time, by threads, by author, and what a page costs."""

from itertools import chain

import pytest
from sqlalchemy import insert, text, update

from models.comment import Comment
from models.feed import Feed
from models.like import CommentLike
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
    with counted_statements(engine, parameters=True) as sent:
        await shown(client, feed, query)
    ((statement, values),) = [s for s in sent if "FROM comments" in s[0]]

    async with db.begin():
        connection = await db.connection()
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
        plan = (await connection.exec_driver_sql(explain, values)).scalar_one()

    nodes = list(flat(plan[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") == "comments"]
    assert all(node["Node Type"] in {"Index Scan", "Index Only Scan"} for node in scans), scans
    # The page, and the root of the next thread.
    assert all(node["Actual Rows"] <= 101 for node in nodes if "Sort" in node["Node Type"])


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
