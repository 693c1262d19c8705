"""Home: the newest feeds of those whom a reader follows."""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    DateTime,
    Integer,
    any_,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from models.base import MAX_ID, CursorQuery
from models.feed import Feed, FeedRead, ListQuery, SortBy
from models.follow import Follow
from services import showing
from services.access import is_here
from services.cursors import Cursor, Page
from services.readers import Reader
from services.store import ImageStore

_PAGE = bindparam("page_size", type_=Integer)
_IS_MINE = Follow.follower_id == bindparam("reader_id", type_=BigInteger)
# From where the page begins, newest first: of all authors, or of one, it is one walk down an index.
_BEFORE = (
    select(Feed.id, Feed.create_dt, Feed.author_id)
    .where(
        Feed.deleted_dt.is_(None),
        tuple_(Feed.create_dt, Feed.id)
        < tuple_(
            bindparam("before_dt", type_=DateTime(timezone=True)),
            bindparam("before_id", type_=BigInteger),
        ),
    )
    .order_by(Feed.create_dt.desc(), Feed.id.desc())
)
# First a look at the newest feeds of all. It is enough for who follows many, or busy authors.
_NEWEST = _BEFORE.limit(literal_column("1000")).subquery("newest")
_FOUND = (
    select(_NEWEST.c.id, _NEWEST.c.create_dt)
    .where(exists().where(_IS_MINE, Follow.followed_id == _NEWEST.c.author_id))
    # As `showing.SHOWN` has it: else a page would end too early.
    .where(is_here(_NEWEST.c.author_id))
    .order_by(_NEWEST.c.create_dt.desc(), _NEWEST.c.id.desc())
    .limit(_PAGE)
    .cte("found")
)
_COUNT = select(func.count()).select_from(_FOUND).scalar_subquery()
# If not: the feeds of a page are of as many authors at most, those who posted last before it. So
# one row of each whom the reader follows says at whose feeds to look.
_LATEST = (
    _BEFORE.where(Feed.author_id == Follow.followed_id)
    .limit(literal_column("1"))
    .correlate(Follow)
    .lateral("latest")
)
_AUTHORS = (
    select(Follow.followed_id)
    .join(_LATEST, true())
    .where(_IS_MINE, is_here(Follow.followed_id), _COUNT < _PAGE)
    .order_by(_LATEST.c.create_dt.desc(), _LATEST.c.id.desc())
    .limit(_PAGE)
    .cte("authors")
)
_THEIRS = (
    _BEFORE.where(Feed.author_id == _AUTHORS.c.followed_id)
    .limit(_PAGE)
    .correlate(_AUTHORS)
    .lateral("theirs")
)
_EITHER = union_all(
    select(_FOUND.c.id, _FOUND.c.create_dt).where(_COUNT >= _PAGE),
    select(_THEIRS.c.id, _THEIRS.c.create_dt).select_from(_AUTHORS).join(_THEIRS, true()),
).subquery("either")
# The ids of a page; docs/home.md has its plan, what it costs, and what others did.
PAGE = select(_EITHER.c.id).order_by(_EITHER.c.create_dt.desc(), _EITHER.c.id.desc()).limit(_PAGE)
# Before any cursor.
_FIRST = Cursor(SortBy.CREATE_DT_DESC, datetime.max.replace(tzinfo=UTC), MAX_ID)


async def page(
    db: AsyncSession, images: ImageStore, reader: Reader, query: CursorQuery
) -> Page[FeedRead]:
    """A page of the feeds of those whom the reader follows, newest first.

    Raises InvalidInput for a bad cursor.
    """
    start = Cursor.newest_first(query.cursor) or _FIRST
    asked = {"before_dt": start.time, "before_id": start.id, "page_size": query.limit + 1}
    async with db.begin():
        ids = (await db.scalars(PAGE, {"reader_id": reader.id} | asked)).all()
    of = Feed.id == any_(literal(list(ids), ARRAY(BigInteger)))
    return await showing.page(db, images, reader, ListQuery(limit=query.limit), of)
