"""The install gate of a stage: passed, failed, wait, or inconclusive.

Thresholds as in AWS IoT Jobs (failure type, threshold percentage, minimum executed). The
denominator is the devices that reported since the stage began: a device that is switched off
is listed and is no success. No data is INCONCLUSIVE, never a pass.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shoal.controller.rollouts import device_states

#: Devices that a reason names by cause; the rest are counted.
NAMED = 3


class Outcome(enum.StrEnum):
    WAIT = "WAIT"
    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"


class Member(NamedTuple):
    """One device of a stage.

    seen      it sent a message since the stage began
    online    it counts as reachable: the gate waits for it
    disagree  share of its `compared` recent inputs for which the release predicts otherwise than
              the one that serves: from the shadow probe
    """

    device: str
    state: str
    cause: str
    detail: str
    seen: bool
    online: bool
    disagree: float = 0.0
    compared: int = 0


class Tally(NamedTuple):
    """Counts of a stage. working: in progress and seen; unseen: neither seen nor finished."""

    devices: int
    succeeded: int
    failed: int
    skipped: int
    working: int
    unseen: int
    awaited: int
    compared: int = 0
    disagreed: float = 0.0

    @property
    def disagree(self) -> float:
        """Share of all inputs compared, on all devices together."""
        return self.disagreed / self.compared if self.compared else 0.0

    @property
    def executed(self) -> int:
        return self.succeeded + self.failed

    @property
    def taking(self) -> int:
        """Devices that the release is meant for."""
        return self.devices - self.skipped


class Verdict(NamedTuple):
    """Outcome of the gate, and the reason in one sentence for a person."""

    outcome: Outcome
    why: str


def tally(members: Sequence[Member]) -> Tally:
    """Count the members of a stage."""
    left = [m for m in members if m.state not in device_states.ENDED]
    unseen = [m for m in left if not m.seen]
    return Tally(
        devices=len(members),
        succeeded=sum(m.state in device_states.SUCCESSES for m in members),
        failed=sum(m.state in device_states.FAILURES for m in members),
        skipped=sum(m.state in device_states.EXCLUDED for m in members),
        working=len(left) - len(unseen),
        unseen=len(unseen),
        awaited=sum(m.seen or m.online or m.state == device_states.WAITING for m in left),
        compared=sum(m.compared for m in members),
        disagreed=sum(m.disagree * m.compared for m in members),
    )


def judge(
    members: Sequence[Member],
    *,
    threshold_pct: float,
    min_executed: int,
    expired: bool,
    proven: bool = False,
    max_disagree_pct: float = 100.0,
) -> Verdict:
    """Verdict on the current state of a stage.

    threshold_pct  failed share of finished devices, in percent, from which the stage fails
    min_executed   finished devices before the gate decides; of a smaller stage: all of them
    expired        the deadline of the stage has passed
    proven         devices of an earlier stage run it: an empty stage then passes
    max_disagree_pct  share of recent inputs predicted otherwise than before, above which the stage
                   fails; checked once as many devices as the gate needs have compared
    """
    count = tally(members)
    need = min(max(min_executed, 1), count.taking)
    if count.taking == 0:
        return Verdict(Outcome.PASSED if proven else Outcome.INCONCLUSIVE, _none_executed(members))
    share = 100 * count.failed / max(count.executed, 1)
    if count.failed and count.executed >= need and share >= threshold_pct:
        return Verdict(
            Outcome.FAILED,
            f"{count.failed} of {count.executed} finished devices failed "
            f"({share:.0f} %, gate {threshold_pct:g} %): {explain(members)}",
        )
    compared = [m for m in members if m.compared]
    if len(compared) >= need and 100 * count.disagree > max_disagree_pct:
        return Verdict(Outcome.FAILED, _disagreement(compared, count, max_disagree_pct))
    if count.awaited and not expired:
        return Verdict(Outcome.WAIT, "")
    if count.executed >= need:
        return Verdict(Outcome.PASSED, _passed(count))
    if not expired:
        return Verdict(Outcome.WAIT, "")
    return Verdict(
        Outcome.INCONCLUSIVE,
        f"{count.executed} of the {need} devices that the gate needs have finished, "
        f"{count.unseen} did not report: {_names(m.device for m in members if not m.seen)}",
    )


def explain(members: Iterable[Member]) -> str:
    """Failed devices by cause: "golden-mismatch on cam-1, cam-2 (worst error 0.3)"."""
    causes: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        if member.state in device_states.FAILURES:
            causes[member.cause or member.state.lower()].append(member)
    ordered = sorted(causes.items(), key=lambda item: (-len(item[1]), item[0]))
    return "; ".join(
        f"{cause} on {_names(m.device for m in lost)}"
        + (f" ({lost[0].detail})" if lost[0].detail else "")
        for cause, lost in ordered
    )


def _disagreement(compared: Sequence[Member], count: Tally, limit_pct: float) -> str:
    worst = max(compared, key=lambda m: m.disagree)
    return (
        f"it predicts {100 * count.disagree:.3g} % of {count.compared} recent inputs otherwise "
        f"than the serving release (gate {limit_pct:g} %), "
        f"{100 * worst.disagree:.3g} % on {worst.device}"
    )


def _passed(count: Tally) -> str:
    parts = [f"{count.succeeded} of {count.taking} devices run it"]
    if count.failed:
        parts.append(f"{count.failed} failed, below the gate")
    if count.unseen:
        parts.append(f"{count.unseen} not seen yet")
    return ", ".join(parts)


def _none_executed(members: Sequence[Member]) -> str:
    if not members:
        return "no device fits this stage"
    return f"none of {len(members)} devices can take it: {members[0].device}: {members[0].detail}"


def _names(devices: Iterable[str]) -> str:
    every = sorted(devices)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more
