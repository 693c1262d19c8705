"""A storm of clients on the same few things: whatever they do at once, the counts are the rows.

A few bursts here; `FEEDBOARD_STORM=10000` (`make storm`) is that many requests.
"""

import asyncio
import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import text

from tests.conftest import bearer, client_of, user_maker

CLIENTS = 16
BURST = 64
LONG = int(os.environ.get("FEEDBOARD_STORM", "0"))
# What may be answered: done, oneself, not mine, not there (any more), too deep.
EXPECTED = {200, 400, 403, 404, 422}
# Each counts where a column differs from its rows, of what the storm's users wrote.
COUNTS = {
    "likes of feeds": """
        SELECT count(*) FROM feeds WHERE author_id = ANY(:users) AND like_count <>
        (SELECT count(*) FROM feed_likes WHERE feed_id = feeds.id)""",
    "comments of feeds": """
        SELECT count(*) FROM feeds WHERE author_id = ANY(:users) AND comment_count <>
        (SELECT count(*) FROM comments WHERE feed_id = feeds.id AND deleted_dt IS NULL)""",
    "likes of comments": """
        SELECT count(*) FROM comments WHERE author_id = ANY(:users) AND like_count <>
        (SELECT count(*) FROM comment_likes WHERE comment_id = comments.id)""",
}
ACTS = st.sampled_from(
    [
        ("POST", "/api/feed/create"),
        ("DELETE", "/api/feed/delete/{feed}"),
        ("POST", "/api/feed/restore/{feed}"),
        ("POST", "/api/comment/create"),
        ("POST", "/api/comment/create"),
        ("POST", "/api/comment/create?reply"),
        ("POST", "/api/comment/create?reply"),
        ("DELETE", "/api/comment/delete/{comment}"),
        ("POST", "/api/comment/restore/{comment}"),
        ("GET", "/api/comment/feed/{feed}?tree=true"),
        ("GET", "/api/feed/list"),
        ("GET", "/api/feed/home"),
        *((method, "/api/like/feed/{feed}") for method in ("PUT", "DELETE")),
        *((method, "/api/like/comment/{comment}") for method in ("PUT", "DELETE")),
        ("PATCH", "/api/like/?feed_id={feed}"),
        ("PATCH", "/api/like/?comment_id={comment}"),
        *((method, "/api/follow/{user}") for method in ("PUT", "DELETE", "PATCH")),
    ]
)
WHICH = st.integers(0, 3)
DEEDS = st.tuples(st.integers(0, CLIENTS - 1), ACTS, WHICH, WHICH, st.integers(0, CLIENTS - 1))


class Board:
    """What the clients share: the service, its users, and the ids of what they wrote."""

    def __init__(self, app, client, users):
        self.app, self.client, self.users = app, client, users
        self.feeds, self.comments = [1], [1]
        self.requests = 0

    async def burst(self, deeds):
        """Let each client do its deeds one after the other, all clients at once."""
        own = {client: [deed for deed in deeds if deed[0] == client] for client in range(CLIENTS)}
        await asyncio.gather(*(self._work(deeds) for deeds in own.values()))

    async def _work(self, deeds):
        for client, (method, path), feed, comment, user in deeds:
            # The last ones, so that all meet at them.
            feed_id = self.feeds[-1 - feed % len(self.feeds)]
            comment_id = self.comments[-1 - comment % len(self.comments)]
            answer = await self.client.request(
                method,
                path.removesuffix("?reply").format(
                    feed=feed_id, comment=comment_id, user=self.users[user]["id"]
                ),
                headers=bearer(self.users[client]),
                **self._body(path, feed_id, comment_id),
            )
            self.requests += 1
            assert answer.status_code in EXPECTED, (method, path, answer.text)
            if answer.status_code == 200 and path.startswith("/api/feed/create"):
                self.feeds.append(answer.json()["id"])
            if answer.status_code == 200 and path.startswith("/api/comment/create"):
                self.comments.append(answer.json()["id"])

    def _body(self, path, feed_id, comment_id):
        if path.startswith("/api/feed/create"):
            return {"data": {"title": "T", "content": "C"}}
        if path.startswith("/api/comment/create"):
            parent = {"parent_id": comment_id} if path.endswith("?reply") else {}
            return {"json": {"feed_id": feed_id, "content": "C"} | parent}
        return {}

    async def differences(self):
        users = {"users": [user["id"] for user in self.users]}
        async with self.app.state.sessions() as db, db.begin():
            return {name: await db.scalar(text(query), users) for name, query in COUNTS.items()}

    async def follows(self):
        """Followers as profiles count them, and as they are listed."""
        counted, listed = [], []
        for user in self.users:
            profile = await self.client.get(f"/api/user/{user['id']}")
            path = f"/api/mypage/{user['id']}/followers?limit=100"
            followers = await self.client.get(path, headers=bearer(user))
            counted.append(profile.json()["follower_count"])
            listed.append(len(followers.json()))
        return counted, listed


async def test_counts_are_the_rows_after_a_storm(live_app):
    async with client_of(live_app) as client:
        sign_up = user_maker(client)
        board = Board(live_app, client, [await sign_up() for _ in range(CLIENTS)])
        here = asyncio.get_running_loop()

        class Storm(RuleBasedStateMachine):
            @initialize()
            def begin(self):
                # A feed and a comment of this run, for all to meet at.
                posting = [(0, ("POST", "/api/feed/create"), 0, 0, 0)]
                asyncio.run_coroutine_threadsafe(board.burst(posting), here).result()

            @rule(deeds=st.lists(DEEDS, min_size=BURST // 2, max_size=BURST))
            def blow(self, deeds):
                asyncio.run_coroutine_threadsafe(board.burst(deeds), here).result()
                wrong = asyncio.run_coroutine_threadsafe(board.differences(), here).result()
                assert wrong == dict.fromkeys(COUNTS, 0)

        once = settings(
            max_examples=1,
            stateful_step_count=6,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        while board.requests <= LONG:
            await asyncio.to_thread(run_state_machine_as_test, Storm, settings=once)
        counted, listed = await board.follows()

    print(f"{board.requests} requests")  # For -s.
    assert counted == listed
    assert board.requests > 2 * BURST
