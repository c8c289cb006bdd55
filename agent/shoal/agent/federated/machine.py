"""A device's part in a federated round, as one table and one pure step: DESIGN section 9.

    JOINED → TRAINING ───────────────→ SENT → OVER
                └→ TRAINED (secure) ──→ SENT → VOTED → OPENED → OVER
    and from everywhere REFUSED, with a reason that the controller is told

The shell (learning.py) makes a part durable, then acts. Power fails between any two lines, so every
effect may be repeated: after a start, STARTED asks for the effect of the state once more. Secrets
of secure aggregation are kept in memory alone: who restarts before its shares are out has lost
them, and can never open two endings.
"""

import enum
from typing import NamedTuple

import msgspec

from shoal.agent.installed.round_record import Part, Participation, Saved, State, _Named
from shoal.errors import ConflictError
from shoal.federated import messages
from shoal.federated.config import Config


class Event(_Named):
    """What the controller said, or what came of an effect."""

    INVITED = enum.auto()  # to the try that it takes part in, again
    BEGUN = enum.auto()
    LEARNT = enum.auto()  # the contribution is saved
    ENCODED = enum.auto()  # secure: the update is saved, and wants masks
    DEALT = enum.auto()  # secure: the neighbours' boxes are here
    HIDDEN = enum.auto()  # secure: the masked contribution is saved
    ASKED = enum.auto()  # for pieces that are missing
    CLOSED = enum.auto()
    PASSED = enum.auto()
    REFUSED = enum.auto()  # by the device itself
    DISMISSED = enum.auto()
    LATE = enum.auto()  # the plan's deadline passed, or a newer round took its place
    STARTED = enum.auto()  # the agent started and found this part


class Effect(_Named):
    """What a state asks for. Every one may be done again."""

    JOIN = enum.auto()
    TRAIN = enum.auto()  # and, securely, say the boxes
    SHARE = enum.auto()  # say the boxes again
    MASK = enum.auto()  # as soon as the neighbours' boxes are here
    SEND = enum.auto()
    VOTE = enum.auto()
    OPEN = enum.auto()
    REFUSE = enum.auto()
    KEEP = enum.auto()  # what it remembers for the next round holds; the rest is deleted
    DROP = enum.auto()  # ... and does not


S, E, F = State, Event, Effect

LIVE = frozenset({S.JOINED, S.TRAINING, S.TRAINED, S.SENT, S.VOTED, S.OPENED})
#: What was sent has been spent for, and may be in a sum.
GIVEN = frozenset({S.SENT, S.VOTED, S.OPENED})
_CALLS = (E.INVITED, E.BEGUN, E.DEALT, E.ASKED, E.CLOSED, E.PASSED)
TRANSITIONS: dict[tuple[State, Event], tuple[State, Effect | None]] = {
    (S.JOINED, E.INVITED): (S.JOINED, F.JOIN),
    (S.JOINED, E.BEGUN): (S.TRAINING, F.TRAIN),
    (S.TRAINING, E.BEGUN): (S.TRAINING, F.SHARE),
    (S.TRAINING, E.LEARNT): (S.SENT, F.SEND),
    (S.TRAINING, E.ENCODED): (S.TRAINED, F.MASK),
    (S.TRAINED, E.BEGUN): (S.TRAINED, F.SHARE),
    (S.TRAINED, E.DEALT): (S.TRAINED, F.MASK),
    (S.TRAINED, E.HIDDEN): (S.SENT, F.SEND),
    (S.SENT, E.BEGUN): (S.SENT, F.SEND),
    (S.SENT, E.DEALT): (S.SENT, F.SEND),
    (S.SENT, E.ASKED): (S.SENT, F.SEND),
    (S.SENT, E.CLOSED): (S.VOTED, F.VOTE),
    (S.VOTED, E.CLOSED): (S.VOTED, F.VOTE),
    (S.VOTED, E.PASSED): (S.OPENED, F.OPEN),
    (S.OPENED, E.PASSED): (S.OPENED, F.OPEN),
    (S.JOINED, E.STARTED): (S.JOINED, None),
    (S.TRAINING, E.STARTED): (S.TRAINING, F.TRAIN),
    (S.SENT, E.STARTED): (S.SENT, None),
    (S.OPENED, E.STARTED): (S.OPENED, None),
    **{(s, E.REFUSED): (S.REFUSED, F.REFUSE) for s in LIVE},
    **{(S.REFUSED, e): (S.REFUSED, F.REFUSE) for e in _CALLS},
    **{(s, E.DISMISSED): (S.OVER, F.KEEP if s in GIVEN else F.DROP) for s in LIVE},
    **{(s, E.LATE): (S.OVER, F.KEEP if s in GIVEN else F.DROP) for s in LIVE},
    (S.REFUSED, E.DISMISSED): (S.OVER, F.DROP),
    (S.REFUSED, E.LATE): (S.OVER, F.DROP),
}
_MEANS: dict[type, Event] = {
    messages.Invite: E.INVITED,
    messages.Start: E.BEGUN,
    messages.Deal: E.DEALT,
    messages.Resend: E.ASKED,
    messages.Close: E.CLOSED,
    messages.Pass: E.PASSED,
    messages.Dismiss: E.DISMISSED,
}


class Note(NamedTuple):
    """What comes with an event."""

    at_s: float
    reason: str = ""
    detail: str = ""
    contribution: Saved | None = None


def means(said: messages.Call) -> Event | None:
    """What a call is to a part; None for Measure, which needs none."""
    return _MEANS.get(type(said))


def on_start(part: Part) -> tuple[Event, Note]:
    """What a start of the agent is to a part: without its secrets it cannot go on."""
    if part.secure and part.state in LIVE - {S.OPENED}:
        detail = "the agent restarted, and the round's secrets went with its memory"
        return E.REFUSED, Note(part.since_s, "restarted", detail)
    return E.STARTED, Note(part.since_s)


def step(part: Part, event: Event, note: Note) -> tuple[Part, Effect | None]:
    """Part and effect after `event`; ConflictError, and nothing changes, where there is none.

    What is remembered for the next round is dropped when the round did not end well: the update
    that it follows from is in no checkpoint.
    """
    try:
        state, effect = TRANSITIONS[part.state, event]
    except KeyError:
        raise ConflictError(
            f"a part that is {part.state} cannot be {event.lower()}", "out of order: it is ignored"
        ) from None
    if event is E.DISMISSED and note.reason:
        effect = F.DROP
    if state is part.state:
        return part, effect
    after = msgspec.structs.replace(
        part,
        state=state,
        since_s=note.at_s,
        reason=note.reason or part.reason,
        detail=note.detail or part.detail,
        contribution=note.contribution or part.contribution,
        keeps=effect is F.KEEP,
    )
    return after, effect


def noted(before: Participation, after: Part) -> Participation:
    """What the journal says next: a contribution is spent for before it is sent."""
    ledger, last = before.ledger, before.last
    was = before.part
    if after.state is S.SENT and (was is None or was.state not in GIVEN):
        plan = after.config.plan
        ledger = after.spent
        last = {**last, plan.task: max(plan.round, last.get(plan.task, 0))}
    return Participation(part=after, last=last, ledger=ledger)


def busy_with(part: Part | None, config: Config, now_s: float) -> bool:
    """Whether a round of another task is under way; a task's newer round takes its place."""
    if part is None or part.state not in LIVE or now_s > part.config.plan.deadline_s:
        return False
    return part.config.plan.task != config.plan.task
