"""An update on the device, as one table and one pure step: DESIGN section 6.

The shell (updating.py) makes a record durable, then acts. Power fails between any two lines, so
every effect may be repeated: after a start, STARTED asks for the effect of the state once more.
"""

import enum
from typing import Any

import msgspec

from shoal.agent.installed.record import Record, Slot, State
from shoal.machine import NamedEnum, transition
from shoal.trust import Order

#: Starts of the agent within one state after which the release is blamed for them.
MAX_STARTS = 3
#: How often damaged files are fetched again within one attempt.
MAX_REDONE = 2


class Event(NamedEnum):
    """What happened: an order, the outcome of an effect, or a start of the agent."""

    ASSIGNED = enum.auto()  # a verified order that is not the record's own
    CHECKED = enum.auto()  # both repositories agree, and this device can carry the release
    SAME = enum.auto()  # it serves already
    REFUSED = enum.auto()  # it must not, or cannot, be installed here
    FETCHED = enum.auto()  # every file is in the stage
    VERIFIED = enum.auto()  # ... and true to its hash
    DAMAGED = enum.auto()  # ... and is not
    INSTALLED = enum.auto()  # the stage became the inactive slot
    PASSED = enum.auto()  # the probe found nothing wrong
    ACTIVATED = enum.auto()  # the new release serves
    HEALTHY = enum.auto()  # ... and did well while observed
    UNHEALTHY = enum.auto()  # ... and did not
    COMMITTED = enum.auto()  # floors are raised, the old session is gone
    REVERTED = enum.auto()  # the old release serves again
    WITHDRAWN = enum.auto()  # ... because the order was taken back, not because it failed
    INCONSISTENT = enum.auto()  # the old release cannot serve again
    BROKE = enum.auto()  # an effect failed for good
    CANCEL = enum.auto()  # the order was taken back, or a newer one came
    LATE = enum.auto()  # the deadline passed
    STARTED = enum.auto()  # the agent started and found this record


class Effect(NamedEnum):
    """What to do next. Every one may be done again."""

    CHECK = enum.auto()
    DOWNLOAD = enum.auto()
    VERIFY = enum.auto()
    INSTALL = enum.auto()
    PROBE = enum.auto()
    ACTIVATE = enum.auto()
    WATCH = enum.auto()
    COMMIT = enum.auto()
    REVERT = enum.auto()
    CLEAN = enum.auto()


S, E, F = State, Event, Effect

TERMINAL = frozenset(
    {S.SUCCEEDED, S.FAILED, S.REJECTED, S.TIMED_OUT, S.CANCELED, S.ALREADY_INSTALLED}
)
RESTING = TERMINAL | {S.IDLE}
#: Here an order may still be taken back, or be late, at no cost to what serves.
CANCELABLE = frozenset({S.QUEUED, S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING, S.PROBING})

#: The effect that each state is there for, and that a start repeats.
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
}

TRANSITIONS: dict[tuple[State, Event], tuple[State, Effect | None]] = {
    (S.QUEUED, E.CHECKED): (S.DOWNLOADING, F.DOWNLOAD),
    (S.QUEUED, E.SAME): (S.ALREADY_INSTALLED, None),
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
    """What came with an event. at_s: Unix seconds."""

    at_s: float = 0.0
    cause: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}
    order: Order | None = None
    trial: Slot | None = None
    serving: Slot | None = None


def step(record: Record, event: Event, note: Note | None = None) -> tuple[Record, Effect | None]:
    """The record after `event`, and what to do then.

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
    """What a start of the agent means to `record`: go on, or blame the release for the starts."""
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


def decide(record: Record, order: Order | None) -> Event | None:
    """What the desired `order` (None: none for this model) means to the record right now.

    A newer order supersedes, it never queues behind a stuck one; but a release that is being
    observed is not thrown away for an order that wants the very same one.
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
    """A committed trial serves; an attempt that ended otherwise leaves no trial."""
    replace = msgspec.structs.replace
    if record.state is State.SUCCEEDED:
        return replace(record, spare=record.serving, serving=record.trial, trial=None)
    if record.state in TERMINAL:
        return replace(record, trial=None)
    if record.state is State.DOWNLOADING:  # the inactive slot will be overwritten
        return replace(record, spare=None)
    return record
