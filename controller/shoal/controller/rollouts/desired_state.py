"""What a device is to run of one model, and what follows: the decision, without a database.

Pin before group; a hold stops everything. A device that is to run another release than it serves
is queued for the trailing stage of the rollout that moved its group, unless something speaks
against it, which is said.
"""

import enum
from typing import NamedTuple

from shoal.controller.rollouts import device_states
from shoal.machine import NamedEnum
from shoal.orders import Order

#: Stage of devices that missed a rollout, joined later or were replaced.
TRAILING = "trailing"
#: Attempts after which one that fails waits for a person.
TRIES = 3
#: Causes of a skip that another agent or board may mend.
_CANNOT = frozenset({device_states.UNSUPPORTED, device_states.OUTDATED})


class State(NamedEnum):
    """Why a device does not run what it is to run, or is to run another release than its group."""

    CONVERGING = enum.auto()  # queued, ordered or updating
    PAUSED = enum.auto()  # its trailing stage is paused
    ROLLOUT = enum.auto()  # an unfinished rollout decides
    AWAY = enum.auto()  # it gets it once it reports
    FAILED = enum.auto()
    CANNOT = enum.auto()  # its board or its agent cannot run it, or the release cannot be ordered
    HELD = enum.auto()
    PINNED = enum.auto()
    EXCLUDED = enum.auto()
    KEPT = enum.auto()  # it keeps what a person or a stopped rollout left it


class Act(enum.Enum):
    """What to do about it. RESTART: in the stage of a rollout that has not ended."""

    NOTHING = enum.auto()
    QUEUE = enum.auto()
    PIN = enum.auto()
    RESTART = enum.auto()


class Decision(NamedTuple):
    """state None: the device runs what it is to run."""

    state: State | None
    why: str = ""
    act: Act = Act.NOTHING


class Desired(NamedTuple):
    """What a device is to run of a model.

    release, group, rollout   of the group that decides; "" where none does
    moving      the rollout that moved the group has not ended
    missing     why the group's release cannot be ordered any more; "" if it can
    pin         release of its pin; "" for none. pin_missing: as missing
    held, excluded   the person's reason; None if it is not
    """

    release: str = ""
    group: str = ""
    rollout: str = ""
    moving: bool = False
    missing: str = ""
    pin: str = ""
    pin_missing: str = ""
    held: str | None = None
    excluded: str | None = None


class Place(NamedTuple):
    """A device in a rollout: its row. replaced: it enrolled after that."""

    stage: str
    state: str
    attempt: int
    cause: str
    detail: str
    tries: int
    replaced: bool
    rollout: str = ""


class Known(NamedTuple):
    """A device, and what is known of one model on it.

    heard    it has just reported: an order reaches it
    fresh    something changed: what has failed may be tried again; decided: by a person
    serves   release; "" for none
    order    of its assignment
    place    in the rollout that moved its group
    active   in an unfinished rollout of the model
    keeps    why it is left what it has; "" if it is not
    pinned   its state under its pin's present order, and tries
    paused   why its trailing stage is paused
    """

    online: bool
    heard: bool
    fresh: bool
    decided: bool
    serves: str
    order: Order | None = None
    place: Place | None = None
    active: Place | None = None
    keeps: str = ""
    pinned: Place | None = None
    paused: str = ""


def decide(known: Known, desired: Desired, now: float) -> Decision:
    """What follows for a device; nothing for one that runs what it is to run."""
    if desired.held is not None:
        target = desired.pin or desired.release
        waits = f"{_because('held', desired.held)}; then it is to run {target}"
        return Decision(State.HELD, waits) if target and known.serves != target else Decision(None)
    if desired.pin:
        return _pinned(known, desired, now)
    if not desired.release or (
        known.serves == desired.release and _ordered(known) in ("", desired.release)
    ):
        return Decision(None)
    if desired.excluded is not None:
        return Decision(State.EXCLUDED, _because("excluded", desired.excluded))
    if known.keeps:
        return Decision(State.KEPT, known.keeps)
    if active := _in_rollout(known):
        return active
    if desired.missing:
        return Decision(State.CANNOT, desired.missing)
    if desired.moving:
        return Decision(State.ROLLOUT, f"{desired.rollout} has not ended")
    return _by_group(known, desired, now)


def _in_rollout(known: Known) -> Decision | None:
    """Decision of an unfinished rollout: it has ordered the device. None while it waits there."""
    active = known.active
    if active is None or active.state in device_states.EXCLUDED | {device_states.WAITING}:
        return None
    if active.replaced:
        return Decision(State.ROLLOUT, f"{active.rollout} orders it again", Act.RESTART)
    return Decision(State.ROLLOUT, f"{active.rollout}: {active.state.lower()}")


def _by_group(known: Known, desired: Desired, now: float) -> Decision:
    place = known.place
    if place is not None and not place.replaced:
        if place.state == device_states.WAITING and place.stage == TRAILING:
            return _queued(known)
        if place.state == device_states.ASSIGNED and not (known.online or known.heard):
            return Decision(State.AWAY, "it is ordered, and is not connected")
        if place.state not in device_states.ENDED and _follows(known, desired, place, now):
            return Decision(State.CONVERGING, f"{desired.rollout}: {place.state.lower()}")
        succeeded = place.state in device_states.SUCCESSES and _ordered(known) == desired.release
        if succeeded and not known.fresh:  # else it has fallen back since, or says it has it
            return Decision(
                State.CONVERGING, f"ordered by {desired.rollout}, its report is awaited"
            )
        if stays := _lost(known, place):
            return stays
    if not (known.online or known.heard):
        return Decision(State.AWAY, "it is ordered once it reports")
    if known.paused:
        return Decision(State.PAUSED, known.paused, Act.QUEUE)
    return Decision(
        State.CONVERGING, f"queued in the trailing stage of {desired.rollout}", Act.QUEUE
    )


def _queued(known: Known) -> Decision:
    if known.paused:
        return Decision(State.PAUSED, known.paused)
    return Decision(State.CONVERGING, "queued in the trailing stage")


def _lost(known: Known, place: Place) -> Decision | None:
    """Decision for one that failed or was skipped, and is not tried again now; None if it is."""
    cause = place.cause or place.state.lower()
    why = f"{cause}: {place.detail}" if place.detail else cause
    if place.state == device_states.SKIPPED and place.cause in _CANNOT:
        again = known.fresh or place.stage != TRAILING
        return None if again else Decision(State.CANNOT, why)
    if not has_failed(place):
        return None
    if place.state == device_states.TIMED_OUT and (known.fresh or place.tries < TRIES):
        return None
    again = known.decided or (known.fresh and place.tries < TRIES)
    return None if again else Decision(State.FAILED, why)


def has_failed(place: Place) -> bool:
    """Whether its last attempt counts as one that failed: by itself, or for its clock."""
    by_clock = place.state == device_states.SKIPPED and place.cause == device_states.CLOCK
    return by_clock or place.state in device_states.FAILURES


def _follows(known: Known, desired: Desired, place: Place, now: float) -> bool:
    """Whether its present order is that of its place, and still valid."""
    order = known.order
    if order is None or (order.rollout, order.attempt) != (desired.rollout, place.attempt):
        return False
    begun = place.state != device_states.ASSIGNED
    return begun or not order.deadline_s or now < order.deadline_s


def _pinned(known: Known, desired: Desired, now: float) -> Decision:
    if known.serves == desired.pin and _ordered(known) in ("", desired.pin):
        other = desired.release not in ("", desired.pin)
        return Decision(State.PINNED, f"{desired.group} runs {desired.release}") if other else _NONE
    if desired.pin_missing:
        return Decision(State.CANNOT, desired.pin_missing)
    if _ordered(known) == desired.pin and (last := known.pinned) is not None:
        failed = last.state in device_states.FAILURES
        if failed and not known.decided and not (known.fresh and last.tries < TRIES):
            return Decision(State.FAILED, f"{last.cause}: {last.detail}")
        if not failed:
            return Decision(State.CONVERGING, f"ordered by its pin: {last.state.lower()}")
    return Decision(State.CONVERGING, "ordered by its pin", Act.PIN)


_NONE = Decision(None)


def _ordered(known: Known) -> str:
    return known.order.release if known.order is not None else ""


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
