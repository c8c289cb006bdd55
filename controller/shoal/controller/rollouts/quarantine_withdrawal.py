"""Releases in quarantine are called back: no order names one, and a person is told what is left.

And let go again, when the quarantine was a mistake: then nothing happens by itself.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, select

from shoal import manifest
from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import revert, rollouts
from shoal.controller.store import changes
from shoal.controller.store.tables import alert, assignment, rollout
from shoal.trust import Order

#: Begins the key of the alert of a task's quarantine.
QUARANTINE = "quarantine/"
_LIFTED = "the quarantine was lifted by {}: it goes on when somebody resumes it"


class Recalled(NamedTuple):
    """What a quarantine met.

    releases    in quarantine now, oldest first
    rollouts    of them, whatever became of them -> state
    withdrawn   devices whose order named one: it does not any more
    serving     release -> devices that serve it, as they last said
    next_step   how to put these devices back, a sentence; "" when none of them went out
    """

    releases: list[str]
    rollouts: dict[str, str]
    withdrawn: list[str]
    serving: dict[str, list[str]]
    next_step: str


def call_back(db: Connection, ctx: Context, *, task: str, model: str) -> Recalled:
    """Pause their rollouts, take their orders back, and raise an alert where one went out."""
    bad = quarantine.in_quarantine(db)
    for ref, reason in bad.items():
        rollouts.hold(db, ctx, release=ref, reason=reason)
        changes.note(db, ctx, "release", ref)
    withdrawn = _withdraw(db, ctx, bad)
    refs = list(quarantine.in_quarantine(db, model))
    query = select(rollout.c.id, rollout.c.state).where(rollout.c.release.in_(refs))
    went_out = {row.id: row.state for row in db.execute(query.order_by(rollout.c.created_at))}
    serving = quarantine.serving(db, refs)
    step = ""
    if went_out or serving:
        step = _back_step(task, model, quarantine.way_back(db, refs[0]))
        alerts.raise_alert(db, ctx, _draft(task, model, serving, step))
    return Recalled(refs, went_out, withdrawn, serving, step)


def quarantine_key(task: str) -> str:
    """Key of the alert of a task's quarantined releases that were rolled out."""
    return f"{QUARANTINE}{task}"


def _draft(task: str, model: str, serving: Mapping[str, Sequence[str]], next_step: str) -> Draft:
    """Alert of releases in quarantine that went out. serving: release -> devices that have it."""
    told = [f"{ref} is on {listed(devices)}" for ref, devices in serving.items()]
    return Draft(
        key=quarantine_key(task),
        kind="task",
        severity="critical" if serving else "warning",
        title=f"{model}: a release that was rolled out is in quarantine",
        detail=f"A round of {task} is poisoned. {'; '.join(told) or 'No device serves it'}.",
        next_step=next_step,
        model=model,
        release=list(serving)[-1] if serving else "",
    )


def _back_step(task: str, model: str, way_back: str) -> str:
    """How devices get off a release in quarantine."""
    if way_back:
        return f"Put them back: shoal rollout start {way_back}"
    return (
        f"No clean release of {model} is signed for the whole fleet. Make one: shoal round release "
        f"{task}, then publish it and roll it out"
    )


class LetGo(NamedTuple):
    """What is out of quarantine: see federated.records.Lifted."""

    releases: list[str]
    rollouts: dict[str, str]
    next_step: str


def let_go(
    db: Connection, ctx: Context, *, actor: str, task: str, model: str, releases: Collection[str]
) -> LetGo:
    """Say of rollouts that wait that they may go on, and close the alert or say what it is about
    now. No rollout goes on and no order is given.

    releases   that are not in quarantine any more
    """
    free = sorted(releases, key=manifest.parse_release)
    for ref in free:
        changes.note(db, ctx, "release", ref)
    waiting = rollouts.let_go(db, ctx, releases=free, reason=_LIFTED.format(actor))
    _tell_again(db, ctx, actor, task, model)
    return LetGo(free, waiting, _next_step(free, waiting))


def _tell_again(db: Connection, ctx: Context, actor: str, task: str, model: str) -> None:
    """The alert of a task's quarantine, where it stands: of what is in quarantine still."""
    bad = quarantine.in_quarantine(db, model)
    refs = [ref for ref, reason in bad.items() if quarantine.blames(reason, task)]
    if serving := quarantine.serving(db, refs):
        step = _back_step(task, model, quarantine.way_back(db, refs[0]))
        alerts.say_again(db, ctx, _draft(task, model, serving, step))
    else:
        alerts.close(db, ctx, quarantine_key(task), f"{actor} lifted the quarantine")


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


def _withdraw(db: Connection, ctx: Context, bad: Mapping[str, str]) -> list[str]:
    """Take every order back that names one of `bad`; of which devices, by name."""
    query = select(assignment.c.device, assignment.c.orders).order_by(assignment.c.device)
    taken = []
    for row in db.execute(query).all():
        for order in _orders(row.orders):
            if order.release in bad:
                revert.take_back(db, ctx, device=row.device, order=order, why=bad[order.release])
                taken.append(row.device)
    return taken


def _orders(told: Any) -> list[Order]:
    return list(msgspec.convert(told, dict[str, Order]).values())
