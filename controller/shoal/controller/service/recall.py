"""Releases in quarantine are called back: no order names one, and a person is told what is left."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, select

from shoal.controller import alerts as drafts
from shoal.controller.io.tables import assignment, rollout
from shoal.controller.service import alerts, changes, quarantine, rollouts, undo
from shoal.controller.service.context import Context
from shoal.trust import Order


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
        rollouts.hold(db, ctx, release=ref, reason=f"quarantine: {reason}")
        changes.note(db, ctx, "release", ref)
    withdrawn = _withdraw(db, ctx, bad)
    refs = list(quarantine.in_quarantine(db, model))
    query = select(rollout.c.id, rollout.c.state).where(rollout.c.release.in_(refs))
    went_out = {row.id: row.state for row in db.execute(query.order_by(rollout.c.created_at))}
    serving = quarantine.serving(db, refs)
    step = ""
    if went_out or serving:
        step = drafts.back_step(task, model, quarantine.way_back(db, refs[0]))
        alerts.raise_alert(db, ctx, drafts.quarantine(task, model, serving, step))
    return Recalled(refs, went_out, withdrawn, serving, step)


def _withdraw(db: Connection, ctx: Context, bad: Mapping[str, str]) -> list[str]:
    """Take every order back that names one of `bad`; of which devices, by name."""
    query = select(assignment.c.device, assignment.c.orders).order_by(assignment.c.device)
    taken = []
    for row in db.execute(query).all():
        for order in _orders(row.orders):
            if order.release in bad:
                undo.take_back(db, ctx, device=row.device, order=order, why=bad[order.release])
                taken.append(row.device)
    return taken


def _orders(told: Any) -> list[Order]:
    return list(msgspec.convert(told, dict[str, Order]).values())
