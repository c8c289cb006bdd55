"""A federated round, as one table and pure steps: DESIGN section 9.

The shell writes the round down, then acts; every effect may be done again, because power fails
between any two lines: after a start, STARTED asks for the effect of the state once more.

    PLANNED → RECRUITING → TRAINING → UNMASKING → AGGREGATING → EVALUATING → DONE
                                   └─ without secure aggregation ─┘
    and from everywhere FAILED, with a reason

`heard` takes what a device says, `decide` what the clock and the numbers say, `step` moves.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from shoal.errors import ConflictError
from shoal.machine import NamedEnum, transition


class State(NamedEnum):
    """Where a round stands."""

    PLANNED = enum.auto()
    RECRUITING = enum.auto()
    TRAINING = enum.auto()
    UNMASKING = enum.auto()
    AGGREGATING = enum.auto()
    EVALUATING = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class Event(NamedEnum):
    """What happened to a round."""

    OPENED = enum.auto()  # its time came
    RECRUITED = enum.auto()  # enough devices joined
    GATHERED = enum.auto()  # enough updates are in, as they are
    HIDDEN = enum.auto()  # ... and masked
    REVEALED = enum.auto()  # whoever will send shares has sent them
    AGGREGATED = enum.auto()  # there is a new checkpoint, and devices are to measure it
    FINISHED = enum.auto()  # ... and nobody is
    MEASURED = enum.auto()
    BROKE = enum.auto()  # the round cannot end well, and why
    ASKED = enum.auto()  # devices are to measure a checkpoint, and nothing is learned
    STARTED = enum.auto()  # the controller started and found this round


class Effect(NamedEnum):
    """What a new state asks for. Every one may be done again."""

    INVITE = enum.auto()
    TRAIN = enum.auto()  # send the plan to who joined
    UNMASK = enum.auto()  # say who is in the sum, and ask for votes, then for shares
    AGGREGATE = enum.auto()
    EVALUATE = enum.auto()  # send the checkpoint to be measured
    PUBLISH = enum.auto()  # the checkpoint is the task's newest
    DISMISS = enum.auto()  # tell everybody that it is over


class Mark(NamedEnum):
    """How far a device came, in this order; REFUSED and LOST are ends."""

    INVITED = enum.auto()
    JOINED = enum.auto()
    UPDATED = enum.auto()
    REVEALED = enum.auto()
    MEASURED = enum.auto()
    REFUSED = enum.auto()
    LOST = enum.auto()


S, E, F, M = State, Event, Effect, Mark

ENDED = frozenset({S.DONE, S.FAILED})
#: Share of recruit_s after which a round begins once its goal has joined.
PATIENCE = 0.25
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
    (S.PLANNED, E.ASKED): (S.EVALUATING, F.EVALUATE),
    (S.RECRUITING, E.RECRUITED): (S.TRAINING, F.TRAIN),
    (S.TRAINING, E.GATHERED): (S.AGGREGATING, F.AGGREGATE),
    (S.TRAINING, E.HIDDEN): (S.UNMASKING, F.UNMASK),
    (S.UNMASKING, E.REVEALED): (S.AGGREGATING, F.AGGREGATE),
    (S.AGGREGATING, E.AGGREGATED): (S.EVALUATING, F.EVALUATE),
    (S.AGGREGATING, E.FINISHED): (S.DONE, F.PUBLISH),
    (S.EVALUATING, E.MEASURED): (S.DONE, F.PUBLISH),
    **{(s, E.BROKE): (S.FAILED, F.DISMISS) for s in S if s not in ENDED},
    **{(s, E.STARTED): (s, _EFFECT_OF.get(s)) for s in S},
}
#: What a device may say in a state: a mark that it has, and the one that it gets.
_SAID: dict[State, tuple[frozenset[Mark], Mark]] = {
    S.RECRUITING: (frozenset({M.INVITED}), M.JOINED),
    S.TRAINING: (frozenset({M.JOINED}), M.UPDATED),
    S.UNMASKING: (frozenset({M.UPDATED}), M.REVEALED),
    S.EVALUATING: (frozenset({M.JOINED, M.UPDATED, M.REVEALED}), M.MEASURED),
}


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a round waits, in seconds, at each stage, and for whom.

    goal     updates that end training at once
    least    updates without which the round fails
    over     devices invited for one of the goal: 1.3 invites 13 for 10, as some will not answer
    """

    goal: int
    least: int
    over: float = 1.3
    recruit_s: float = 60.0
    train_s: float = 600.0
    unmask_s: float = 60.0
    evaluate_s: float = 120.0

    def window_s(self, state: State) -> float:
        """Of a state; 0 where nobody is waited for."""
        return {
            S.RECRUITING: self.recruit_s,
            S.TRAINING: self.train_s,
            S.UNMASKING: self.unmask_s,
            S.EVALUATING: self.evaluate_s,
        }.get(state, 0.0)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The try of a round in which a device began to train."""

    number: int
    attempt: bytes


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One try of one round: what the journal holds.

    marks        device -> how far it came
    reasons      device -> why it refused or was lost
    deadline_s   Unix seconds, UTC, of the state; 0 where it has none
    reason       why it failed, a slug; "" otherwise
    late         rounds that an update may be behind, in an asynchronous task (FedBuff)
    purpose      "evaluate": devices only measure, and JOINED is who is asked to
    carried      device -> the earlier round that it still trains for; its update counts in this
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
        """Of the try that a device knows this round by: until its update is in, an earlier one's
        where it is carried on."""
        trains = self.state in (S.PLANNED, S.RECRUITING, S.TRAINING)
        return self.carried[device].attempt if trains and device in self.carried else self.attempt

    def behind(self, device: str) -> int:
        """Rounds since the one for which it trained."""
        return self.number - self.carried[device].number if device in self.carried else 0

    def having(self, *marks: Mark) -> list[str]:
        """Devices with one of these marks, sorted."""
        return sorted(name for name, mark in self.marks.items() if mark in marks)


class Heard(NamedTuple):
    """The round after a message, and why the message was ignored ("" when it was taken)."""

    round: Round
    ignored: str


def planned(
    task: str,
    number: int,
    attempt: bytes,
    pace: Pace,
    invited: Iterable[str],
    *,
    secure: bool,
    late: int = 0,
    carried: Mapping[str, Origin] | None = None,
) -> Round:
    """A round before it is opened; ConflictError when it cannot reach its least.

    late, carried   of an asynchronous task: who trains already (`carry`) is not asked to join
    """
    carried = dict(carried or {})
    marks = {n: M.JOINED if n in carried else M.INVITED for n in sorted({*invited, *carried})}
    if not 1 <= pace.least <= pace.goal or len(marks) < pace.least:
        raise ConflictError(
            f"{len(marks)} devices for a round of {pace.least} to {pace.goal}",
            "wait for more eligible devices, or ask for fewer",
        )
    return Round(
        task=task, number=number, attempt=attempt, pace=pace, secure=secure, marks=marks,
        late=late, carried=carried,
    )  # fmt: skip


def measuring(task: str, number: int, attempt: bytes, pace: Pace, asked: Iterable[str]) -> Round:
    """A round in which these devices measure a checkpoint; ConflictError when there are none."""
    marks = dict.fromkeys(sorted(asked), M.JOINED)
    if not marks:
        raise ConflictError("no device can measure it", "see who fits the task's demands")
    return Round(
        task=task, number=number, attempt=attempt, pace=pace, purpose="evaluate", marks=marks
    )


def carry(ended: Round, number: int) -> dict[str, Origin]:
    """Who still trains when a round has ended, and whose update may count in round `number`."""
    mine = Origin(number=ended.number, attempt=ended.attempt)
    training = [n for n, why in ended.reasons.items() if why == STILL_TRAINING]
    found = {name: ended.carried.get(name, mine) for name in training}
    return {name: one for name, one in found.items() if number - one.number <= ended.late}


def step(now: Round, event: Event, now_s: float, reason: str = "") -> tuple[Round, Effect | None]:
    """Round and effect after `event`; ConflictError, and nothing changes, where there is none.

    A start keeps the state's deadline: who was waiting is not asked to wait anew.
    """
    state, effect = transition(TRANSITIONS, now.state, event, f"round {now.number}")
    if state is now.state:
        return now, effect
    window = now.pace.window_s(state)
    after = msgspec.structs.replace(
        now, state=state, deadline_s=now_s + window if window else 0.0, reason=reason
    )
    return _left_behind(after), effect


def heard(now: Round, device: str, attempt: bytes, now_s: float, refused: str = "") -> Heard:
    """What a device says in the state that the round is in: its answer, or its refusal's reason.

    Of another try, late, from a stranger, or said before: ignored, and nothing changes. Whether
    the answer itself is sound was looked at before; one that was not is not heard.
    """
    have, get = _SAID.get(now.state, (frozenset(), None))
    mark = now.marks.get(device)
    if attempt != now.attempt_of(device):
        return Heard(now, "another-attempt")
    if mark is None:
        return Heard(now, "not-invited")
    if mark in (M.REFUSED, M.LOST):
        return Heard(now, "left-before")
    if get is None or now_s > now.deadline_s:
        return Heard(now, "late")
    if mark not in have:
        return Heard(now, "said-before" if mark is get else "out-of-order")
    reasons = {**now.reasons, device: refused} if refused else now.reasons
    marks = {**now.marks, device: M.REFUSED if refused else get}
    return Heard(msgspec.structs.replace(now, marks=marks, reasons=reasons), "")


def decide(now: Round, now_s: float) -> tuple[Event, str] | None:
    """What follows from the numbers and the clock: an event and a reason, or None: wait."""
    over = now_s > now.deadline_s
    if now.state is S.RECRUITING:
        waited = now_s > now.deadline_s - (1 - PATIENCE) * now.pace.recruit_s
        return _recruited(now, over, waited)
    if now.state is S.TRAINING:
        return _gathered(now, over)
    if now.state is S.UNMASKING and (over or not now.having(M.UPDATED)):
        return E.REVEALED, ""
    if now.state is S.EVALUATING:
        return _measured(now, over)
    return None


def _measured(now: Round, over: bool) -> tuple[Event, str] | None:
    if not over and now.having(M.JOINED, M.UPDATED, M.REVEALED):
        return None
    if now.purpose == "evaluate" and not now.having(M.MEASURED):
        return E.BROKE, "nobody-measured"
    return E.MEASURED, ""


def _recruited(now: Round, over: bool, waited: bool) -> tuple[Event, str] | None:
    """Who has not answered soon is likely to be gone: a full goal does not wait for it."""
    joined, open_ = len(now.having(M.JOINED)), len(now.having(M.INVITED))
    if joined + open_ < now.pace.least or (over and joined < now.pace.least):
        return E.BROKE, "too-few-joined"
    enough = waited and joined >= now.pace.goal
    return (E.RECRUITED, "") if over or enough or open_ == 0 else None


def _gathered(now: Round, over: bool) -> tuple[Event, str] | None:
    updated, open_ = len(now.having(M.UPDATED)), len(now.having(M.JOINED))
    if updated + open_ < now.pace.least or (over and updated < now.pace.least):
        return E.BROKE, "too-few-updates"
    if updated >= now.pace.goal or over or open_ == 0:
        return E.HIDDEN if now.secure else E.GATHERED, ""
    return None


def _left_behind(after: Round) -> Round:
    """Who did not answer the state before is lost, and it is said why.

    Whose masked update is in stays in, though it sent no shares: its neighbours' are enough.
    """
    awaited = {S.TRAINING: M.INVITED, S.UNMASKING: M.JOINED, S.AGGREGATING: M.JOINED}
    late = after.having(awaited[after.state]) if after.state in awaited else []
    trains = after.late and after.state is S.AGGREGATING
    return msgspec.structs.replace(
        after,
        marks={**after.marks, **dict.fromkeys(late, M.LOST)},
        reasons={**after.reasons, **dict.fromkeys(late, STILL_TRAINING if trains else NO_ANSWER)},
    )
