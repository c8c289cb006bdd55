"""Devices that an action on a rollout would affect, shown before it is confirmed."""

from collections.abc import Set
from typing import NamedTuple

from sqlalchemy import func, select

from shoal.controller.host.context import Context
from shoal.controller.rollouts import device_states
from shoal.controller.store.tables import rollout_device


class AffectedDevices(NamedTuple):
    """Counts of a rollout's devices, by what an action means for them.

    waiting    not assigned yet
    updating   assigned, and can still be canceled
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

    def count(self, action: str, rollback: bool = False) -> int:
        """How many devices "approve", "pause", "resume" or "abort" affects."""
        if action in ("approve", "pause"):
            return self.waiting
        if action == "resume":
            return self.waiting + self.failed
        kept = 0 if rollback else self.swapping + self.serving
        return self.waiting + self.updating + self.swapping + self.serving - kept


def affected_devices(ctx: Context, rollout: str) -> AffectedDevices:
    """Count the devices of a rollout; all zero when it has none."""
    state = rollout_device.c.state
    query = (
        select(state, func.count().label("devices"))
        .where(rollout_device.c.rollout == rollout)
        .group_by(state)
    )
    with ctx.store.read() as db:
        states = {row.state: row.devices for row in db.execute(query)}
    return AffectedDevices(
        waiting=_sum(states, {device_states.WAITING}),
        updating=_sum(states, device_states.CANCELABLE),
        swapping=_sum(states, device_states.SWAPPING),
        serving=_sum(states, device_states.SUCCESSES),
        failed=_sum(states, device_states.FAILURES),
        out=_sum(states, device_states.EXCLUDED),
        states=states,
    )


def _sum(states: dict[str, int], group: Set[str]) -> int:
    return sum(devices for name, devices in states.items() if name in group)
