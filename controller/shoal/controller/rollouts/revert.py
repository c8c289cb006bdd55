"""Taking orders back: who has not swapped is canceled, who has may be given what it had."""

from typing import Any

from sqlalchemy import Connection, Row, select, update

from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import assignments, device_states
from shoal.controller.store import changes
from shoal.controller.store.tables import rollout_device
from shoal.errors import AbsentError, ConflictError
from shoal.trust import Order

#: Told to update, and not yet at the swap.
_CANCELABLE = frozenset(
    {"ASSIGNED", "QUEUED", "DOWNLOADING", "DOWNLOADED", "INSTALLING", "PROBING"}
)


def carry_out(db: Connection, ctx: Context, whole: Row[Any], *, revert: bool) -> None:
    """Change the orders of every device of a rollout that is to end.

    revert   also those that swap or have swapped go back, and are then awaited
    """
    mine = select(rollout_device).where(rollout_device.c.rollout == whole.id)
    for row in db.execute(mine).all():
        if row.state == device_states.WAITING:
            _say(
                db, ctx, row, state=device_states.CANCELED, cause="aborted", detail="never ordered"
            )
        elif row.state in _CANCELABLE:
            _cancel(db, ctx, whole.model, row)
        elif row.state in device_states.LOST:  # it is back on what it had: say so in its order too
            _restore(db, ctx, whole.model, row)
        elif revert and row.state not in device_states.OUT:
            _send_back(db, ctx, whole.model, row)


def take_back(db: Connection, ctx: Context, *, device: str, order: Order, why: str) -> None:
    """A release must not be installed any more: who has not swapped is ordered what it had before,
    or nothing; who has swapped is ordered nothing, and keeps it until somebody decides.
    """
    mine = (rollout_device.c.rollout == order.rollout) & (rollout_device.c.device == device)
    row = db.execute(select(rollout_device).where(mine)).first()
    if row is not None and (row.state in _CANCELABLE or row.state in device_states.LOST):
        _restore(db, ctx, order.model, row)
    else:
        assignments.withdraw(db, ctx, device=device, model=order.model)
    if row is not None and row.state == device_states.ASSIGNED:
        _say(db, ctx, row, state=device_states.CANCELED, cause="quarantined", detail=why)
        changes.note(db, ctx, "rollout", order.rollout)


def _cancel(db: Connection, ctx: Context, model: str, row: Row[Any]) -> None:
    """Who was never heard of need not confirm it; who is at work will say CANCELED."""
    _restore(db, ctx, model, row)
    if row.state == device_states.ASSIGNED:
        _say(db, ctx, row, state=device_states.CANCELED, cause="aborted", detail="order taken back")


def _send_back(db: Connection, ctx: Context, model: str, row: Row[Any]) -> None:
    if _restore(db, ctx, model, row):
        _say(
            db, ctx, row, state=device_states.ASSIGNED, attempt=row.attempt + 1, cause="rollback",
            detail=f"told to go back to {row.previous}",
            facts=row.facts | {"assigned_at": ctx.clock()},
        )  # fmt: skip
    else:
        detail = f"{_why_not(db, row)}: keeps the release, by no order"
        _say(db, ctx, row, state=device_states.CANCELED, cause="rollback", detail=detail)


def _why_not(db: Connection, row: Row[Any]) -> str:
    """Why there is nothing to go back to."""
    if row.previous and (why := quarantine.why_release(db, row.previous)):
        return f"{row.previous}, which it had before, is in quarantine ({why})"
    return "had nothing before"


def _restore(db: Connection, ctx: Context, model: str, row: Row[Any]) -> bool:
    """Order what the device had before, or nothing where that was nothing or is in quarantine;
    whether there was something.
    """
    try:
        if not row.previous:
            raise AbsentError("release", "")
        release = assignments.signed_release(db, row.previous)
    except (AbsentError, ConflictError):
        assignments.withdraw(db, ctx, device=row.device, model=model)
        return False
    assignments.assign(
        db, ctx, device=row.device, release=release, rollout=row.rollout, attempt=row.attempt + 1
    )
    return True


def _say(db: Connection, ctx: Context, row: Row[Any], **values: Any) -> None:
    mine = (rollout_device.c.rollout == row.rollout) & (rollout_device.c.device == row.device)
    db.execute(update(rollout_device).where(mine).values(**values, updated_at=ctx.clock()))
