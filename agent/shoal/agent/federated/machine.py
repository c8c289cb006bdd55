"""State machine of one attempt on a device, as one table and one pure step: DESIGN section 9.

    JOINED → TRAINING ───────────────→ SENT → OVER
                └→ TRAINED (secure) ──→ SENT → VOTED → OPENED → OVER
    and from every state REFUSED, with a reason that is sent to the controller

`client.RoundClient` journals a record, then performs the effect. Power fails between any two lines,
so every effect can be repeated: after a restart, RESUMED asks for the effect of the state again.
The secrets of secure aggregation are in memory only: a device that restarts before it has sent its
shares has lost them, and can never open two endings.
"""

import enum
from typing import NamedTuple

import msgspec

from shoal.agent.installed.record import (
    Participation,
    RoundRecord,
    RoundState,
    SavedUpdate,
)
from shoal.federated import messages
from shoal.federated.config import Config
from shoal.machine import NamedEnum, transition


class Event(NamedEnum):
    """A call of the controller, the end of a job, or the clock."""

    INVITED = enum.auto()  # again, to the attempt that it takes part in
    STARTED = enum.auto()
    TRAINED = enum.auto()  # the contribution is saved
    ENCODED = enum.auto()  # secure: the update is saved, still without masks
    SHARES_RECEIVED = enum.auto()  # secure: from the neighbours in the mask graph
    MASKED = enum.auto()  # secure: the masked contribution is saved
    RESEND = enum.auto()  # of missing pieces
    CLOSED = enum.auto()
    VOTES_RECEIVED = enum.auto()
    REFUSED = enum.auto()  # by the device itself
    DISMISSED = enum.auto()
    EXPIRED = enum.auto()  # the plan's deadline passed, or a newer round replaced it
    RESUMED = enum.auto()  # the agent restarted with this record in its journal


class Effect(NamedEnum):
    """What `session.RoundSession` does on entering a state. Each can be repeated."""

    JOIN = enum.auto()
    TRAIN = enum.auto()  # secure: and send the shares
    SEND_SHARES = enum.auto()  # again
    MASK = enum.auto()  # once the neighbours' shares are received
    UPLOAD = enum.auto()
    VOTE = enum.auto()
    OPEN = enum.auto()
    REFUSE = enum.auto()
    KEEP = enum.auto()  # keep the state for the task's next round; delete the other files
    DISCARD = enum.auto()  # delete all files


S, E, F = RoundState, Event, Effect

LIVE = frozenset({S.JOINED, S.TRAINING, S.TRAINED, S.SENT, S.VOTED, S.OPENED})
#: The contribution has been charged to the privacy ledger, and may be in a sum.
CHARGED = frozenset({S.SENT, S.VOTED, S.OPENED})
_CALLS = (E.INVITED, E.STARTED, E.SHARES_RECEIVED, E.RESEND, E.CLOSED, E.VOTES_RECEIVED)
TRANSITIONS: dict[tuple[RoundState, Event], tuple[RoundState, Effect | None]] = {
    (S.JOINED, E.INVITED): (S.JOINED, F.JOIN),
    (S.JOINED, E.STARTED): (S.TRAINING, F.TRAIN),
    (S.TRAINING, E.STARTED): (S.TRAINING, F.SEND_SHARES),
    (S.TRAINING, E.TRAINED): (S.SENT, F.UPLOAD),
    (S.TRAINING, E.ENCODED): (S.TRAINED, F.MASK),
    (S.TRAINED, E.STARTED): (S.TRAINED, F.SEND_SHARES),
    (S.TRAINED, E.SHARES_RECEIVED): (S.TRAINED, F.MASK),
    (S.TRAINED, E.MASKED): (S.SENT, F.UPLOAD),
    (S.SENT, E.STARTED): (S.SENT, F.UPLOAD),
    (S.SENT, E.SHARES_RECEIVED): (S.SENT, F.UPLOAD),
    (S.SENT, E.RESEND): (S.SENT, F.UPLOAD),
    (S.SENT, E.CLOSED): (S.VOTED, F.VOTE),
    (S.VOTED, E.CLOSED): (S.VOTED, F.VOTE),
    (S.VOTED, E.VOTES_RECEIVED): (S.OPENED, F.OPEN),
    (S.OPENED, E.VOTES_RECEIVED): (S.OPENED, F.OPEN),
    (S.JOINED, E.RESUMED): (S.JOINED, None),
    (S.TRAINING, E.RESUMED): (S.TRAINING, F.TRAIN),
    (S.SENT, E.RESUMED): (S.SENT, None),
    (S.OPENED, E.RESUMED): (S.OPENED, None),
    **{(s, E.REFUSED): (S.REFUSED, F.REFUSE) for s in LIVE},
    **{(S.REFUSED, e): (S.REFUSED, F.REFUSE) for e in _CALLS},
    **{(s, E.DISMISSED): (S.OVER, F.KEEP if s in CHARGED else F.DISCARD) for s in LIVE},
    **{(s, E.EXPIRED): (S.OVER, F.KEEP if s in CHARGED else F.DISCARD) for s in LIVE},
    (S.REFUSED, E.DISMISSED): (S.OVER, F.DISCARD),
    (S.REFUSED, E.EXPIRED): (S.OVER, F.DISCARD),
}
_EVENTS: dict[type, Event] = {
    messages.Invite: E.INVITED,
    messages.Start: E.STARTED,
    messages.Deal: E.SHARES_RECEIVED,
    messages.Resend: E.RESEND,
    messages.Close: E.CLOSED,
    messages.Pass: E.VOTES_RECEIVED,
    messages.Dismiss: E.DISMISSED,
}


class Note(NamedTuple):
    """Details of an event."""

    at_s: float
    reason: str = ""
    detail: str = ""
    contribution: SavedUpdate | None = None


def event_of(call: messages.ControllerMessage) -> Event | None:
    """The event that a call is; None for Measure, which is no part of an attempt."""
    return _EVENTS.get(type(call))


def on_start(record: RoundRecord) -> tuple[Event, Note]:
    """The event of a restart: without its secrets, a secure attempt cannot go on."""
    if record.secure and record.state in LIVE - {S.OPENED}:
        detail = "the agent restarted, and the round's secrets went with its memory"
        return E.REFUSED, Note(record.since_s, "restarted", detail)
    return E.RESUMED, Note(record.since_s)


def step(record: RoundRecord, event: Event, note: Note) -> tuple[RoundRecord, Effect | None]:
    """Record and effect after `event`; ConflictError, and nothing changes, outside the table.

    The state for the task's next round is discarded when this round failed: the update that it
    follows from is in no checkpoint.
    """
    state, effect = transition(TRANSITIONS, record.state, event, "this round")
    if event is E.DISMISSED and note.reason:
        effect = F.DISCARD
    if state is record.state:
        return record, effect
    after = msgspec.structs.replace(
        record,
        state=state,
        since_s=note.at_s,
        reason=note.reason or record.reason,
        detail=note.detail or record.detail,
        contribution=note.contribution or record.contribution,
        keeps=effect is F.KEEP,
    )
    return after, effect


def updated(before: Participation, record: RoundRecord) -> Participation:
    """What to journal: the ledger is charged before a contribution is sent."""
    ledger, last, previous = before.ledger, before.last, before.part
    if record.state is S.SENT and (previous is None or previous.state not in CHARGED):
        plan = record.config.plan
        ledger = record.spent
        last = {**last, plan.task: max(plan.round, last.get(plan.task, 0))}
    return Participation(part=record, last=last, ledger=ledger)


def busy_with(record: RoundRecord | None, config: Config, now_s: float) -> bool:
    """Whether a round of another task is under way; a newer round of the same task replaces it."""
    if record is None or record.state not in LIVE or now_s > record.config.plan.deadline_s:
        return False
    return record.config.plan.task != config.plan.task
