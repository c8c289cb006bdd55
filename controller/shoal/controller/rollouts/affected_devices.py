"""Whom an action on a rollout would touch: what a person should know before deciding."""

from collections.abc import Set
from typing import NamedTuple

from sqlalchemy import func, select

from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_states
from shoal.controller.store.tables import rollout_device

#: Told to update, and not yet at the swap: cancel still reaches them.
CANCELABLE = frozenset(
    {device_states.ASSIGNED, "QUEUED", "DOWNLOADING", "DOWNLOADED", "INSTALLING", "PROBING"}
)
SWAPPING = frozenset({"ACTIVATING", "OBSERVING", "COMMITTING"})


class Reach(NamedTuple):
    """Devices of one rollout by what an action means for them.

    waiting    have not been told to update
    updating   told, and can still be canceled
    swapping   activating or observing: too late to cancel, not too late to roll back
    serving    run the release
    failed     failed, rejected or timed out
    out        canceled or skipped
    states     state -> devices
    """

    waiting: int
    updating: int
    swapping: int
    serving: int
    failed: int
    out: int
    states: dict[str, int]

    @property
    def all(self) -> int:
        return sum(self.states.values())

    def touched(self, action: str, rollback: bool = False) -> int:
        """How many devices "approve", "pause", "resume" or "abort" makes a difference to."""
        if action in ("approve", "pause"):
            return self.waiting
        if action == "resume":
            return self.waiting + self.failed
        kept = 0 if rollback else self.swapping + self.serving
        return self.waiting + self.updating + self.swapping + self.serving - kept


def reach(ctx: Context, rollout: str) -> Reach:
    """Count the devices of a rollout; all zero when it has none."""
    state = rollout_device.c.state
    query = (
        select(state, func.count().label("devices"))
        .where(rollout_device.c.rollout == rollout)
        .group_by(state)
    )
    with ctx.store.read() as db:
        states = {row.state: row.devices for row in db.execute(query)}
    return Reach(
        waiting=_sum(states, {device_states.WAITING}),
        updating=_sum(states, CANCELABLE),
        swapping=_sum(states, SWAPPING),
        serving=_sum(states, device_states.WON),
        failed=_sum(states, device_states.LOST),
        out=_sum(states, device_states.OUT),
        states=states,
    )


def _sum(states: dict[str, int], group: Set[str]) -> int:
    return sum(devices for name, devices in states.items() if name in group)
