"""A rollout and its stages, as two tables and a pure step: DESIGN section 7.

The service makes a new state durable and then does the effect; an effect may be done again. An
event that the table does not know in a state raises ConflictError and changes nothing.
"""

import enum
from typing import TypeVar

from shoal.errors import ConflictError


class State(enum.StrEnum):
    """Where a rollout stands."""

    CREATING = "CREATING"
    WAITING_FOR_APPROVAL = "WAITING_FOR_APPROVAL"
    READY = "READY"
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    ROLLING_BACK = "ROLLING_BACK"
    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    ROLLED_BACK = "ROLLED_BACK"


class Event(enum.StrEnum):
    """What happened to a rollout."""

    SUBMITTED = "SUBMITTED"  # frozen, and somebody else has to say yes
    FROZEN = "FROZEN"  # frozen, and nobody has to
    APPROVED = "APPROVED"
    SCHEDULED = "SCHEDULED"  # its time is set, and has not come
    DUE = "DUE"
    HELD = "HELD"  # by a person, or by a gate
    RESUMED = "RESUMED"
    EXHAUSTED = "EXHAUSTED"  # the last stage succeeded
    ABORTED = "ABORTED"
    REVERTED = "REVERTED"  # aborted, and everybody goes back to what they had
    SETTLED = "SETTLED"  # nobody is in the middle of anything any more


class Effect(enum.StrEnum):
    """What a new state asks for. Every one may be done again."""

    ASSIGN = "ASSIGN"  # the devices of the running stage
    CANCEL = "CANCEL"  # take the order back from who has not finished
    REVERT = "REVERT"  # ... and give everybody the previous release


S, E, F = State, Event, Effect

ENDED = frozenset({S.FINISHED, S.STOPPED, S.ROLLED_BACK})
#: States in which the service has something to do by itself.
ACTIVE = frozenset({S.READY, S.SCHEDULED, S.RUNNING, S.STOPPING, S.ROLLING_BACK})
_STARTED = (S.RUNNING, S.PAUSED)
_BEFORE = (S.CREATING, S.WAITING_FOR_APPROVAL, S.READY, S.SCHEDULED)

TRANSITIONS: dict[tuple[State, Event], tuple[State, Effect | None]] = {
    (S.CREATING, E.SUBMITTED): (S.WAITING_FOR_APPROVAL, None),
    (S.CREATING, E.FROZEN): (S.READY, None),
    (S.WAITING_FOR_APPROVAL, E.APPROVED): (S.READY, None),
    (S.READY, E.SCHEDULED): (S.SCHEDULED, None),
    (S.READY, E.DUE): (S.RUNNING, F.ASSIGN),
    (S.SCHEDULED, E.DUE): (S.RUNNING, F.ASSIGN),
    (S.RUNNING, E.HELD): (S.PAUSED, None),
    (S.PAUSED, E.RESUMED): (S.RUNNING, F.ASSIGN),
    (S.RUNNING, E.EXHAUSTED): (S.FINISHED, None),
    **{(s, E.ABORTED): (S.STOPPED, None) for s in _BEFORE},
    **{(s, E.REVERTED): (S.STOPPED, None) for s in _BEFORE},
    **{(s, E.ABORTED): (S.STOPPING, F.CANCEL) for s in _STARTED},
    **{(s, E.REVERTED): (S.ROLLING_BACK, F.REVERT) for s in _STARTED},
    (S.STOPPING, E.SETTLED): (S.STOPPED, None),
    (S.ROLLING_BACK, E.SETTLED): (S.ROLLED_BACK, None),
}


class StageState(enum.StrEnum):
    """Where a stage stands. PAUSED: inconclusive, and a person has to say."""

    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    ANALYSING = "ANALYSING"
    SUCCESSFUL = "SUCCESSFUL"
    INCONCLUSIVE = "INCONCLUSIVE"
    PAUSED = "PAUSED"
    FAILED = "FAILED"


class StageEvent(enum.StrEnum):
    """What happened to a stage."""

    BEGAN = "BEGAN"
    REPORTED = "REPORTED"  # somebody finished, or time passed: ask the gate
    UNDECIDED = "UNDECIDED"  # the gate waits for more
    PASSED = "PASSED"
    REFUSED = "REFUSED"
    SILENT = "SILENT"  # the gate will never have enough to say anything
    HELD = "HELD"  # until a person accepts it as it is
    ACCEPTED = "ACCEPTED"
    RETRIED = "RETRIED"  # the cause was fixed: the failed devices try again


T, V = StageState, StageEvent

STAGE_TRANSITIONS: dict[tuple[StageState, StageEvent], tuple[StageState, None]] = {
    (T.SCHEDULED, V.BEGAN): (T.RUNNING, None),
    (T.RUNNING, V.REPORTED): (T.ANALYSING, None),
    (T.ANALYSING, V.UNDECIDED): (T.RUNNING, None),
    (T.ANALYSING, V.PASSED): (T.SUCCESSFUL, None),
    (T.ANALYSING, V.REFUSED): (T.FAILED, None),
    (T.ANALYSING, V.SILENT): (T.INCONCLUSIVE, None),
    (T.INCONCLUSIVE, V.HELD): (T.PAUSED, None),
    (T.PAUSED, V.ACCEPTED): (T.SUCCESSFUL, None),
    (T.FAILED, V.RETRIED): (T.RUNNING, None),
}

_State = TypeVar("_State", State, StageState)
_Event = TypeVar("_Event", Event, StageEvent)
_Does = TypeVar("_Does")


def step(state: State, event: Event) -> tuple[State, Effect | None]:
    """State and effect after `event`; ConflictError where the table has none.

    >>> step(State.RUNNING, Event.ABORTED)
    (<State.STOPPING: 'STOPPING'>, <Effect.CANCEL: 'CANCEL'>)
    """
    return _look_up(TRANSITIONS, state, event, "rollout")


def stage_step(state: StageState, event: StageEvent) -> StageState:
    """Stage's state after `event`; ConflictError where the table has none."""
    return _look_up(STAGE_TRANSITIONS, state, event, "stage")[0]


#: What people call an event that has another name here.
_WORDS = {"HELD": "paused"}


def _look_up(
    table: dict[tuple[_State, _Event], tuple[_State, _Does]],
    state: _State,
    event: _Event,
    what: str,
) -> tuple[_State, _Does]:
    try:
        return table[state, event]
    except KeyError:
        raise ConflictError(
            f"{what} is {state.value}: it cannot be {_WORDS.get(event.value, event.value.lower())}",
            state=state.value,
            event=event.value,
        ) from None
