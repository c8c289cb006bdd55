"""Withdrawal of quarantined releases: rollouts pause, orders are withdrawn, an alert is raised.

Lifting a quarantine changes reasons and alerts only: no rollout resumes by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select, update

from shoal import manifest
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import group_releases, revert, stepper
from shoal.controller.rollouts.machine import Event, State
from shoal.controller.store import changes
from shoal.controller.store.rollout_tables import assignment, rollout
from shoal.controller.store.tables import alert
from shoal.orders import Order

#: Begins the key of the alert of a task's quarantine.
QUARANTINE = "quarantine/"
#: Begins the reason of a rollout that a quarantine paused.
_PAUSED = "quarantine: "
_LIFTED = "the quarantine was lifted by {}: resume it to go on"


class Withdrawal(NamedTuple):
    """Effects of a quarantine.

    releases    in quarantine now, oldest first
    rollouts    of these releases, ended ones too -> state
    withdrawn   devices from which an order was withdrawn
    serving     release -> devices that serve it by their last report
    next_step   how to put these devices back, a sentence; "" if no release was rolled out
    """

    releases: list[str]
    rollouts: dict[str, str]
    withdrawn: list[str]
    serving: dict[str, list[str]]
    next_step: str


def withdraw(db: Connection, ctx: Context, *, task: str, model: str) -> Withdrawal:
    """Pause rollouts of quarantined releases, withdraw their orders, and raise an alert if one
    was rolled out."""
    bad = quarantine.in_quarantine(db)
    for ref, reason in bad.items():
        _pause_rollouts(db, ctx, ref, reason)
        changes.note(db, ctx, "release", ref)
    withdrawn = _withdraw_orders(db, ctx, bad)
    fallen = group_releases.fall_back(db, ctx, bad)
    refs = list(quarantine.in_quarantine(db, model))
    query = select(rollout.c.id, rollout.c.state).where(rollout.c.release.in_(refs))
    went_out = {row.id: row.state for row in db.execute(query.order_by(rollout.c.created_at))}
    serving = quarantine.serving(db, refs)
    step = ""
    if went_out or serving:
        step = back_step(task, model, quarantine.way_back(db, refs[0]))
        alerts.raise_alert(db, ctx, alert_draft(task, model, serving, step, fallen))
    return Withdrawal(refs, went_out, withdrawn, serving, step)


def quarantine_key(task: str) -> str:
    """Key of the alert of a task's quarantined releases that were rolled out."""
    return f"{QUARANTINE}{task}"


def alert_draft(
    task: str,
    model: str,
    serving: Mapping[str, Sequence[str]],
    next_step: str,
    fallen: Sequence[str] = (),
) -> Draft:
    """Alert of quarantined releases that were rolled out. serving: release -> its devices; fallen:
    what groups fall back to, as sentences."""
    lines = [f"{ref} is on {listed(devices)}" for ref, devices in serving.items()]
    return Draft(
        key=quarantine_key(task),
        kind="task",
        severity="critical" if serving else "warning",
        title=f"{model}: a release that was rolled out is in quarantine",
        detail=" ".join(
            [f"A round of {task} is poisoned. {'; '.join(lines) or 'No device serves it'}."]
            + [f"{one[0].upper()}{one[1:]}." for one in fallen]
        ),
        next_step=next_step,
        model=model,
        release=list(serving)[-1] if serving else "",
    )


def back_step(task: str, model: str, way_back: str) -> str:
    """How to put devices back onto a clean release."""
    if way_back:
        return f"Put them back: shoal rollout start {way_back}"
    return (
        f"No clean release of {model} is signed for the whole fleet. Make one: shoal round release "
        f"{task}, then publish it and roll it out"
    )


class LiftedQuarantine(NamedTuple):
    """Releases out of quarantine, their rollouts and the next step: federated.records.Lifted."""

    releases: list[str]
    rollouts: dict[str, str]
    next_step: str


def lift(
    db: Connection, ctx: Context, *, actor: str, task: str, model: str, releases: Collection[str]
) -> LiftedQuarantine:
    """Change the reason of rollouts that the quarantine paused, and update or close its alert.

    releases   not in quarantine any more
    """
    free = sorted(releases, key=manifest.parse_release)
    for ref in free:
        changes.note(db, ctx, "release", ref)
    waiting = _change_reasons(db, ctx, free, _LIFTED.format(actor))
    _update_alert(db, ctx, actor, task, model)
    return LiftedQuarantine(free, waiting, _next_step(free, waiting))


def _update_alert(db: Connection, ctx: Context, actor: str, task: str, model: str) -> None:
    """Update the open alert of a task to what is still in quarantine, or close it."""
    bad = quarantine.in_quarantine(db, model)
    refs = [ref for ref, reason in bad.items() if quarantine.names_task(reason, task)]
    if serving := quarantine.serving(db, refs):
        step = back_step(task, model, quarantine.way_back(db, refs[0]))
        alerts.update_open(db, ctx, alert_draft(task, model, serving, step))
    else:
        alerts.close(db, ctx, quarantine_key(task), f"{actor} lifted the quarantine")


def _pause_rollouts(db: Connection, ctx: Context, release: str, reason: str) -> None:
    running = select(rollout.c.id).where(
        rollout.c.release == release, rollout.c.state == State.RUNNING.value
    )
    for ident in db.scalars(running).all():
        stepper.move(db, ctx, ident, Event.HELD, f"{_PAUSED}{reason}")


def _change_reasons(
    db: Connection, ctx: Context, releases: Collection[str], reason: str
) -> dict[str, str]:
    """Set the reason of rollouts that a quarantine paused; they stay paused. Rollout -> state."""
    waiting = select(rollout).where(
        rollout.c.release.in_(releases),
        rollout.c.state == State.PAUSED.value,
        rollout.c.reason.startswith(_PAUSED),
    )
    held = db.execute(waiting.order_by(rollout.c.created_at)).all()
    for row in held:
        db.execute(update(rollout).where(rollout.c.id == row.id).values(reason=reason))
        changes.note(db, ctx, "rollout", row.id)
    return {row.id: row.state for row in held}


def _next_step(free: Sequence[str], waiting: Mapping[str, str]) -> str:
    if not free:
        return ""
    goes_on = [f"shoal rollout resume {ident}" for ident in waiting]
    steps = " or ".join([*goes_on, f"shoal rollout start {free[-1]}"])
    return f"Nothing is rolled out by itself: {steps}"


def close_alerts(ctx: Context) -> None:
    """Close alerts of quarantined releases that no device serves any more."""
    alerts.close_resolved(ctx, alert.c.key.startswith(QUARANTINE), _resolved)


def _resolved(db: Connection, _: Context, row: Row[Any]) -> str:
    left = quarantine.serving(db, quarantine.in_quarantine(db, row.model))
    return "" if left else "no device serves a release in quarantine"


def _withdraw_orders(db: Connection, ctx: Context, bad: Mapping[str, str]) -> list[str]:
    """Withdraw every order of a release in `bad`; the devices, by name."""
    query = select(assignment.c.device, assignment.c.orders).order_by(assignment.c.device)
    taken = []
    for row in db.execute(query).all():
        for order in _orders(row.orders):
            if order.release in bad:
                revert.withdraw_order(
                    db, ctx, device=row.device, order=order, why=bad[order.release]
                )
                taken.append(row.device)
    return taken


def _orders(stored: Any) -> list[Order]:
    return list(msgspec.convert(stored, dict[str, Order]).values())
