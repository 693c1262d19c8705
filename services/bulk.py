"""Many rows by one statement."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, String, bindparam, cast, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from models.base import Base


async def add(
    db: AsyncSession, column: InstrumentedAttribute[int], more: Mapping[int, int]
) -> None:
    """Add to the counts of some rows, which are locked, by their ids."""
    if not more:
        return
    table = column.class_
    pairs = func.unnest(_array("ids"), _array("more"))
    by_id = pairs.table_valued("id", "more", name="by_id").render_derived()
    changed = update(table).where(table.id == by_id.c.id).values({column: column + by_id.c.more})
    values = {"ids": list(more), "more": list(more.values())}
    await db.execute(changed.execution_options(synchronize_session=False), values)


async def write(db: AsyncSession, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Write many rows, all with the same columns."""
    if not rows:
        return
    columns = [table.__table__.c[name] for name in rows[0]]
    # An array of arrays would come apart in single values: each travels as its text.
    texts = {it.name for it in columns if isinstance(it.type, ARRAY)}
    arrays = [
        bindparam(it.name, type_=ARRAY(String if it.name in texts else it.type)) for it in columns
    ]
    values = func.unnest(*arrays).table_valued(*rows[0], name="row").render_derived()
    wanted = [cast(values.c[it.name], it.type) for it in columns]
    await db.execute(
        insert(table)
        .from_select(list(rows[0]), select(*wanted))
        .execution_options(dml_strategy="raw"),
        {
            name: [_text(row[name]) if name in texts else row[name] for row in rows]
            for name in rows[0]
        },
    )


async def draw(db: AsyncSession, table: type[Base], number: int) -> Sequence[int]:
    """Ids for so many new rows of a table, in order."""
    if not number:
        return []
    return (await db.scalars(_DRAWN, {"table": table.__tablename__, "number": number})).all()


_DRAWN = select(
    func.nextval(func.pg_get_serial_sequence(bindparam("table"), "id"), type_=BigInteger)
).select_from(func.generate_series(1, bindparam("number", type_=BigInteger)))


def _text(array: Sequence[int]) -> str:
    return f"{{{','.join(map(str, array))}}}"


def _array(name: str) -> Any:
    return bindparam(name, type_=ARRAY(BigInteger))
