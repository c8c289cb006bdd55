"""Records of groups: what they run, devices that deviate, and what a person decided about one."""

from shoal.controller.rollouts.records import Selector
from shoal.controller.store.records import Record


class GroupRelease(Record, frozen=True, kw_only=True):
    """What a group runs of one model.

    release    "" for none: it was undeployed, or nothing is left to fall back to
    rollout    rollout or undeployment by which it was moved, at `since`
    reason     why it is this release, where no rollout moved it: a quarantine, an undeployment
    deviating  devices that this group decides for and that do not run it
    """

    model: str
    release: str
    rollout: str
    since: float
    reason: str = ""
    deviating: int = 0


class Group(Record, frozen=True, kw_only=True):
    """Devices of a selector, and the release of each model that they are to run.

    selector   its select as text: "site=north,ring=canary"; "fleet" for all devices
    devices    enrolled devices that it selects
    """

    name: str
    selector: str
    select: Selector
    devices: int
    releases: list[GroupRelease]
    created_at: float
    created_by: str


class Deviation(Record, frozen=True, kw_only=True):
    """A device that does not run what it is to run of a model, or is to run another than its group.

    want    release that it is to run; "" for none
    state   of rollouts.desired_state.State; why: in one sentence
    """

    device: str
    model: str
    group: str
    want: str
    serves: str
    state: str
    why: str
    since: float


class Override(Record, frozen=True, kw_only=True):
    """What a person decided about one device.

    kind   "pin" (runs `release`), "exclude" (runs no release of `model` by a group or a rollout),
           "hold" (nothing is ordered)
    """

    device: str
    kind: str
    model: str
    release: str
    reason: str
    created_at: float
    created_by: str


class DesiredRelease(Record, frozen=True, kw_only=True):
    """What a device is to run of one model, and what it runs.

    want    release; "" for none
    by      "pin", or the group that decides: the narrowest, or the one that was moved last
    serves  by its last report; "" for none
    state   "" when it runs it; else of rollouts.desired_state.State, and why
    """

    model: str
    want: str
    by: str
    rollout: str
    since: float
    serves: str
    state: str = ""
    why: str = ""


class DesiredState(Record, frozen=True, kw_only=True):
    """A device's desired releases, the groups that it is in, and what a person decided about it."""

    device: str
    releases: list[DesiredRelease]
    groups: list[str]
    overrides: list[Override]
