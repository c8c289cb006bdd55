"""Revoke a release: it must never be installed again, and devices that serve it leave it.

In this order, each step repeatable: the database says so, and nothing orders it any more; release
metadata of the model's next security epoch is signed without it; then the engine signs the orders
of the model's devices again, some at a time, without it and with the new epoch. Rollouts of it that
have not ended are rolled back, groups that run it fall back, pins to it end.
"""

import logging
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, func, insert, literal, select, update

from shoal import manifest
from shoal.controller.access import audit
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.fleet import changed_devices
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine, revocation
from shoal.controller.rollouts import assignments, group_releases, overrides, stepper
from shoal.controller.rollouts.machine import Event, State
from shoal.controller.store import changes
from shoal.controller.store.group_tables import changed_device
from shoal.controller.store.rollout_tables import assignment, rollout
from shoal.controller.store.tables import alert, device, release
from shoal.controller.store.tables import revocation as revocations
from shoal.errors import AbsentError, InputError, ShoalError

_log = logging.getLogger(__name__)
#: Begins the key of the alert of a revoked release that devices serve.
REVOCATION = "revocation/"
#: Cursor of a revocation whose devices were all gone through: after any device's name.
DONE = "~"
#: Devices whose orders are signed again in one transaction; names in an alert; a reason's length.
_BATCH, _NAMED, _LONGEST = 200, 5, 500
_UNENDED = [s.value for s in (State.CREATING, State.WAITING_FOR_APPROVAL, State.READY,
                              State.SCHEDULED, State.RUNNING, State.PAUSED)]  # fmt: skip


class Revocation(NamedTuple):
    """What a revocation did.

    epoch       of the model now
    rollouts    of the release that it ended -> state
    groups      what groups that ran it run now, as sentences
    serving     devices that serve it by their last report
    next_step   what a person is to do, a sentence; "" for nothing
    """

    release: str
    epoch: int
    rollouts: dict[str, str]
    groups: list[str]
    serving: int
    next_step: str


def revoke(ctx: Context, *, actor: str, ref: str, reason: str) -> Revocation:
    """Revoke "model@version" for good; a repeat completes what was interrupted.

    AbsentError; InputError without a reason; SettingError if the key of the model's releases is
    not here: nothing orders the release any more, but devices learn of it once that has signed.
    """
    if not reason.strip() or len(reason) > _LONGEST:
        raise InputError(
            f"revoking {ref} needs a reason of 1 to {_LONGEST} characters",
            f'shoal release revoke {ref} --reason "leaks what it was trained on"',
        )
    model, version = manifest.parse_release(ref)
    with ctx.store.write() as db:
        mine = (release.c.model == model) & (release.c.version == version)
        if db.scalar(select(release.c.state).where(mine)) is None:
            raise AbsentError("release", ref, "list them: shoal release list --all")
        ended, fallen = _record(db, ctx, actor, ref, reason) if _is_new(db, ref) else ({}, [])
    sign(ctx, ref)
    with ctx.store.read() as db:
        step = _next_step(db, ref)
        return Revocation(ref, revocation.epoch_of(db, model), ended, fallen, _count(db, ref), step)


def sign(ctx: Context, ref: str) -> int:
    """Sign the metadata of the epoch in which the release is revoked; that epoch."""
    model, version = manifest.parse_release(ref)
    epoch = ctx.signer.revoke_target(model, version)
    mine = (revocations.c.model == model) & (revocations.c.version == version)
    with ctx.store.write() as db:
        named = update(revocations).where(mine, revocations.c.epoch == 0)
        db.execute(named.values(epoch=epoch, cursor=""))
    return epoch


def step_all(ctx: Context) -> None:
    """Sign orders of the next devices again, without what was revoked and with the new epoch.

    Reads a table of a few rows when there is nothing to do.
    """
    with ctx.store.read() as db:
        due = db.execute(select(revocations).where(revocations.c.cursor != DONE)).all()
    for row in due:
        _step(ctx, row)


def sign_all(ctx: Context) -> None:
    """Sign the metadata of revocations for which the key was not here, or the power failed."""
    with ctx.store.read() as db:
        due = db.execute(select(revocations).where(revocations.c.epoch == 0)).all()
    for row in due:
        try:
            sign(ctx, f"{row.model}@{row.version}")
        except ShoalError as error:
            _log.warning("revocation of %s@%s: %s", row.model, row.version, error)


def close_alerts(ctx: Context) -> None:
    """Close alerts of revoked releases that no device serves any more."""
    alerts.close_resolved(ctx, alert.c.key.startswith(REVOCATION), _resolved)


def _is_new(db: Connection, ref: str) -> bool:
    return revocation.find(db, ref) is None


def _record(
    db: Connection, ctx: Context, actor: str, ref: str, reason: str
) -> tuple[dict[str, str], list[str]]:
    """Store the revocation and what follows in the database; rollouts and groups."""
    model, version = manifest.parse_release(ref)
    db.execute(
        insert(revocations).values(
            model=model, version=version, at=ctx.clock(), by=actor, reason=reason.strip()
        )
    )
    bad = {ref: revocation.why(db, ref)}
    ended = _end_rollouts(db, ctx, ref, bad[ref])
    fallen = group_releases.fall_back(db, ctx, bad, "was revoked")
    pins = overrides.end_pins(db, ctx, actor, ref)
    _look_at_serving(db, ref)
    audit.record(
        db, ctx, actor, "release.revoke", ref, reason=reason.strip(), rollouts=ended, pins=pins
    )
    changes.note(db, ctx, "release", ref)
    if _count(db, ref):
        alerts.raise_alert(db, ctx, alert_draft(db, ref, fallen))
    return ended, fallen


def _end_rollouts(db: Connection, ctx: Context, ref: str, why: str) -> dict[str, str]:
    """Roll back what has not ended: its devices go back to what they had, batch by batch."""
    mine = select(rollout.c.id).where(rollout.c.release == ref, rollout.c.state.in_(_UNENDED))
    ended = {}
    for ident in db.scalars(mine).all():
        ended[ident] = stepper.move(db, ctx, ident, Event.REVERTED, f"{ref} was {why}").value
        alerts.close(db, ctx, stepper.rollout_key(ident), f"{ref} was revoked")
    return ended


def _look_at_serving(db: Connection, ref: str) -> None:
    """Queue the devices that serve the release: they are to run what their groups run now."""
    rows = select(device.c.name, literal(changed_devices.DECIDED)).where(_serves(ref))
    db.execute(insert(changed_device).from_select(["device", "why"], rows))


def _serves(ref: str) -> ColumnElement[bool]:
    model = manifest.parse_release(ref)[0]
    return (device.c.state == "enrolled") & (device.c.releases[model].as_string() == ref)


def _count(db: Connection, ref: str) -> int:
    return db.scalar(select(func.count()).select_from(device).where(_serves(ref))) or 0


def alert_draft(db: Connection, ref: str, fallen: list[str]) -> Draft:
    model = manifest.parse_release(ref)[0]
    names = list(db.scalars(select(device.c.name).where(_serves(ref)).order_by(device.c.name)))
    return Draft(
        key=f"{REVOCATION}{ref}",
        kind="rollout",
        severity="critical",
        title=f"{ref} was revoked, and devices serve it",
        detail=" ".join(
            [f"It is on {listed(names)}."] + [f"{one[0].upper()}{one[1:]}." for one in fallen]
        ),
        next_step=_next_step(db, ref),
        model=model,
        release=ref,
    )


def _next_step(db: Connection, ref: str) -> str:
    """What a person is to do about devices that serve it; "" if none does, or all will leave it."""
    model = manifest.parse_release(ref)[0]
    if not _count(db, ref):
        return ""
    if any(one.release for one in group_releases.runs(db, model)):
        return (
            "Devices leave it for what their groups run. See which do not, and why: "
            "shoal group show fleet"
        )
    if back := quarantine.way_back(db, ref):
        return f"No group runs another release. Put devices back: shoal rollout start {back}"
    return (
        f"No other release of {model} is signed for the whole fleet: publish one and roll it out, "
        f"or take the model off: shoal model undeploy {model}"
    )


def _step(ctx: Context, row: Row[Any]) -> None:
    with ctx.store.read() as db:
        names, until = _next(db, row)
        prepared = assignments.prepare(db, ctx, [assignments.Change(name) for name in names])
    with ctx.store.write() as db:
        stored = assignments.store(db, prepared)
        mine = (revocations.c.model == row.model) & (revocations.c.version == row.version)
        same = (revocations.c.cursor == row.cursor) & (revocations.c.epoch == row.epoch)
        if len(stored) == len(prepared):  # else what has changed meanwhile is prepared again
            db.execute(update(revocations).where(mine, same).values(cursor=until))


def _next(db: Connection, row: Row[Any]) -> tuple[list[str], str]:
    """The next devices that have or are ordered the model, and the cursor after them."""
    query = (
        select(assignment.c.device, assignment.c.orders, device.c.releases)
        .join(device, device.c.name == assignment.c.device)
        .where(assignment.c.device > row.cursor, device.c.state == "enrolled")
    )
    read = db.execute(query.order_by(assignment.c.device).limit(_BATCH)).all()
    names = [r.device for r in read if row.model in r.orders or row.model in (r.releases or {})]
    return names, read[-1].device if len(read) == _BATCH else DONE


def _resolved(db: Connection, _: Context, row: Row[Any]) -> str:
    return "" if _count(db, row.release) else "no device serves it any more"
