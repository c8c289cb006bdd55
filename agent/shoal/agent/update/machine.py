"""State machine of an update on the device: one table of transitions and one pure step.

The runner saves a record durably, then runs the effect. The power may fail in between, so every
effect is repeatable: after a start of the agent, STARTED requests the effect of the state again.
"""

import enum
from typing import Any

import msgspec

from shoal.agent.installed.record import Record, Slot, State
from shoal.machine import NamedEnum, transition
from shoal.orders import Order

#: Starts of the agent within one state that fail the release.
MAX_STARTS = 3
#: Repeated downloads of damaged files within one attempt.
MAX_REDONE = 2


class Event(NamedEnum):
    """An order, the result of an effect, or a start of the agent."""

    ASSIGNED = enum.auto()  # a verified order other than the record's
    CHECKED = enum.auto()  # both repositories agree, and the release fits this device
    SAME = enum.auto()  # the release serves already
    REMOVAL = enum.auto()  # the order is to remove the model
    REFUSED = enum.auto()  # the release must not, or cannot, be installed here
    FETCHED = enum.auto()  # every file is in the stage
    VERIFIED = enum.auto()  # ... and matches its hash
    DAMAGED = enum.auto()  # ... and does not
    INSTALLED = enum.auto()  # the stage became the inactive slot
    PASSED = enum.auto()  # the probe passed
    ACTIVATED = enum.auto()  # the new release serves
    HEALTHY = enum.auto()  # ... and passed the observation
    UNHEALTHY = enum.auto()  # ... and failed it
    COMMITTED = enum.auto()  # floors are raised, the old session is closed
    REMOVED = enum.auto()  # nothing serves, and the slots are deleted
    REVERTED = enum.auto()  # the old release serves again
    WITHDRAWN = enum.auto()  # ... because the order was withdrawn, not because it failed
    INCONSISTENT = enum.auto()  # the old release cannot serve again
    BROKE = enum.auto()  # an effect failed permanently
    CANCEL = enum.auto()  # the order was withdrawn or superseded
    LATE = enum.auto()  # the deadline passed
    STARTED = enum.auto()  # the agent started and found this record


class Effect(NamedEnum):
    """The work to do next; every effect is repeatable."""

    CHECK = enum.auto()
    DOWNLOAD = enum.auto()
    VERIFY = enum.auto()
    INSTALL = enum.auto()
    PROBE = enum.auto()
    ACTIVATE = enum.auto()
    WATCH = enum.auto()
    COMMIT = enum.auto()
    REVERT = enum.auto()
    REMOVE = enum.auto()
    CLEAN = enum.auto()


S, E, F = State, Event, Effect

TERMINAL = frozenset(
    {S.SUCCEEDED, S.FAILED, S.REJECTED, S.TIMED_OUT, S.CANCELED, S.ALREADY_INSTALLED}
)
RESTING = TERMINAL | {S.IDLE}
#: States in which an order may be cancelled or time out without affecting the serving release.
CANCELABLE = frozenset({S.QUEUED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.PROBING})

#: The effect of each state, which a start of the agent repeats.
WORK: dict[State, Effect] = {
    S.QUEUED: F.CHECK,
    S.DOWNLOADING: F.DOWNLOAD,
    S.DOWNLOADED: F.VERIFY,
    S.INSTALLING: F.INSTALL,
    S.PROBING: F.PROBE,
    S.ACTIVATING: F.ACTIVATE,
    S.OBSERVING: F.WATCH,
    S.COMMITTING: F.COMMIT,
    S.ROLLING_BACK: F.REVERT,
    S.REMOVING: F.REMOVE,
}

TRANSITIONS: dict[tuple[State, Event], tuple[State, Effect | None]] = {
    (S.QUEUED, E.CHECKED): (S.DOWNLOADING, F.DOWNLOAD),
    (S.QUEUED, E.SAME): (S.ALREADY_INSTALLED, None),
    (S.QUEUED, E.REMOVAL): (S.REMOVING, F.REMOVE),
    (S.REMOVING, E.REMOVED): (S.SUCCEEDED, F.CLEAN),
    (S.QUEUED, E.REFUSED): (S.REJECTED, F.CLEAN),
    (S.DOWNLOADING, E.FETCHED): (S.DOWNLOADED, F.VERIFY),
    (S.DOWNLOADING, E.REFUSED): (S.REJECTED, F.CLEAN),
    (S.DOWNLOADED, E.VERIFIED): (S.INSTALLING, F.INSTALL),
    (S.DOWNLOADED, E.DAMAGED): (S.DOWNLOADING, F.DOWNLOAD),
    (S.INSTALLING, E.INSTALLED): (S.PROBING, F.PROBE),
    (S.INSTALLING, E.DAMAGED): (S.DOWNLOADING, F.DOWNLOAD),
    (S.PROBING, E.PASSED): (S.ACTIVATING, F.ACTIVATE),
    (S.ACTIVATING, E.ACTIVATED): (S.OBSERVING, F.WATCH),
    (S.ACTIVATING, E.BROKE): (S.ROLLING_BACK, F.REVERT),
    (S.OBSERVING, E.HEALTHY): (S.COMMITTING, F.COMMIT),
    (S.OBSERVING, E.UNHEALTHY): (S.ROLLING_BACK, F.REVERT),
    (S.OBSERVING, E.CANCEL): (S.ROLLING_BACK, F.REVERT),
    (S.COMMITTING, E.COMMITTED): (S.SUCCEEDED, F.CLEAN),
    (S.ROLLING_BACK, E.REVERTED): (S.FAILED, F.CLEAN),
    (S.ROLLING_BACK, E.WITHDRAWN): (S.CANCELED, F.CLEAN),
    (S.ROLLING_BACK, E.INCONSISTENT): (S.FAILED, None),
    **{(s, E.ASSIGNED): (S.QUEUED, F.CHECK) for s in RESTING},
    **{(s, E.BROKE): (S.FAILED, F.CLEAN) for s in CANCELABLE},
    **{(s, E.CANCEL): (S.CANCELED, F.CLEAN) for s in CANCELABLE},
    **{(s, E.LATE): (S.TIMED_OUT, F.CLEAN) for s in CANCELABLE},
    **{(s, E.STARTED): (s, effect) for s, effect in WORK.items()},
    **{(s, E.STARTED): (s, F.CLEAN) for s in TERMINAL},
}


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Data of an event. at_s: Unix seconds."""

    at_s: float = 0.0
    cause: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}
    order: Order | None = None
    trial: Slot | None = None
    serving: Slot | None = None


def step(record: Record, event: Event, note: Note | None = None) -> tuple[Record, Effect | None]:
    """The record after `event`, and the next effect.

    Raises ConflictError for an event that cannot happen in the record's state; nothing changes.
    """
    note = note or Note()
    state, effect = transition(TRANSITIONS, record.state, event, record.model)
    if event is Event.STARTED:
        return msgspec.structs.replace(record, starts=record.starts + 1), effect
    if event is Event.ASSIGNED:
        return _assigned(record, note), effect
    after = msgspec.structs.replace(
        record,
        state=state,
        since_s=note.at_s,
        starts=0,
        redone=record.redone + (event is Event.DAMAGED),
        cause=note.cause or record.cause,
        detail=note.detail or record.detail,
        facts=note.facts or ({} if note.cause else record.facts),
        trial=note.trial or record.trial,
        serving=note.serving or record.serving,
    )
    return _settled(after), effect


def on_start(record: Record, now_s: float) -> tuple[Event, Note]:
    """The event of a start of the agent: resume, or fail a release that keeps crashing it."""
    starts = record.starts + 1
    risky = {
        State.PROBING: Event.BROKE,
        State.ACTIVATING: Event.BROKE,
        State.OBSERVING: Event.UNHEALTHY,
    }
    if starts < MAX_STARTS or record.state not in risky:
        return Event.STARTED, Note(at_s=now_s)
    detail = f"the agent started {starts} times while {record.state.name.lower()}"
    note = Note(cause="crash-loop", detail=detail, facts={"starts": starts}, at_s=now_s)
    return risky[record.state], note


def without_damaged(record: Record, slot: Slot) -> Record:
    """The record once a slot's files differ from what was signed: the spare one serves instead.

    The order that had installed it is forgotten, so that it is carried out again. While an update
    is under way the record stays: the update replaces the slot.
    """
    if record.state not in RESTING:
        return record
    order = record.order
    again = order is not None and order.sha256 == slot.sha256
    if slot == record.spare:
        return msgspec.structs.replace(record, spare=None)
    return msgspec.structs.replace(
        record, serving=record.spare, spare=None, order=None if again else order
    )


def decide(record: Record, order: Order | None) -> Event | None:
    """The event by which the record follows the desired `order` (None: no order for this model).

    A newer order supersedes the current one instead of queueing behind it; but a release under
    observation goes on when the new order is for the same release.
    """
    if record.order == order:
        return None
    if record.state in RESTING:
        return Event.ASSIGNED if order else None
    if record.state in CANCELABLE:
        return Event.CANCEL
    wanted = order is None or (record.order is not None and order.sha256 == record.order.sha256)
    return Event.CANCEL if record.state is State.OBSERVING and not wanted else None


def _assigned(record: Record, note: Note) -> Record:
    return Record(
        model=record.model,
        order=note.order,
        state=State.QUEUED,
        since_s=note.at_s,
        serving=record.serving,
        spare=record.spare,
    )


def _settled(record: Record) -> Record:
    """Make a committed trial the serving slot; drop the trial after any other end.

    A removal that succeeded leaves no slot.
    """
    replace = msgspec.structs.replace
    if record.state is State.SUCCEEDED and record.order is not None and record.order.removes:
        return replace(record, spare=None, serving=None, trial=None)
    if record.state is State.SUCCEEDED:
        return replace(record, spare=record.serving, serving=record.trial, trial=None)
    if record.state in TERMINAL:
        return replace(record, trial=None)
    if record.state is State.DOWNLOADING:  # the inactive slot will be overwritten
        return replace(record, spare=None)
    return record
