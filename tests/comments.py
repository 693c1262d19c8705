"""Acts on comments, as clients do them, and as time does."""

from datetime import timedelta

from sqlalchemy import update

from models.comment import Comment
from tests.conftest import bearer


async def say(client, author, feed, content="Words", parent=None):
    """Comment, or reply; gives the comment."""
    body = {"content": content, "feed_id": feed["id"]}
    body |= {"parent_id": parent["id"]} if parent else {}
    said = await client.post("/api/comment/create", json=body, headers=bearer(author))
    assert said.status_code == 200, said.text
    return said.json()


async def delete(client, author, comment):
    return await client.delete(f"/api/comment/delete/{comment['id']}", headers=bearer(author))


async def restore(client, author, comment):
    return await client.post(f"/api/comment/restore/{comment['id']}", headers=bearer(author))


async def shown(client, feed, query="sort_by=create_dt_asc", reader=None):
    """The comments that a feed shows; None where it is not there."""
    headers = bearer(reader) if reader else {}
    answer = await client.get(f"/api/comment/feed/{feed['id']}?{query}", headers=headers)
    return answer.json() if answer.status_code == 200 else None


async def counted(client, feed):
    return (await client.get(f"/api/feed/read/{feed['id']}")).json()["comment_count"]


def ids(rows):
    return [row["id"] for row in rows]


async def change(client, editor, comment, content="Better words"):
    return await client.patch(
        f"/api/comment/update/{comment['id']}", json={"content": content}, headers=bearer(editor)
    )


async def set_back(db, days, **of):
    """Let it be so many days longer ago that comments were deleted."""
    async with db.begin():
        earlier = Comment.deleted_dt - timedelta(days=days)
        await db.execute(update(Comment).filter_by(**of).values(deleted_dt=earlier))
