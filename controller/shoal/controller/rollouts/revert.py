"""Withdrawal of orders: cancel before the swap, order the previous release after it.

A device that had no release before is ordered to remove the model, where its agent knows that. A
rollout that ends goes through its devices by name, some at a time; its row keeps how far it is.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select, update

from shoal.controller.host.context import Context
from shoal.controller.releases import quarantine
from shoal.controller.rollouts import assignments, device_rows, device_states
from shoal.controller.rollouts.machine import State
from shoal.controller.store import changes
from shoal.controller.store.rollout_tables import rollout, rollout_device
from shoal.errors import AbsentError, ConflictError
from shoal.orders import Order
from shoal.trust import removal

#: Devices in one transaction, which holds the write lock.
BATCH = 200
#: Cursor of a rollout whose devices were all gone through: after any device's name.
DONE = "~"
ENDING = (State.STOPPING, State.ROLLING_BACK)


class Withdrawals(NamedTuple):
    """The next withdrawals of a rollout that is ending.

    after     the cursor for which they were prepared; until: the cursor once all are stored
    rows      read, by name; changes: of some of them; prepared: assignments of some of them
    """

    after: str
    until: str
    rows: list[Row[Any]]
    changes: dict[str, device_rows.Change]
    prepared: list[assignments.Prepared]


def prepare(db: Connection, ctx: Context, whole: Row[Any]) -> Withdrawals | None:
    """Withdrawals of the next devices; None when there is none left, or it does not end.

    whole   row of the rollout
    """
    if whole.state not in ENDING or whole.cursor == DONE:
        return None
    mine = rollout_device.c
    query = select(rollout_device).where(mine.rollout == whole.id, mine.device > whole.cursor)
    rows = list(db.execute(query.order_by(mine.device).limit(BATCH)))
    going_back = whole.state == State.ROLLING_BACK
    restoring = _Restoring(db, ctx, whole.model, [row.device for row in rows])
    found: dict[str, device_rows.Change] = {}
    orders = []
    for row in rows:
        order, values = _withdrawal(restoring, row, going_back)
        if order is not None:
            orders.append(order)
        if values:
            found[row.device] = device_rows.Change(row, values)
    until = rows[-1].device if len(rows) == BATCH else DONE
    return Withdrawals(whole.cursor, until, rows, found, assignments.prepare(db, ctx, orders))


def store(db: Connection, ctx: Context, ident: str, withdrawals: Withdrawals) -> None:
    """Store them up to the first device that has changed since: that one is prepared again."""
    cursor = db.scalar(select(rollout.c.cursor).where(rollout.c.id == ident))
    if cursor != withdrawals.after:
        return
    same = {row.device for row in device_rows.unchanged(db, withdrawals.rows)}
    stale = assignments.outdated(db, withdrawals.prepared)
    first = next(
        (r.device for r in withdrawals.rows if r.device not in same or r.device in stale), DONE
    )
    assignments.store(db, [one for one in withdrawals.prepared if one.device < first])
    device_rows.change(
        db, ctx, [change for name, change in withdrawals.changes.items() if name < first]
    )
    before = [row.device for row in withdrawals.rows if row.device < first]
    reached = withdrawals.until if first == DONE else max(before, default=cursor)
    db.execute(update(rollout).where(rollout.c.id == ident).values(cursor=reached))


def withdraw_order(db: Connection, ctx: Context, *, device: str, order: Order, why: str) -> None:
    """Withdraw one device's order of a release that must not be installed any more.

    Before the swap the device is ordered its previous release, or nothing; after it, nothing: the
    device keeps the release until a person decides.
    """
    mine = (rollout_device.c.rollout == order.rollout) & (rollout_device.c.device == device)
    row = db.execute(select(rollout_device).where(mine)).first()
    withdrawn = assignments.Change(device, order.model)
    if row is not None and row.state in device_states.CANCELABLE | device_states.FAILURES:
        withdrawn, _ = _Restoring(db, ctx, order.model, [device]).order(row, remove=False)
    assignments.change(db, ctx, [withdrawn])
    if row is not None and row.state == device_states.ASSIGNED:
        values = {"state": device_states.CANCELED, "cause": "quarantined", "detail": why}
        device_rows.change(db, ctx, [device_rows.Change(row, values)])
        device_rows.wake(db, [order.rollout])
        changes.note(db, ctx, "rollout", order.rollout)


def _withdrawal(
    restoring: "_Restoring", row: Row[Any], going_back: bool
) -> tuple[assignments.Change | None, dict[str, Any]]:
    """Change of a device's orders, if any, and of its row."""
    if row.state == device_states.WAITING:
        return None, _canceled("aborted", "never ordered")
    if row.state in device_states.CANCELABLE:
        order, _ = restoring.order(row, remove=going_back)
        # One that has reported will report that it canceled.
        silent = row.state == device_states.ASSIGNED
        return order, _canceled("aborted", "order withdrawn") if silent else {}
    if row.state in device_states.FAILURES:  # it went back by itself: its order follows
        return restoring.order(row, remove=going_back)[0], {}
    if not going_back or row.state in device_states.EXCLUDED:
        return None, {}
    order, ordered = restoring.order(row, remove=True)
    if not ordered:
        detail = f"{restoring.why_not(row)}: keeps the release, without an order"
        return order, _canceled("rollback", detail)
    return order, {
        "state": device_states.ASSIGNED,
        "attempt": row.attempt + 1,
        "cause": "rollback",
        "detail": ordered,
        "ordered_at": restoring.now,
    }


def _canceled(cause: str, detail: str) -> dict[str, Any]:
    return {"state": device_states.CANCELED, "cause": cause, "detail": detail}


class _Restoring:
    """Orders that put devices back to what they had; what they share is read once."""

    def __init__(self, db: Connection, ctx: Context, model: str, names: Sequence[str]) -> None:
        self._db, self._model = db, model
        self.now = ctx.clock()
        self._know_removal = assignments.know_removal(db, names)
        self._release = cache(self._signed)

    def order(self, row: Row[Any], *, remove: bool) -> tuple[assignments.Change, str]:
        """The order of the previous release; withdrawn if there is none or it is in quarantine.

        remove   a device that had none is ordered to remove the model, where its agent knows how

        The change, unless another rollout has ordered since, and what it orders, as a phrase; ""
        for nothing.
        """
        attempt: dict[str, Any] = {"rollout": row.rollout, "attempt": row.attempt + 1}
        order, phrase = None, ""
        if not row.previous:
            new = remove and not _had_it(row) and row.device in self._know_removal
            if new:
                order = removal(self._model, **attempt)
                phrase = "ordered to remove it: had no release before"
        elif release := self._release(row.previous):
            order = assignments.order_of(release, **attempt)
            phrase = f"ordered to go back to {row.previous}"
        return assignments.Change(row.device, self._model, order, row.rollout), phrase

    def why_not(self, row: Row[Any]) -> str:
        """Why there is no release to go back to."""
        if row.previous and (why := quarantine.why_release(self._db, row.previous)):
            return f"{row.previous}, which it had before, is in quarantine ({why})"
        if row.previous:
            return f"{row.previous}, which it had before, cannot be ordered any more"
        if _had_it(row):
            return "had this release before the rollout"
        return (
            "had no release before, and its agent does not know the order to remove one (update it)"
        )

    def _signed(self, ref: str) -> assignments.Signed | None:
        try:
            return assignments.signed_release(self._db, ref)
        except (AbsentError, ConflictError):
            return None


def _had_it(row: Row[Any]) -> bool:
    """Whether the device served the rollout's release before the rollout."""
    return row.state == device_states.ALREADY_INSTALLED or bool(row.facts.get("had_it"))
