"""A rollout and its stages, as two tables and a pure step: DESIGN section 7.

What follows from a state (orders of the running stage, their withdrawal in a rollout that ends) is
done in steps of its own. An event without a transition raises ConflictError and changes nothing.
"""

import enum

from shoal.machine import NamedEnum, transition


class State(NamedEnum):
    """State of a rollout."""

    CREATING = enum.auto()
    WAITING_FOR_APPROVAL = enum.auto()
    READY = enum.auto()
    SCHEDULED = enum.auto()
    RUNNING = enum.auto()
    PAUSED = enum.auto()
    STOPPING = enum.auto()
    ROLLING_BACK = enum.auto()
    FINISHED = enum.auto()
    STOPPED = enum.auto()
    ROLLED_BACK = enum.auto()


class Event(NamedEnum):
    """Event of a rollout."""

    SUBMITTED = enum.auto()  # frozen, and needs approval
    FROZEN = enum.auto()  # frozen, and needs none
    APPROVED = enum.auto()
    SCHEDULED = enum.auto()  # its time is set, and has not come
    DUE = enum.auto()
    HELD = enum.auto()  # by a person, or by a gate
    RESUMED = enum.auto()
    EXHAUSTED = enum.auto()  # the last stage succeeded
    ABORTED = enum.auto()
    REVERTED = enum.auto()  # aborted, and devices go back to their previous release
    SETTLED = enum.auto()  # no device is updating any more


S, E = State, Event

ENDED = frozenset({S.FINISHED, S.STOPPED, S.ROLLED_BACK})
#: States that the stepper advances.
ACTIVE = frozenset({S.READY, S.SCHEDULED, S.RUNNING, S.STOPPING, S.ROLLING_BACK})
_STARTED = (S.RUNNING, S.PAUSED)
_BEFORE = (S.CREATING, S.WAITING_FOR_APPROVAL, S.READY, S.SCHEDULED)

TRANSITIONS: dict[tuple[State, Event], tuple[State, None]] = {
    (S.CREATING, E.SUBMITTED): (S.WAITING_FOR_APPROVAL, None),
    (S.CREATING, E.FROZEN): (S.READY, None),
    (S.WAITING_FOR_APPROVAL, E.APPROVED): (S.READY, None),
    (S.READY, E.SCHEDULED): (S.SCHEDULED, None),
    (S.READY, E.DUE): (S.RUNNING, None),
    (S.SCHEDULED, E.DUE): (S.RUNNING, None),
    (S.RUNNING, E.HELD): (S.PAUSED, None),
    (S.PAUSED, E.RESUMED): (S.RUNNING, None),
    (S.RUNNING, E.EXHAUSTED): (S.FINISHED, None),
    **{(s, E.ABORTED): (S.STOPPED, None) for s in _BEFORE},
    **{(s, E.REVERTED): (S.STOPPED, None) for s in _BEFORE},
    **{(s, E.ABORTED): (S.STOPPING, None) for s in _STARTED},
    **{(s, E.REVERTED): (S.ROLLING_BACK, None) for s in _STARTED},
    (S.STOPPING, E.SETTLED): (S.STOPPED, None),
    (S.ROLLING_BACK, E.SETTLED): (S.ROLLED_BACK, None),
}


class StageState(NamedEnum):
    """State of a stage. PAUSED: inconclusive, and a person decides."""

    SCHEDULED = enum.auto()
    RUNNING = enum.auto()
    ANALYSING = enum.auto()
    SUCCESSFUL = enum.auto()
    INCONCLUSIVE = enum.auto()
    PAUSED = enum.auto()
    FAILED = enum.auto()


class StageEvent(NamedEnum):
    """Event of a stage."""

    BEGAN = enum.auto()
    REPORTED = enum.auto()  # a device finished, or time passed: evaluate the gate
    UNDECIDED = enum.auto()  # the gate waits for more
    PASSED = enum.auto()
    REFUSED = enum.auto()
    SILENT = enum.auto()  # the gate will never have enough data
    HELD = enum.auto()  # until a person accepts it as it is
    ACCEPTED = enum.auto()
    RETRIED = enum.auto()  # the cause was fixed: the failed devices try again


T, V = StageState, StageEvent

STAGE_TRANSITIONS: dict[tuple[StageState, StageEvent], tuple[StageState, None]] = {
    (T.SCHEDULED, V.BEGAN): (T.RUNNING, None),
    (T.RUNNING, V.REPORTED): (T.ANALYSING, None),
    (T.ANALYSING, V.REPORTED): (T.ANALYSING, None),  # devices are done, behaviour is compared
    (T.ANALYSING, V.UNDECIDED): (T.RUNNING, None),
    (T.ANALYSING, V.PASSED): (T.SUCCESSFUL, None),
    (T.ANALYSING, V.REFUSED): (T.FAILED, None),
    (T.ANALYSING, V.SILENT): (T.INCONCLUSIVE, None),
    (T.INCONCLUSIVE, V.HELD): (T.PAUSED, None),
    (T.PAUSED, V.ACCEPTED): (T.SUCCESSFUL, None),
    (T.FAILED, V.RETRIED): (T.RUNNING, None),
}

#: What the API calls an event that has another name here.
_VERBS = {"HELD": "paused"}


def step(state: State, event: Event) -> State:
    """State after `event`; ConflictError where the table has none.

    >>> step(State.RUNNING, Event.ABORTED)
    <State.STOPPING: 'STOPPING'>
    """
    return transition(TRANSITIONS, state, event, "rollout", _VERBS.get(event.value, ""))[0]


def stage_step(state: StageState, event: StageEvent) -> StageState:
    """Stage's state after `event`; ConflictError where the table has none."""
    return transition(STAGE_TRANSITIONS, state, event, "stage", _VERBS.get(event.value, ""))[0]
