"""State machine of a federated round: one transition table and pure functions.

The runner writes each new state to the journal, then performs its effect. Effects are idempotent,
because power may fail between any two lines: after a restart, RESTARTED returns the effect again.

    PLANNED → RECRUITING → TRAINING → UNMASKING → AGGREGATING → EVALUATING → DONE
                                   └─ without secure aggregation ─┘
    and from every state FAILED, with a reason

`receive` applies a device's message, `decide` applies clock and counts, `step` moves to a state.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from shoal.errors import ConflictError
from shoal.machine import NamedEnum, transition


class State(NamedEnum):
    """State of a round."""

    PLANNED = enum.auto()
    RECRUITING = enum.auto()
    TRAINING = enum.auto()
    UNMASKING = enum.auto()
    AGGREGATING = enum.auto()
    EVALUATING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class Event(NamedEnum):
    """Input of the transition table."""

    OPENED = enum.auto()  # its devices are selected: invite them
    EVALUATION_OPENED = enum.auto()  # likewise, to evaluate a checkpoint without training
    RECRUITED = enum.auto()  # enough devices joined
    COLLECTED = enum.auto()  # enough plain updates arrived
    MASKED_COLLECTED = enum.auto()  # enough masked updates arrived
    REVEALED = enum.auto()  # the shares that open the sum arrived, or their deadline passed
    AGGREGATED = enum.auto()  # a new checkpoint exists, and devices evaluate it
    FINISHED = enum.auto()  # a new checkpoint exists, and is not evaluated
    MEASURED = enum.auto()  # evaluation results arrived, or their deadline passed
    FAILED = enum.auto()  # with a reason
    RESTARTED = enum.auto()  # the controller restarted during the round


class Effect(NamedEnum):
    """Work of a state, done after the journal line. Every one is idempotent."""

    INVITE = enum.auto()
    TRAIN = enum.auto()  # send the plan to the devices that joined
    UNMASK = enum.auto()  # fix the survivors, then collect votes and shares
    AGGREGATE = enum.auto()
    EVALUATE = enum.auto()  # send the checkpoint to be measured
    PUBLISH = enum.auto()  # the checkpoint becomes the task's newest
    DISMISS = enum.auto()  # of the devices: the round is over


class Mark(NamedEnum):
    """Progress of a device in a round, in this order; REFUSED and LOST are final."""

    INVITED = enum.auto()
    JOINED = enum.auto()
    UPDATED = enum.auto()
    REVEALED = enum.auto()
    MEASURED = enum.auto()
    REFUSED = enum.auto()
    LOST = enum.auto()


S, E, F, M = State, Event, Effect, Mark

ENDED = frozenset({S.DONE, S.FAILED})
#: Share of recruit_s after which training begins once `goal` devices have joined.
RECRUITING_SHARE = 0.25
NO_ANSWER, STILL_TRAINING = "no-answer", "still-training"
_EFFECT_OF = {
    S.RECRUITING: F.INVITE,
    S.TRAINING: F.TRAIN,
    S.UNMASKING: F.UNMASK,
    S.AGGREGATING: F.AGGREGATE,
    S.EVALUATING: F.EVALUATE,
    S.DONE: F.PUBLISH,
    S.FAILED: F.DISMISS,
}
TRANSITIONS: dict[tuple[State, Event], tuple[State, Effect | None]] = {
    (S.PLANNED, E.OPENED): (S.RECRUITING, F.INVITE),
    (S.PLANNED, E.EVALUATION_OPENED): (S.EVALUATING, F.EVALUATE),
    (S.RECRUITING, E.RECRUITED): (S.TRAINING, F.TRAIN),
    (S.TRAINING, E.COLLECTED): (S.AGGREGATING, F.AGGREGATE),
    (S.TRAINING, E.MASKED_COLLECTED): (S.UNMASKING, F.UNMASK),
    (S.UNMASKING, E.REVEALED): (S.AGGREGATING, F.AGGREGATE),
    (S.AGGREGATING, E.AGGREGATED): (S.EVALUATING, F.EVALUATE),
    (S.AGGREGATING, E.FINISHED): (S.DONE, F.PUBLISH),
    (S.EVALUATING, E.MEASURED): (S.DONE, F.PUBLISH),
    **{(s, E.FAILED): (S.FAILED, F.DISMISS) for s in S if s not in ENDED},
    **{(s, E.RESTARTED): (s, _EFFECT_OF.get(s)) for s in S},
}
#: Marks from which a device may answer in a state, and the mark that its answer gives it.
_ANSWERS: dict[State, tuple[frozenset[Mark], Mark]] = {
    S.RECRUITING: (frozenset({M.INVITED}), M.JOINED),
    S.TRAINING: (frozenset({M.JOINED}), M.UPDATED),
    S.UNMASKING: (frozenset({M.UPDATED}), M.REVEALED),
    S.EVALUATING: (frozenset({M.JOINED, M.UPDATED, M.REVEALED}), M.MEASURED),
}


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a round, and the length of each of its stages in seconds.

    goal     number of updates that ends training at once
    least    fewer updates fail the round
    over     over-selection: 1.3 invites 13 devices for a goal of 10
    """

    goal: int
    least: int
    over: float = 1.3
    recruit_s: float = 60.0
    train_s: float = 600.0
    unmask_s: float = 60.0
    evaluate_s: float = 120.0

    def window_s(self, state: State) -> float:
        """Length of a state; 0 for a state without a deadline."""
        return {
            S.RECRUITING: self.recruit_s,
            S.TRAINING: self.train_s,
            S.UNMASKING: self.unmask_s,
            S.EVALUATING: self.evaluate_s,
        }.get(state, 0.0)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt in which a device began to train."""

    number: int
    attempt: bytes


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one round, as the journal stores it.

    marks        device -> its progress
    reasons      device -> why it refused or was lost
    deadline_s   Unix seconds, UTC, of the state; 0 without a deadline
    reason       why the round failed, a slug; "" otherwise
    late         rounds that an update may lag behind, in an asynchronous task (FedBuff)
    purpose      "evaluate": devices only measure, and JOINED marks the selected ones
    carried      device -> the earlier round that it still trains for; its update counts in this one
    """

    task: str
    number: int
    attempt: bytes
    pace: Pace
    secure: bool = False
    state: State = S.PLANNED
    marks: dict[str, Mark] = {}
    reasons: dict[str, str] = {}
    deadline_s: float = 0.0
    reason: str = ""
    late: int = 0
    purpose: Literal["train", "evaluate"] = "train"
    carried: dict[str, Origin] = {}

    def attempt_of(self, device: str) -> bytes:
        """Attempt id in a device's messages: of an earlier round while it still trains for that."""
        trains = self.state in (S.PLANNED, S.RECRUITING, S.TRAINING)
        return self.carried[device].attempt if trains and device in self.carried else self.attempt

    def behind(self, device: str) -> int:
        """Staleness of a device's update, in rounds."""
        return self.number - self.carried[device].number if device in self.carried else 0

    def with_mark(self, *marks: Mark) -> list[str]:
        """Devices with one of these marks, sorted."""
        return sorted(name for name, mark in self.marks.items() if mark in marks)


class Received(NamedTuple):
    """Record after a message, and why the message was ignored ("" when it was accepted)."""

    record: RoundRecord
    ignored: str


def new_round(
    task: str,
    number: int,
    attempt: bytes,
    pace: Pace,
    invited: Iterable[str],
    *,
    secure: bool,
    late: int = 0,
    carried: Mapping[str, Origin] | None = None,
) -> RoundRecord:
    """Record of a new training round; ConflictError when `pace.least` is out of reach.

    late, carried   of an asynchronous task: carried devices train already and are not invited
    """
    carried = dict(carried or {})
    marks = {n: M.JOINED if n in carried else M.INVITED for n in sorted({*invited, *carried})}
    if not 1 <= pace.least <= pace.goal or len(marks) < pace.least:
        raise ConflictError(
            f"{len(marks)} devices for a round of {pace.least} to {pace.goal}",
            "wait for more eligible devices, or ask for fewer",
        )
    return RoundRecord(
        task=task, number=number, attempt=attempt, pace=pace, secure=secure, marks=marks,
        late=late, carried=carried,
    )  # fmt: skip


def new_evaluation(
    task: str, number: int, attempt: bytes, pace: Pace, devices: Iterable[str]
) -> RoundRecord:
    """Record of a round in which `devices` only evaluate; ConflictError when there are none."""
    marks = dict.fromkeys(sorted(devices), M.JOINED)
    if not marks:
        raise ConflictError("no device can measure it", "see which devices meet the task's demands")
    return RoundRecord(
        task=task, number=number, attempt=attempt, pace=pace, purpose="evaluate", marks=marks
    )


def carry_over(ended: RoundRecord, number: int) -> dict[str, Origin]:
    """Devices that still train after `ended`, and whose update may count in round `number`."""
    mine = Origin(number=ended.number, attempt=ended.attempt)
    training = [n for n, why in ended.reasons.items() if why == STILL_TRAINING]
    found = {name: ended.carried.get(name, mine) for name in training}
    return {name: one for name, one in found.items() if number - one.number <= ended.late}


def step(
    record: RoundRecord, event: Event, now_s: float, reason: str = ""
) -> tuple[RoundRecord, Effect | None]:
    """Record and effect after `event`; ConflictError, and no change, if the table has none.

    RESTARTED keeps the deadline: a restart does not extend a state.
    """
    state, effect = transition(TRANSITIONS, record.state, event, f"round {record.number}")
    if state is record.state:
        return record, effect
    window = record.pace.window_s(state)
    after = msgspec.structs.replace(
        record, state=state, deadline_s=now_s + window if window else 0.0, reason=reason
    )
    return _mark_lost(after), effect


def receive(
    record: RoundRecord, device: str, attempt: bytes, now_s: float, refused: str = ""
) -> Received:
    """Apply a device's answer to the current state, or its refusal with the reason.

    Answers of another attempt, of an uninvited device, late or repeated ones are ignored and change
    nothing. The caller has validated the content.
    """
    have, get = _ANSWERS.get(record.state, (frozenset(), None))
    mark = record.marks.get(device)
    if attempt != record.attempt_of(device):
        return Received(record, "another-attempt")
    if mark is None:
        return Received(record, "not-invited")
    if mark in (M.REFUSED, M.LOST):
        return Received(record, "left-before")
    if get is None or now_s > record.deadline_s:
        return Received(record, "late")
    if mark not in have:
        return Received(record, "said-before" if mark is get else "out-of-order")
    reasons = {**record.reasons, device: refused} if refused else record.reasons
    marks = {**record.marks, device: M.REFUSED if refused else get}
    return Received(msgspec.structs.replace(record, marks=marks, reasons=reasons), "")


def decide(record: RoundRecord, now_s: float) -> tuple[Event, str] | None:
    """Event and reason that end the state, from counts and clock; None to wait."""
    over = now_s > record.deadline_s
    if record.state is S.RECRUITING:
        waited = now_s > record.deadline_s - (1 - RECRUITING_SHARE) * record.pace.recruit_s
        return _recruited(record, over, waited)
    if record.state is S.TRAINING:
        return _collected(record, over)
    if record.state is S.UNMASKING and (over or not record.with_mark(M.UPDATED)):
        return E.REVEALED, ""
    if record.state is S.EVALUATING:
        return _measured(record, over)
    return None


def _recruited(record: RoundRecord, over: bool, waited: bool) -> tuple[Event, str] | None:
    """Silent devices are likely offline: once `goal` devices joined, do not wait for the rest."""
    joined, open_ = len(record.with_mark(M.JOINED)), len(record.with_mark(M.INVITED))
    if joined + open_ < record.pace.least or (over and joined < record.pace.least):
        return E.FAILED, "too-few-joined"
    enough = waited and joined >= record.pace.goal
    return (E.RECRUITED, "") if over or enough or open_ == 0 else None


def _collected(record: RoundRecord, over: bool) -> tuple[Event, str] | None:
    updated, open_ = len(record.with_mark(M.UPDATED)), len(record.with_mark(M.JOINED))
    if updated + open_ < record.pace.least or (over and updated < record.pace.least):
        return E.FAILED, "too-few-updates"
    if updated >= record.pace.goal or over or open_ == 0:
        return E.MASKED_COLLECTED if record.secure else E.COLLECTED, ""
    return None


def _measured(record: RoundRecord, over: bool) -> tuple[Event, str] | None:
    if not over and record.with_mark(M.JOINED, M.UPDATED, M.REVEALED):
        return None
    if record.purpose == "evaluate" and not record.with_mark(M.MEASURED):
        return E.FAILED, "nobody-measured"
    return E.MEASURED, ""


def _mark_lost(after: RoundRecord) -> RoundRecord:
    """Mark devices that did not answer in the previous state as lost, with the reason.

    A device that sent a masked update but no shares stays: its neighbours' shares are enough.
    """
    awaited = {S.TRAINING: M.INVITED, S.UNMASKING: M.JOINED, S.AGGREGATING: M.JOINED}
    late = after.with_mark(awaited[after.state]) if after.state in awaited else []
    trains = after.late and after.state is S.AGGREGATING
    return msgspec.structs.replace(
        after,
        marks={**after.marks, **dict.fromkeys(late, M.LOST)},
        reasons={**after.reasons, **dict.fromkeys(late, STILL_TRAINING if trains else NO_ANSWER)},
    )
