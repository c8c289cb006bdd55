"""Audit screen: filters, pages, export, and the verification of the chain."""

from datetime import UTC, datetime

from flask import request, url_for

from shoal.controller.access import audit
from shoal.controller.access.audit import AuditFilter
from shoal.controller.web.screen import actor, blueprint, context, may, show
from shoal.errors import InputError, StorageError

DAY_S = 86_400.0
_TEXTS = ("actor", "verb", "subject")


@blueprint.get("/audit")
def audit_list() -> str:
    """The audit log, newest first, as filtered."""
    wanted = _filter()
    entries, page = audit.list_audit(context(), wanted, cursor=request.args.get("cursor", ""))
    return show(
        "audit.html", entries=entries, page=page, args=request.args, export=_export(wanted),
        verified="",
    )  # fmt: skip


@blueprint.post("/audit/verify")
def audit_verify() -> str:
    """Verify the chain of every entry, and say what was found."""
    actor("admin")
    try:
        verified = f"{audit.verify(context())} entries: the chain is whole."
    except StorageError as error:
        verified = f"Broken: {error}."
    entries, page = audit.list_audit(context())
    return show(
        "audit.html", entries=entries, page=page, args={}, export=_export(AuditFilter()),
        verified=verified,
    )  # fmt: skip


def _filter() -> AuditFilter:
    """The filter in the URL: texts, and days in UTC, both included."""
    texts = {name: request.args.get(name, "").strip() for name in _TEXTS}
    since, until = _day("since"), _day("until")
    reader = "" if may("admin") else actor().name
    return AuditFilter(
        texts["actor"], texts["verb"], texts["subject"], since, until and until + DAY_S, reader
    )


def _day(name: str) -> float:
    value = request.args.get(name, "")
    try:
        return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp() if value else 0.0
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} {value[:40]!r} is no day", "write it as 2026-12-01") from error


def _export(wanted: AuditFilter) -> str:
    """Query of the export that has the same entries."""
    values = {k: v for k, v in wanted._asdict().items() if v and k != "reader"}
    return url_for("api.export_audit_csv", **values)
