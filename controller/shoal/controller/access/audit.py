"""Audit log as a hash chain: each hash covers the previous entry, so a removal is detected."""

import hashlib
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, func, select

from shoal.controller.access.records import AuditEntry
from shoal.controller.host.context import Context
from shoal.controller.store import cursors
from shoal.controller.store.records import Page
from shoal.controller.store.tables import audit
from shoal.errors import StorageError


def record(
    db: Connection, ctx: Context, actor: str, verb: str, subject: str, **detail: Any
) -> None:
    """Append an entry in the transaction of the audited change: both are stored, or neither.

    actor    user, or the controller's own part, that changed it; "" for an unknown user
    verb     "KIND.ACTION", such as "rollout.start"
    detail   what was asked; `before` and `after` for a value that changed, `reason` for why
    """
    before = db.scalar(select(audit.c.hash).order_by(audit.c.id.desc()).limit(1)) or ""
    entry = {
        "at": ctx.clock(),
        "actor": actor,
        "verb": verb,
        "subject": subject,
        "detail": msgspec.to_builtins(detail),
        "address": ctx.address,
    }
    db.execute(audit.insert().values(**entry, hash=_hash(before, entry)))


class AuditFilter(NamedTuple):
    """Which entries. "" and 0 for all.

    verb          such as "rollout.start", or "rollout.*" for all that begin so
    since, until  Unix seconds
    """

    actor: str = ""
    verb: str = ""
    subject: str = ""
    since: float = 0.0
    until: float = 0.0


def list_audit(
    ctx: Context,
    wanted: AuditFilter | None = None,
    *,
    subject: str = "",
    cursor: str = "",
    limit: int = 100,
) -> tuple[list[AuditEntry], Page]:
    """Entries, newest first, as `wanted` or about `subject`; InputError for an invalid cursor."""
    matches = _matches(wanted or AuditFilter(subject=subject))
    query = select(audit).where(*matches).order_by(audit.c.id.desc()).limit(limit + 1)
    if cursor:
        query = query.where(audit.c.id < cursors.decode(cursor, int)[0])
    with ctx.store.read() as db:
        rows = db.execute(query).mappings().all()
        total = db.execute(select(func.count()).select_from(audit).where(*matches)).scalar_one()
    entries = [AuditEntry(**row) for row in rows[:limit]]
    more = cursors.encode(entries[-1].id) if len(rows) > limit else ""
    return entries, Page(next=more, total=total)


def _matches(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    found = [
        column == value
        for column, value in ((audit.c.actor, wanted.actor), (audit.c.subject, wanted.subject))
        if value
    ]
    if wanted.verb.endswith("*"):  # a range, so that the index is used
        begin = wanted.verb[:-1]
        found += [audit.c.verb >= begin, audit.c.verb < begin + "\U0010ffff"]
    elif wanted.verb:
        found.append(audit.c.verb == wanted.verb)
    if wanted.since:
        found.append(audit.c.at >= wanted.since)
    if wanted.until:
        found.append(audit.c.at < wanted.until)
    return found


def verify(ctx: Context) -> int:
    """Verify the chain and return its length; StorageError names the first changed entry."""
    before, count = "", 0
    with ctx.store.read() as db:
        for row in db.execute(select(audit).order_by(audit.c.id)).mappings():
            entry = {k: row[k] for k in _FIELDS}
            if row["hash"] != _hash(before, entry):
                raise StorageError(f"audit entry {row['id']} was changed, or one before it removed")
            before, count = row["hash"], count + 1
    return count


_FIELDS = ("at", "actor", "verb", "subject", "detail", "address")


def _hash(before: str, entry: dict[str, Any]) -> str:
    """An entry without address is hashed as those of before there were addresses."""
    entry = {k: v for k, v in entry.items() if k != "address" or v}
    return hashlib.sha256(before.encode() + msgspec.json.encode(entry, order="sorted")).hexdigest()
