"""Audit log as a hash chain: each hash covers the previous entry, so a removal is detected."""

import hashlib
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from shoal.controller.access.records import AuditEntry
from shoal.controller.host.context import Context
from shoal.controller.store import cursors
from shoal.controller.store.records import Page
from shoal.controller.store.tables import audit
from shoal.errors import StorageError


def record(
    db: Connection, ctx: Context, actor: str, verb: str, subject: str, **detail: Any
) -> None:
    """Append an entry in the transaction of the audited change: both are stored, or neither."""
    before = db.scalar(select(audit.c.hash).order_by(audit.c.id.desc()).limit(1)) or ""
    entry = {
        "at": ctx.clock(),
        "actor": actor,
        "verb": verb,
        "subject": subject,
        "detail": msgspec.to_builtins(detail),
    }
    db.execute(audit.insert().values(**entry, hash=_hash(before, entry)))


def list_audit(
    ctx: Context, *, subject: str = "", cursor: str = "", limit: int = 100
) -> tuple[list[AuditEntry], Page]:
    """Entries, newest first; InputError for an invalid cursor."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
    if subject:
        query = query.where(audit.c.subject == subject)
    if cursor:
        query = query.where(audit.c.id < cursors.decode(cursor, int)[0])
    with ctx.store.read() as db:
        rows = db.execute(query).mappings().all()
        total = db.execute(select(audit.c.id).order_by(audit.c.id.desc()).limit(1)).scalar() or 0
    entries = [AuditEntry(**row) for row in rows[:limit]]
    more = cursors.encode(entries[-1].id) if len(rows) > limit else ""
    return entries, Page(next=more, total=total)


def verify(ctx: Context) -> int:
    """Verify the chain and return its length; StorageError names the first changed entry."""
    before, count = "", 0
    with ctx.store.read() as db:
        for row in db.execute(select(audit).order_by(audit.c.id)).mappings():
            entry = {k: row[k] for k in ("at", "actor", "verb", "subject", "detail")}
            if row["hash"] != _hash(before, entry):
                raise StorageError(f"audit entry {row['id']} was changed, or one before it removed")
            before, count = row["hash"], count + 1
    return count


def _hash(before: str, entry: dict[str, Any]) -> str:
    return hashlib.sha256(before.encode() + msgspec.json.encode(entry, order="sorted")).hexdigest()
