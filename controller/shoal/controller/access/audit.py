"""Audit log as a hash chain: each hash covers the previous entry, so a removal is detected."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, func, or_, select

from shoal import audit_chain
from shoal.audit_chain import Head
from shoal.controller.access.records import AuditEntry
from shoal.controller.host.context import Context, Store
from shoal.controller.store import cursors
from shoal.controller.store.records import Page
from shoal.controller.store.tables import audit
from shoal.errors import StorageError, TrustError

_CHUNK = 1000


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
    db.execute(audit.insert().values(**entry, hash=audit_chain.entry_hash(before, entry)))


class AuditFilter(NamedTuple):
    """Which entries. "" and 0 for all.

    verb          such as "rollout.start", or "rollout.*" for all that begin so
    since, until  Unix seconds
    reader        who reads, if no admin: of users and tokens they see what they did themselves,
                  since it tells where people work from
    """

    actor: str = ""
    verb: str = ""
    subject: str = ""
    since: float = 0.0
    until: float = 0.0
    reader: str = ""


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
    if wanted.reader:
        people = or_(*(audit.c.verb.startswith(kind) for kind in ("user.", "token.")))
        found.append(~people | (audit.c.actor == wanted.reader))
    if wanted.since:
        found.append(audit.c.at >= wanted.since)
    if wanted.until:
        found.append(audit.c.at < wanted.until)
    return found


def export(
    ctx: Context, wanted: AuditFilter | None = None, *, after: int = 0
) -> Iterator[AuditEntry]:
    """Every entry as `wanted` with a greater id than `after`, oldest first.

    Read in chunks, each a transaction of its own: no reader holds the database while a client is
    slow.
    """
    matches = _matches(wanted or AuditFilter())
    while True:
        query = select(audit).where(audit.c.id > after, *matches).order_by(audit.c.id)
        with ctx.store.read() as db:
            rows = db.execute(query.limit(_CHUNK)).mappings().all()
        yield from (AuditEntry(**row) for row in rows)
        if len(rows) < _CHUNK:
            return
        after = rows[-1]["id"]


def head(store: Store) -> Head:
    """The newest entry."""
    with store.read() as db:
        row = db.execute(
            select(audit.c.id, audit.c.hash).order_by(audit.c.id.desc()).limit(1)
        ).first()
    return Head(row.id, row.hash) if row else Head()


def verify(ctx: Context) -> int:
    """Verify the chain and return its length; StorageError names the first changed entry."""
    try:
        return len(audit_chain.follow(msgspec.structs.asdict(e) for e in export(ctx)))
    except TrustError as error:
        raise StorageError(error.message, "compare it with an earlier export or backup") from error
