"""Pages of a table: filtered, sorted and counted in SQL, by keyset, so that no page costs more."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, or_, tuple_

from shoal.controller.store import cursors
from shoal.controller.store.columns import like_text
from shoal.controller.store.records import Page
from shoal.errors import InputError

#: Name of an order -> columns; the last ones make a row unique.
Orders = Mapping[str, Sequence[ColumnElement[Any]]]


def page_of(
    db: Connection, query: Select[Any], orders: Orders, *, sort: str, cursor: str, limit: int
) -> tuple[Sequence[Row[Any]], Page]:
    """Rows of one page, and how many the query has in all.

    query   filtered, neither sorted nor limited; has every column of the order
    sort    one of `orders`; with "-" before it, from the last to the first

    The total is counted for the first page and passed on in the cursor. Raises InputError for an
    unknown order, and an invalid limit or cursor.
    """
    limit, falling = cursors.bounded(limit), sort.startswith("-")
    name = sort.removeprefix("-")
    if name not in orders:
        raise InputError(
            f"sort {sort!r:.40}", f"use one of: {', '.join(orders)}; - before it: falling"
        )
    key, total, rest = orders[name], -1, query
    if cursor:
        types = [column.type.python_type for column in key]
        *after, total = cursors.decode(cursor, *types, int)
        at, last = tuple_(*key), tuple_(*after)
        rest = query.where(at < last if falling else at > last)
    order = [column.desc() for column in key] if falling else list(key)
    rows = db.execute(rest.order_by(*order).limit(limit + 1)).all()
    if total < 0:
        count = query.with_only_columns(func.count(), maintain_column_froms=True)
        total = int(db.scalar(count) or 0) if len(rows) > limit else len(rows)
    more = ""
    if len(rows) > limit:
        last_row = rows[limit - 1]._mapping
        more = cursors.encode(*(last_row[column] for column in key), total)
    return rows[:limit], Page(next=more, total=total)


def has_text(text: str, *columns: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """Condition: a column has the text somewhere in it, whatever its case; [] for no text."""
    if not text:
        return []
    part = f"%{like_text(text.lower())}%"
    return [or_(*(func.lower(column).like(part, escape="\\") for column in columns))]
