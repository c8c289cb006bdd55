"""Withdrawal of orders: cancel before the swap, order the previous release after it.

A device that had no release before is ordered to remove the model, where its agent knows that.
"""

from typing import Any

from sqlalchemy import Connection, Row, select, update

from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import assignments, device_states
from shoal.controller.store import changes
from shoal.controller.store.tables import rollout_device
from shoal.errors import AbsentError, ConflictError
from shoal.orders import Order


def withdraw_orders(db: Connection, ctx: Context, whole: Row[Any], *, revert: bool) -> None:
    """Change the orders of every device of a rollout that is ending.

    whole    row of the rollout
    revert   devices that swap or have swapped are ordered their previous release, or to remove the
             model where they had none
    """
    mine = select(rollout_device).where(rollout_device.c.rollout == whole.id)
    for row in db.execute(mine).all():
        if row.state == device_states.WAITING:
            _update(
                db, ctx, row, state=device_states.CANCELED, cause="aborted", detail="never ordered"
            )
        elif row.state in device_states.CANCELABLE:
            _cancel(db, ctx, whole.model, row, remove=revert)
        elif row.state in device_states.FAILURES:  # it went back by itself: its order follows
            _restore(db, ctx, whole.model, row, remove=revert)
        elif revert and row.state not in device_states.EXCLUDED:
            _revert(db, ctx, whole.model, row)


def withdraw_order(db: Connection, ctx: Context, *, device: str, order: Order, why: str) -> None:
    """Withdraw one device's order of a release that must not be installed any more.

    Before the swap the device is ordered its previous release, or nothing; after it, nothing: the
    device keeps the release until a person decides.
    """
    mine = (rollout_device.c.rollout == order.rollout) & (rollout_device.c.device == device)
    row = db.execute(select(rollout_device).where(mine)).first()
    if row is not None and (
        row.state in device_states.CANCELABLE or row.state in device_states.FAILURES
    ):
        _restore(db, ctx, order.model, row, remove=False)
    else:
        assignments.withdraw(db, ctx, device=device, model=order.model)
    if row is not None and row.state == device_states.ASSIGNED:
        _update(db, ctx, row, state=device_states.CANCELED, cause="quarantined", detail=why)
        changes.note(db, ctx, "rollout", order.rollout)


def _cancel(db: Connection, ctx: Context, model: str, row: Row[Any], *, remove: bool) -> None:
    """A device that never reported is canceled here; a working one will report CANCELED."""
    _restore(db, ctx, model, row, remove=remove)
    if row.state == device_states.ASSIGNED:
        _update(
            db, ctx, row, state=device_states.CANCELED, cause="aborted", detail="order withdrawn"
        )


def _revert(db: Connection, ctx: Context, model: str, row: Row[Any]) -> None:
    if ordered := _restore(db, ctx, model, row, remove=True):
        _update(
            db, ctx, row, state=device_states.ASSIGNED, attempt=row.attempt + 1, cause="rollback",
            detail=ordered,
            facts=row.facts | {"assigned_at": ctx.clock()},
        )  # fmt: skip
    else:
        detail = f"{_why_not(db, row)}: keeps the release, without an order"
        _update(db, ctx, row, state=device_states.CANCELED, cause="rollback", detail=detail)


def _why_not(db: Connection, row: Row[Any]) -> str:
    """Why there is no release to go back to."""
    if row.previous and (why := quarantine.why_release(db, row.previous)):
        return f"{row.previous}, which it had before, is in quarantine ({why})"
    if row.previous:
        return f"{row.previous}, which it had before, cannot be ordered any more"
    if _had_it(row):
        return "had this release before the rollout"
    return "had no release before, and its agent does not know the order to remove one (update it)"


def _restore(db: Connection, ctx: Context, model: str, row: Row[Any], *, remove: bool) -> str:
    """Order the previous release, or nothing if there is none or it is in quarantine.

    remove   a device that had none is ordered to remove the model, where its agent knows how

    What was ordered, as a phrase; "" for nothing.
    """
    attempt = {"device": row.device, "rollout": row.rollout, "attempt": row.attempt + 1}
    if not row.previous:
        new = remove and not _had_it(row)
        if new and assignments.know_removal(db, [row.device]):
            assignments.order_removal(db, ctx, model=model, **attempt)
            return "ordered to remove it: had no release before"
        assignments.withdraw(db, ctx, device=row.device, model=model)
        return ""
    try:
        release = assignments.signed_release(db, row.previous)
    except (AbsentError, ConflictError):
        assignments.withdraw(db, ctx, device=row.device, model=model)
        return ""
    assignments.assign(db, ctx, release=release, **attempt)
    return f"ordered to go back to {row.previous}"


def _had_it(row: Row[Any]) -> bool:
    """Whether the device served the rollout's release before the rollout."""
    return row.state == device_states.ALREADY_INSTALLED or bool(row.facts.get("had_it"))


def _update(db: Connection, ctx: Context, row: Row[Any], **values: Any) -> None:
    mine = (rollout_device.c.rollout == row.rollout) & (rollout_device.c.device == row.device)
    db.execute(update(rollout_device).where(mine).values(**values, updated_at=ctx.clock()))
