"""Comments over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Query

from models.base import Message
from models.comment import CommentCreate, CommentQuery, CommentRead, CommentUpdate
from routers.conditions import Expected, Tag
from routers.dependencies import STRICT, Configured, CurrentReader, CurrentUser, Db, Id
from routers.idempotency import keyed
from routers.paging import PAGED, PageQuery, Paging
from routers.problems import refuses
from services import comments
from services.errors import (
    CommentNotFound,
    ContentTooLarge,
    DatabaseUnavailable,
    FeedNotFound,
    Forbidden,
    InvalidInput,
    MalformedBody,
    NotAuthenticated,
    PreconditionFailed,
    UnsupportedMediaType,
)

router = APIRouter(
    prefix="/api",
    tags=["Comments"],
    dependencies=STRICT,
    responses=refuses(NotAuthenticated, ContentTooLarge, InvalidInput, DatabaseUnavailable),
)


@router.post(
    "/comment/create",
    summary="Comment",
    responses=refuses(MalformedBody, UnsupportedMediaType, FeedNotFound, CommentNotFound),
)
@keyed
async def create_comment(
    db: Db,
    settings: Configured,
    author: CurrentUser,
    reader: CurrentReader,
    tag: Tag[CommentRead],
    comment: CommentCreate,
) -> CommentRead:
    """Comment on a feed, or reply to a comment on it."""
    created = await comments.create(
        db,
        author,
        reader,
        feed_id=comment.feed_id,
        content=comment.content,
        parent_id=comment.parent_id,
        max_depth=settings.comment_depth,
    )
    return tag(created)


@router.get(
    "/comment/read/{comment_id}", summary="Read a comment", responses=refuses(CommentNotFound)
)
async def read_comment(
    db: Db, reader: CurrentReader, tag: Tag[CommentRead], comment_id: Id
) -> CommentRead:
    """One comment, as the list shows it; anybody may."""
    return tag(await comments.read(db, reader, comment_id))


@router.get(
    "/comment/feed/{feed_id}",
    summary="List a feed's comments",
    responses=refuses(FeedNotFound) | PAGED,
)
async def list_comments(
    db: Db,
    reader: CurrentReader,
    paging: Paging,
    feed_id: Id,
    query: Annotated[CommentQuery, Query()],
) -> list[CommentRead]:
    """A page of what was said on a feed, by time or (`tree`) by threads; anybody may."""
    return paging.answer(await comments.page(db, reader, feed_id, query))


@router.patch(
    "/comment/update/{comment_id}",
    summary="Change a comment",
    responses=refuses(
        MalformedBody, Forbidden, CommentNotFound, PreconditionFailed, UnsupportedMediaType
    ),
)
@keyed
async def update_comment(
    db: Db,
    editor: CurrentUser,
    reader: CurrentReader,
    expected: Expected,
    tag: Tag[CommentRead],
    comment_id: Id,
    change: CommentUpdate,
) -> CommentRead:
    """Change the words of a comment; only its author may."""
    content = change.content
    return tag(
        await comments.update(db, editor, reader, comment_id, content=content, expected=expected)
    )


@router.delete(
    "/comment/delete/{comment_id}",
    summary="Delete a comment",
    responses=refuses(Forbidden, CommentNotFound, FeedNotFound, PreconditionFailed),
)
@keyed
async def delete_comment(
    db: Db, settings: Configured, editor: CurrentUser, expected: Expected, comment_id: Id
) -> Message:
    """Delete a comment; its author may, or an administrator. If it has replies, its place stays."""
    restorable = settings.restorable
    return await comments.delete(db, editor, comment_id, restorable=restorable, expected=expected)


@router.post(
    "/comment/restore/{comment_id}",
    summary="Restore a comment",
    responses=refuses(Forbidden, CommentNotFound, FeedNotFound),
)
@keyed
async def restore_comment(
    db: Db,
    settings: Configured,
    editor: CurrentUser,
    reader: CurrentReader,
    tag: Tag[CommentRead],
    comment_id: Id,
) -> CommentRead:
    """Bring back a comment that was deleted within `RESTORE_DAYS`; only its author may."""
    restorable = settings.restorable
    return tag(await comments.restore(db, editor, reader, comment_id, restorable=restorable))


@router.get(
    "/mypage/comments",
    summary="List my comments",
    responses=PAGED,
)
async def list_my_comments(
    db: Db,
    author: CurrentUser,
    reader: CurrentReader,
    paging: Paging,
    query: PageQuery,
) -> list[CommentRead]:
    """What I wrote on feeds that are there, newest first."""
    return paging.answer(await comments.mine(db, author, reader, query))
