"""Answers kept for a day by Idempotency-Key."""

from typing import NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from shoal.controller.host.context import Context
from shoal.controller.store.tables import idempotency
from shoal.errors import ConflictError

KEPT_S = 86_400.0
#: A request that began so long ago and never ended died with its process.
ABANDONED_S = 120.0


class Kept(NamedTuple):
    """What was answered."""

    status: int
    location: str
    body: bytes


def begin(ctx: Context, key: str, body_hash: str) -> Kept | None:
    """What was answered to this request before, or None: then it is the caller's to answer.

    ConflictError when the first is still being answered, or had another body.
    """
    now = ctx.clock()
    row = {"key": key, "body_hash": body_hash, "body": b"", "created_at": now}
    stale = (idempotency.c.created_at < now - KEPT_S) | (
        (idempotency.c.status == 0) & (idempotency.c.created_at < now - ABANDONED_S)
    )
    try:
        with ctx.store.write() as db:
            db.execute(delete(idempotency).where(stale))
            db.execute(idempotency.insert().values(row))
    except IntegrityError:
        return _earlier(ctx, key, body_hash)
    return None


def keep(ctx: Context, key: str, status: int, location: str, body: bytes) -> None:
    """Keep the answer to a request that was begun."""
    with ctx.store.write() as db:
        db.execute(
            update(idempotency)
            .where(idempotency.c.key == key)
            .values(status=status, location=location, body=body)
        )


def forget(ctx: Context, key: str) -> None:
    """The request failed: it may be tried again."""
    with ctx.store.write() as db:
        db.execute(delete(idempotency).where(idempotency.c.key == key))


def _earlier(ctx: Context, key: str, body_hash: str) -> Kept:
    with ctx.store.read() as db:
        row = db.execute(select(idempotency).where(idempotency.c.key == key)).one_or_none()
    if row is None or row.status == 0:
        raise ConflictError("the first request with this Idempotency-Key is still at work")
    if row.body_hash != body_hash:
        raise ConflictError(
            "this Idempotency-Key was used for another request", "use a new key for a new request"
        )
    return Kept(row.status, row.location, row.body)
