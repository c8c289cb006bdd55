"""Idempotency keys: the response to a request is stored for a day and returned to its retries."""

from typing import NamedTuple

from sqlalchemy import delete, select, update

from shoal.controller.host.context import Context
from shoal.controller.store.tables import idempotency
from shoal.errors import ConflictError

KEPT_S = 86_400.0
#: An unfinished request of this age was lost with its process.
ABANDONED_S = 120.0


class StoredResponse(NamedTuple):
    """Response to the first request with a key."""

    status: int
    location: str
    body: bytes


def begin(ctx: Context, key: str, body_hash: str) -> StoredResponse | None:
    """Register a request; the stored response when it is a retry, None for a new one.

    ConflictError when the first request is still in progress, or had another body.
    """
    now = ctx.clock()
    row = {"key": key, "body_hash": body_hash, "body": b"", "created_at": now}
    stale = (idempotency.c.created_at < now - KEPT_S) | (
        (idempotency.c.status == 0) & (idempotency.c.created_at < now - ABANDONED_S)
    )
    with ctx.store.write() as db:
        db.execute(delete(idempotency).where(stale))
        first = db.execute(select(idempotency).where(idempotency.c.key == key)).one_or_none()
        if first is None:
            db.execute(idempotency.insert().values(row))
            return None
    if first.status == 0:
        raise ConflictError("the first request with this Idempotency-Key is still in progress")
    if first.body_hash != body_hash:
        raise ConflictError(
            "this Idempotency-Key was used for another request", "use a new key for a new request"
        )
    return StoredResponse(first.status, first.location, first.body)


def keep(ctx: Context, key: str, status: int, location: str, body: bytes) -> None:
    """Store the response to a registered request."""
    with ctx.store.write() as db:
        db.execute(
            update(idempotency)
            .where(idempotency.c.key == key)
            .values(status=status, location=location, body=body)
        )


def forget(ctx: Context, key: str) -> None:
    """Remove a request that failed, so that it may be retried."""
    with ctx.store.write() as db:
        db.execute(delete(idempotency).where(idempotency.c.key == key))
