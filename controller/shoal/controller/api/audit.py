"""Routes for the audit log: list, export, and the signed head of its chain."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from shoal.controller.access import audit, roles
from shoal.controller.access.audit import AuditFilter
from shoal.controller.access.records import AuditEntry
from shoal.controller.access.roles import Actor
from shoal.controller.api.routing import Call, Limit, Listing, RequestModel, route
from shoal.controller.host.context import Context

TAG = "audit"
LINES, CSV = "application/x-ndjson", "text/csv; charset=utf-8"
_COLUMNS = ("id", "time", "actor", "address", "verb", "subject", "detail", "hash")
#: A cell that begins so would be a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
Time = Annotated[float, msgspec.Meta(ge=0)]


class AuditWanted(RequestModel, frozen=True, kw_only=True):
    """Which entries; "" and 0 for all.

    verb          such as rollout.start, or rollout.* for all that begin so
    subject       such as a device's name
    since, until  Unix seconds
    """

    actor: str = ""
    verb: str = ""
    subject: str = ""
    since: Time = 0.0
    until: Time = 0.0


class AuditQuery(AuditWanted, frozen=True, kw_only=True):
    """Which entries; "" and 0 for all.

    verb          such as rollout.start, or rollout.* for all that begin so
    subject       such as a device's name
    since, until  Unix seconds
    """

    cursor: str = ""
    limit: Limit = 100


class SignedHead(msgspec.Struct, frozen=True, kw_only=True):
    """The newest entry, as signed.

    timestamp   TUF timestamp metadata: its `signed.shoal.audit` is {"id", "hash"}
    root        TUF root metadata, which names the key that signs timestamps
    """

    timestamp: dict[str, Any]
    root: dict[str, Any]


@route("GET", "/api/v1/audit", role="viewer", tag=TAG)
def list_audit(call: Call, query: AuditQuery) -> Listing[AuditEntry]:
    """Audit log, newest first; each entry's hash covers the previous one.

    Entries of users and tokens are for admins, and for those who made them.
    """
    wanted = filter_for(call.actor, query)
    return Listing(*audit.list_audit(call.ctx, wanted, cursor=query.cursor, limit=query.limit))


@route("GET", "/api/v1/audit/export", role="admin", tag=TAG, media=LINES)
def export_audit(call: Call, query: AuditWanted) -> Iterator[bytes]:
    """Every entry, oldest first, as JSON lines.

    Without a filter the last line is {"signed": ...}, the signed head of this moment, for
    `shoal audit verify`.
    """
    return _lines(call.ctx, filter_for(call.actor, query))


@route("GET", "/api/v1/audit/export.csv", role="admin", tag=TAG, media=CSV)
def export_audit_csv(call: Call, query: AuditWanted) -> Iterator[bytes]:
    """Every entry, oldest first, as CSV for a spreadsheet."""
    call.headers["Content-Disposition"] = "attachment; filename=audit.csv"
    return _csv(call.ctx, filter_for(call.actor, query))


@route("GET", "/api/v1/audit/head", role="viewer", tag=TAG)
def audit_head(call: Call) -> SignedHead:
    """The head of the chain as the current TUF timestamp signs it: keep it elsewhere.

    An export that lacks this entry, or has another in its place, was cut or written anew.
    """
    return _signed(call.ctx, call.ctx.signer.timestamp)


def filter_for(actor: Actor | None, query: AuditWanted) -> AuditFilter:
    """The filter of a query, and what its reader may see."""
    who = roles.require(actor, "viewer")
    return AuditFilter(
        query.actor, query.verb, query.subject, query.since, query.until,
        reader="" if who.role == "admin" else who.name,
    )  # fmt: skip


def _lines(ctx: Context, wanted: AuditFilter) -> Iterator[bytes]:
    last = 0
    for entry in audit.export(ctx, wanted):
        yield msgspec.json.encode(entry) + b"\n"
        last = entry.id
    if wanted != AuditFilter():
        return
    signed = _signed(ctx, ctx.signer.renew_timestamp(ctx.clock()))
    newest = signed.timestamp["signed"]["shoal"]["audit"]["id"]
    for entry in audit.export(ctx, after=last):  # made since the last one was read
        if entry.id > newest:
            break
        yield msgspec.json.encode(entry) + b"\n"
    yield msgspec.json.encode({"signed": signed}) + b"\n"


def _signed(ctx: Context, timestamp: bytes) -> SignedHead:
    return SignedHead(timestamp=json.loads(timestamp), root=json.loads(ctx.signer.root))


def _csv(ctx: Context, wanted: AuditFilter) -> Iterator[bytes]:
    text = io.StringIO()
    write = csv.writer(text).writerow
    write(_COLUMNS)
    for e in audit.export(ctx, wanted):
        detail = msgspec.json.encode(e.detail).decode()
        at = datetime.fromtimestamp(e.at, UTC).isoformat(timespec="seconds")
        cells = (at, e.actor, e.address, e.verb, e.subject, detail, e.hash)
        write([e.id, *(f"'{c}" if c.startswith(_FORMULA) else c for c in cells)])
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()  # the heading of an empty log
