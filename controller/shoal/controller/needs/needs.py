"""What needs a person now, the worst first: decisions that wait, and failures, folded by cause.

Computed from the tables that hold the facts, by a few indexed queries; nothing is stored.
"""

import datetime
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from sqlalchemy import Connection, and_, func, select

from shoal.controller.alerts.records import SEVERITIES
from shoal.controller.fleet import devices
from shoal.controller.fleet.certificates import EXPIRING_S
from shoal.controller.host.context import Context
from shoal.controller.needs.records import Action, Need
from shoal.controller.rollouts import trailing
from shoal.controller.rollouts.machine import State
from shoal.controller.store import cursors
from shoal.controller.store.records import Page
from shoal.controller.store.rollout_tables import rollout
from shoal.controller.store.tables import alert, device, model, release
from shoal.errors import InputError

#: Seconds without a message from which a device counts as offline for long.
LONG_OFFLINE_S = 86_400.0
#: Releases to review that are named, the newest ones; failing devices that are folded by cause.
MOST_RELEASES, MOST_FAILING = 200, 2_000
#: Sites at which critical alerts of one kind are items of their own; at more they are one item.
MOST_SITES = 5
#: Causes of failing devices that are items of their own; devices of the others are one item.
MOST_CAUSES = 10
#: Seconds before its end at which signed metadata that the controller renews itself is overdue.
OVERDUE_S = {"root": 90 * 86_400.0, "director root": 90 * 86_400.0, "timestamp": 3_600.0}
KINDS = (
    "rollout_paused", "rollout_approval", "trailing_paused", "candidate", "candidate_refused",
    "alerts", "devices_failing", "devices_offline", "certificates_end", "metadata_ends",
)  # fmt: skip
_CAUSE = re.compile(r"[^\s:]+@\d+: ([a-z0-9-]+): ")
_BY = Callable[[Connection, Context], Iterator[Need]]


def list_needs(
    ctx: Context, *, kind: str = "", cursor: str = "", limit: int = 50
) -> tuple[list[Need], Page]:
    """A page of what needs a person: by severity, then by age. kind: one of KINDS, "" for all.

    The total counts all of it. Raises InputError for an unknown kind, an invalid limit or cursor.
    """
    limit = cursors.bounded(limit)
    if kind and kind not in KINDS:
        raise InputError(f"kind {kind!r:.40}", f"use one of: {', '.join(KINDS)}")
    begin = cursors.decode(cursor, int)[0] if cursor else 0
    with ctx.store.read() as db:
        found = [need for look in _LOOKS for need in look(db, ctx)]
    wanted = sorted((one for one in found if not kind or one.kind == kind), key=_rank)
    end = max(begin, 0) + limit
    more = cursors.encode(end) if end < len(wanted) else ""
    return wanted[max(begin, 0) : end], Page(next=more, total=len(wanted))


def _rank(need: Need) -> tuple[int, float, str, str]:
    return SEVERITIES.index(need.severity), need.since, need.kind, need.subject


# --- decisions that wait ------------------------------------------------------------------------


def _rollouts(db: Connection, ctx: Context) -> Iterator[Need]:
    waiting = (State.PAUSED.value, State.WAITING_FOR_APPROVAL.value)
    columns = (rollout.c.id, rollout.c.release, rollout.c.state, rollout.c.reason)
    query = select(*columns, rollout.c.created_at, rollout.c.created_by)
    for row in db.execute(query.where(rollout.c.state.in_(waiting))):
        page = f"/rollouts/{row.id}"
        facts = [row.reason or "no reason was recorded", f"started by {row.created_by}"]
        if row.state == State.PAUSED:
            yield Need(
                kind="rollout_paused", severity="warning", subject=row.id, count=1, facts=facts,
                sentence=f"The rollout of {row.release} is paused", since=row.created_at,
                action=Action(
                    label=f"Decide on {row.id}", href=page, role="operator",
                    command=f"shoal rollout show {row.id}",
                ),
            )  # fmt: skip
        else:
            yield Need(
                kind="rollout_approval", severity="warning", subject=row.id, count=1, facts=facts,
                sentence=f"The rollout of {row.release} waits for approval", since=row.created_at,
                action=Action(
                    label=f"Review {row.id}", href=page, role="approver",
                    command=f"shoal rollout show {row.id}",
                ),
            )  # fmt: skip


def _trailing(db: Connection, ctx: Context) -> Iterator[Need]:
    for ident, reason in trailing.reasons(db).items():
        yield Need(
            kind="trailing_paused", severity="warning", subject=ident, count=1, facts=[reason],
            sentence=f"Devices that come late to rollout {ident} are not updated", since=0.0,
            action=Action(
                label=f"Decide on {ident}", href=f"/rollouts/{ident}", role="operator",
                command=f"shoal rollout show {ident}",
            ),
        )  # fmt: skip


def _candidates(db: Connection, ctx: Context) -> Iterator[Need]:
    """The newest release of each model, where it is newer than what is released."""
    mine = release.c
    newest = (
        select(mine.model, func.max(mine.version).label("version"))
        .where(mine.retired_at == 0)
        .group_by(mine.model)
        .subquery()
    )
    same = and_(mine.model == newest.c.model, mine.version == newest.c.version)
    query = (
        select(mine.model, mine.version, mine.state, mine.created_at, mine.created_by, mine.trigger)
        .join(newest, same)
        .join(model, model.c.name == mine.model)
        .where(model.c.retired_at == 0, mine.state.in_(("validated", "candidate", "refused")))
        .order_by(mine.created_at.desc())
        .limit(MOST_RELEASES)
    )
    said = {
        "validated": "has passed its gates and is not signed",
        "candidate": "runs on canaries and waits for review",
        "refused": "was refused by a gate",
    }
    for row in db.execute(query):
        ref = f"{row.model}@{row.version}"
        refused = row.state == "refused"
        yield Need(
            kind="candidate_refused" if refused else "candidate", severity="info", subject=ref,
            sentence=f"{ref} {said[row.state]}", count=1, since=row.created_at,
            facts=[f"made by {row.created_by}", *([row.trigger] if row.trigger else [])],
            action=Action(
                label=f"Review {ref}", href=f"/releases/{ref}",
                role="operator" if refused else "approver", command=f"shoal release show {ref}",
            ),
        )  # fmt: skip


# --- failures, folded ---------------------------------------------------------------------------


class _Group(NamedTuple):
    """Open critical alerts of one kind at one site, "" at many. first: the first one's id."""

    site: str
    kind: str
    number: int
    since: float
    members: int
    first: int
    title: str
    sites: int = 1


def _alerts(db: Connection, ctx: Context) -> Iterator[Need]:
    """Open critical alerts, those of one site and kind as one; of a kind at many sites as one."""
    mine = alert.c
    columns = (func.count(), func.min(mine.opened_at), func.sum(mine.members), func.min(mine.id))
    query = select(mine.site, mine.kind, *columns, func.min(mine.title))
    critical = query.where(mine.state == "open", mine.severity == "critical")
    by_kind: dict[str, list[_Group]] = {}
    for row in db.execute(critical.group_by(mine.site, mine.kind)):
        by_kind.setdefault(row.kind, []).append(_Group(*row))
    for kind, groups in by_kind.items():
        if len(groups) <= MOST_SITES:
            yield from map(_alert_need, groups)
            continue
        number, members = (sum(getattr(g, name) for g in groups) for name in ("number", "members"))
        since = min(group.since for group in groups)
        yield _alert_need(_Group("", kind, number, since, members, 0, "", len(groups)))


def _alert_need(group: _Group) -> Need:
    number, one = group.number, group.number == 1
    query = {"state": "open", "severity": "critical", "kind": group.kind}
    command = f"shoal alert list --state open --severity critical --kind {group.kind}"
    where = f" at {group.sites} sites" if group.sites > 1 else ""
    if group.site:
        query |= {"site": group.site}
        command += f" --site {shlex.quote(group.site)}"
        where = f" at {group.site}"
    return Need(
        kind="alerts", severity="critical",
        subject=str(group.first) if one else f"{group.kind} {group.site}".strip(),
        sentence=group.title if one else f"{number} critical alerts{where}: {group.kind}",
        count=number, facts=[f"{group.members} devices"] if group.members else [],
        since=group.since,
        action=Action(
            label=f"Look at alert {group.first}" if one else f"Look at {number} alerts",
            href=f"/alerts/{group.first}" if one else f"/alerts?{urlencode(query)}",
            command=f"shoal alert show {group.first}" if one else command, role="operator",
        ),
    )  # fmt: skip


def _failing(db: Connection, ctx: Context) -> Iterator[Need]:
    """Enrolled devices with an error, those of one cause as one."""
    wanted = (device.c.state == devices.ENROLLED, device.c.error != "")
    columns = (device.c.name, device.c.site, device.c.error, device.c.error_at)
    query = select(*columns).where(*wanted).order_by(device.c.name).limit(MOST_FAILING)
    by_cause: dict[str, list[Any]] = {}
    for row in db.execute(query):
        by_cause.setdefault(_cause_of(row.error), []).append(row)
    causes = sorted(by_cause.items(), key=lambda one: (-len(one[1]), one[0]))
    for cause, rows in causes[:MOST_CAUSES]:
        yield _failing_need(cause, rows)
    if rest := [row for _cause, rows in causes[MOST_CAUSES:] for row in rows]:
        yield _failing_need("other causes", rest)
    if sum(map(len, by_cause.values())) == MOST_FAILING:
        total = db.scalar(select(func.count()).select_from(device).where(*wanted)) or 0
        if total > MOST_FAILING:
            yield _failing_need("not looked at by cause", [], total - MOST_FAILING)


def _failing_need(cause: str, rows: Sequence[Any], more: int = 0) -> Need:
    number, sites = len(rows) + more, sorted({row.site for row in rows})
    one = rows[0] if number == 1 else None
    told = [row.error_at for row in rows if row.error_at]
    more_sites = f" and {len(sites) - 3} more sites" if sites[3:] else ""
    facts = [f"at {', '.join(sites[:3])}{more_sites}"] if sites else []
    return Need(
        kind="devices_failing", severity="warning", subject=one.name if one else cause,
        sentence=f"{one.name} is failing: {cause}" if one else f"{number} devices fail: {cause}",
        facts=[*facts, *([f"first: {rows[0].name}: {rows[0].error}"[:200]] if rows else [])],
        count=number, since=min(told, default=0.0),
        action=Action(
            label=f"Look at {one.name}" if one else f"Look at {number} devices",
            href=f"/devices/{one.name}" if one else "/fleet?problem=1", role="operator",
            command=f"shoal device show {one.name}" if one else "shoal device list --problem",
        ),
    )  # fmt: skip


def _cause_of(error: str) -> str:
    """Cause that a device's error names.

    >>> _cause_of("lot-codes@2: golden-mismatch: worst error 0.84")
    'golden mismatch'
    >>> _cause_of("camera 2 sends nothing: timeout")
    'camera 2 sends nothing'
    """
    found = _CAUSE.match(error)
    return found[1].replace("-", " ") if found else error.partition(":")[0][:60]


def _offline(db: Connection, ctx: Context) -> Iterator[Need]:
    silent = devices.is_silent(ctx, LONG_OFFLINE_S)
    sites = func.count(device.c.site.distinct())
    query = select(func.count(), sites, func.min(device.c.seen_at), func.min(device.c.name))
    number, at_sites, since, name = db.execute(query.where(silent)).one()
    if number:
        yield Need(
            kind="devices_offline", severity="warning", subject=name if number == 1 else "",
            sentence=f"{name} has been offline for more than a day" if number == 1
            else f"{number} devices have been offline for more than a day",
            facts=[f"at {at_sites} site{'s' if at_sites != 1 else ''}"], count=number, since=since,
            action=Action(
                label=f"Look at {name}" if number == 1 else f"Look at {number} devices",
                href=f"/devices/{name}" if number == 1 else "/fleet?silent=1", role="operator",
                command=f"shoal device show {name}" if number == 1
                else "shoal device list --silent 24h",
            ),
        )  # fmt: skip


def _certificates(db: Connection, ctx: Context) -> Iterator[Need]:
    expiring = devices.is_expiring(ctx, EXPIRING_S)
    ends = device.c.certificate_expires_at
    ended = func.count(func.nullif(ends >= ctx.clock(), True))
    query = select(func.count(), ended, func.min(ends), func.min(device.c.name)).where(expiring)
    number, over, first, _name = db.execute(query).one()
    if number:
        left = (first - ctx.clock()) / 86_400
        yield Need(
            kind="certificates_end", severity="critical" if over else "warning", subject="",
            sentence=f"Certificates of {number} device{'s' if number != 1 else ''} end soon",
            facts=[f"{over} have ended"] if over else [f"the first in {left:.0f} days"],
            count=number, since=first if over else 0.0,
            action=Action(
                label=f"Look at {number} device{'s' if number != 1 else ''}",
                href="/fleet?expiring=1", command="shoal device list --expiring", role="operator",
            ),
        )  # fmt: skip


class _Signed(msgspec.Struct):
    expires: datetime.datetime


class _Metadata(msgspec.Struct):
    signed: _Signed


def _keys(db: Connection, ctx: Context) -> Iterator[Need]:
    """Signed metadata that the controller should have renewed by now."""
    files = (ctx.signer.root, ctx.signer.director_root, ctx.signer.timestamp)
    for (name, before_s), data in zip(OVERDUE_S.items(), files, strict=True):
        ends = msgspec.json.decode(data, type=_Metadata).signed.expires.timestamp()
        if ends - ctx.clock() < before_s:
            yield Need(
                kind="metadata_ends", severity="critical", subject=name, count=1, since=0.0,
                sentence=f"The signed {name} metadata was not renewed: devices will refuse updates",
                facts=[f"it ends in {max(0.0, ends - ctx.clock()) / 3600:.0f} hours"],
                action=Action(
                    label="Look at the settings", href="/settings", command="shoal doctor",
                    role="admin",
                ),
            )  # fmt: skip


_LOOKS: tuple[_BY, ...] = (
    _rollouts, _trailing, _candidates, _alerts, _failing, _offline, _certificates, _keys,
)  # fmt: skip
