"""Likes, follows and comments: facts that are so or not, each counted where it is shown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.conftest import Json

# Who did what: the path by which it was done.
ROWS = text("""
    SELECT user_id, '/api/like/feed/' || feed_id FROM feed_likes
    UNION ALL SELECT user_id, '/api/like/comment/' || comment_id FROM comment_likes
    UNION ALL SELECT follower_id, '/api/follow/' || followed_id FROM follows
""")


@dataclass
class Fact:
    """Whether something is so, or both while nobody knows.

    `feed_id` is the feed with which it goes and comes back; of a comment, `parent_id` is what it
    replies to.
    """

    feed_id: int | None = None
    parent_id: int | None = None
    so: set[bool] = field(default_factory=lambda: {False})

    @property
    def doubted(self) -> bool:
        return len(self.so) > 1


# By the path of a like or a follow, and by the words of a comment, which nobody else ever says.
Facts = dict[str, Fact]


@dataclass(frozen=True)
class Community:
    """What is there: what is shown over HTTP, the ids of feeds to restore, and the rows."""

    feeds: dict[int, Json]
    hidden: set[int]
    comments: Sequence[Json]
    profiles: Sequence[Json]
    rows: Sequence[tuple[int, str]]

    def check_counts(self) -> None:
        """Whatever is counted is counted right."""
        counts = Counter(path for _, path in self.rows)
        said = Counter(comment["feed_id"] for comment in self.comments)
        followings = Counter(user for user, path in self.rows if "follow" in path)
        for feed_id, feed in self.feeds.items():
            counted = feed["like_count"], feed["comment_count"]
            rows = counts[f"/api/like/feed/{feed_id}"], said[feed_id]
            assert counted == rows, f"feed {feed_id} counts {counted}, there are {rows}"
        for comment in self.comments:
            likes = counts[f"/api/like/comment/{comment['id']}"]
            assert comment["like_count"] == likes, f"there are {likes} likes of {comment}"
        for user in self.profiles:
            counted = user["follower_count"], user["following_count"]
            rows = counts[f"/api/follow/{user['id']}"], followings[user["id"]]
            assert counted == rows, f"user {user['id']} counts {counted}, there are {rows}"

    def settle(self, user_id: int, facts: Facts) -> int:
        """Hold what somebody was promised against what is there; gives how many facts.

        Of feeds that are hidden it is seen when they are restored.
        """
        there: dict[str, Json] = {path: {} for user, path in self.rows if user == user_id}
        mine = (comment for comment in self.comments if comment["author_id"] == user_id)
        there |= {comment["content"]: comment for comment in mine}
        assert there.keys() <= facts.keys(), f"never promised: {there.keys() - facts.keys()}"
        checked = 0
        for what, fact in list(facts.items()):
            if fact.feed_id is None or fact.feed_id in self.feeds:
                assert (what in there) in fact.so, f"{what} should be {fact}"
                place = {"feed_id": fact.feed_id, "parent_id": fact.parent_id}
                found = there.get(what) or place
                assert found | place == found, f"{what} is {found}, and should be {fact}"
                fact.so = {what in there}
                checked += 1
            elif fact.feed_id not in self.hidden:
                # It has gone with its feed, and so has its row.
                assert what not in there, f"{what} outlives its feed"
                del facts[what]
        return checked


async def rows(db: AsyncSession) -> list[tuple[int, str]]:
    async with db.begin():
        return [(user_id, path) for user_id, path in await db.execute(ROWS)]
