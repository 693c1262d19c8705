"""Walking a long list to its end while others write: no hole, and nothing twice.

`FEEDBOARD_WALK=100000` (`make walk`) is the long form.
"""

import asyncio
import os
import random

import pytest
from sqlalchemy import text

from tests.conftest import bearer, user_maker

LENGTH = int(os.environ.get("FEEDBOARD_WALK", "1500"))
# A third of them has been deleted already, some in rows.
_FILL = text(
    """
    INSERT INTO feeds (title, content, author_id, create_dt, update_dt, deleted_dt)
    SELECT 'Feed ' || n, 'C', :author, time, time,
           CASE WHEN n % 3 = 0 OR n % 100 > 90 THEN now() END
    FROM generate_series(1, :length) AS n,
         LATERAL (SELECT now() - interval '1 day' + n / 5 * interval '1 millisecond' AS time) t
    """
)
_LEFT = text("SELECT id FROM feeds WHERE title LIKE 'Feed %' AND deleted_dt IS NULL")


async def come_and_go(client, author, chosen):
    """Post feeds, and delete some of the long list's; gives the ids of these."""
    gone = set()
    while chosen:
        words = {"title": "New", "content": "C"}
        await client.post("/api/feed/create", data=words, headers=bearer(author))
        feed_id = chosen.pop()
        deleted = await client.delete(f"/api/feed/delete/{feed_id}", headers=bearer(author))
        assert deleted.status_code == 200
        gone.add(feed_id)
    return gone


@pytest.mark.parametrize("order", ["create_dt_desc", "create_dt_asc"])
async def test_a_long_list_is_walked_without_a_hole_or_a_repeat(live_app, live_client, order):
    author = await user_maker(live_client)()
    async with live_app.state.sessions() as db, db.begin():
        await db.execute(text("DELETE FROM feeds WHERE title LIKE 'Feed %'"))
        await db.execute(_FILL, {"author": author["id"], "length": LENGTH})
        there = set((await db.scalars(_LEFT)).all())
    writing = asyncio.create_task(
        come_and_go(live_client, author, random.sample(sorted(there), min(len(there) // 4, 150)))
    )

    seen, url = [], f"/api/feed/list?limit=100&sort_by={order}"
    while url:
        page = await live_client.get(url)
        assert page.status_code == 200, page.text
        seen += [feed["id"] for feed in page.json()]
        url = page.links.get("next", {}).get("url")
    gone = await writing

    assert len(seen) == len(set(seen))
    assert there - gone <= set(seen)
