"""The install gate of a stage: passed, failed, wait, or inconclusive.

Thresholds as in AWS IoT Jobs (failure type, threshold percentage, minimum executed). The
denominator is the devices that reported since the stage began: a device that is switched off
is listed and is no success. No data is INCONCLUSIVE, never a pass.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from shoal.controller.rollouts import device_states

#: Devices that a reason names by cause; the rest are counted.
NAMED = 3


class Outcome(enum.StrEnum):
    WAIT = "WAIT"
    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"


class Failure(NamedTuple):
    """Devices of a stage that failed for one cause.

    names    the first of them; detail: of the first
    """

    cause: str
    devices: int
    names: Sequence[str]
    detail: str


class Members(Protocol):
    """Devices of a stage: asked one by one only where the counts do not decide or explain."""

    def is_awaited(self) -> bool:
        """Whether an unfinished device counts as reachable: the gate waits for it."""
        ...

    def unseen(self) -> tuple[int, Sequence[str]]:
        """Unfinished devices that have not reported since the stage began; the first names."""
        ...

    def failures(self) -> Sequence[Failure]: ...

    def most_disagreeing(self) -> tuple[str, float]:
        """The device whose shadow probe disagreed most, and the share of its inputs."""
        ...

    def first(self) -> tuple[str, str]:
        """Name and detail of the first device by name; ("", "") for an empty stage."""
        ...


class Count(NamedTuple):
    """Devices of a stage in one state, or sums of such counts.

    comparing  devices whose shadow probe compared; compared: inputs, disagreed: those of them that
               the release predicts otherwise than the one that serves
    """

    devices: int = 0
    comparing: int = 0
    compared: int = 0
    disagreed: int = 0

    def plus(self, other: "Count", times: int = 1) -> "Count":
        return Count(*(a + times * b for a, b in zip(self, other, strict=True)))


class Tally(NamedTuple):
    """Counts of a stage.

    failed     for good; retrying: failed, and to be ordered the release again
    comparing, compared, disagreed   see Count
    """

    devices: int
    succeeded: int
    failed: int
    skipped: int
    comparing: int = 0
    compared: int = 0
    disagreed: int = 0
    retrying: int = 0

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

    @property
    def left(self) -> int:
        """Devices that have not finished."""
        return self.taking - self.executed


class Verdict(NamedTuple):
    """Outcome of the gate, and the reason in one sentence for a person."""

    outcome: Outcome
    why: str


def tally(states: Mapping[str, Count]) -> Tally:
    """Counts of a stage from those by state."""

    def devices(group: frozenset[str]) -> int:
        return sum(count.devices for state, count in states.items() if state in group)

    return Tally(
        devices=sum(count.devices for count in states.values()),
        succeeded=devices(device_states.SUCCESSES),
        failed=devices(device_states.FAILURES),
        skipped=devices(device_states.EXCLUDED),
        comparing=sum(count.comparing for count in states.values()),
        compared=sum(count.compared for count in states.values()),
        disagreed=sum(count.disagreed for count in states.values()),
    )


def judge(
    count: Tally,
    members: Members,
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
    need = min(max(min_executed, 1), count.taking)
    if count.taking == 0:
        outcome = Outcome.PASSED if proven else Outcome.INCONCLUSIVE
        return Verdict(outcome, _none_executed(count, members))
    share = 100 * count.failed / max(count.executed, 1)
    if count.failed and count.executed >= need and share >= threshold_pct:
        return Verdict(
            Outcome.FAILED,
            f"{count.failed} of {count.executed} finished devices failed "
            f"({share:.0f} %, gate {threshold_pct:g} %): {explain(members.failures())}",
        )
    if count.comparing >= need and 100 * count.disagree > max_disagree_pct:
        return Verdict(Outcome.FAILED, _disagreement(count, members, max_disagree_pct))
    awaited = count.executed < need or count.retrying or (count.left and members.is_awaited())
    if awaited and not expired:
        return Verdict(Outcome.WAIT, "")
    if count.executed >= need:
        return Verdict(Outcome.PASSED, _passed(count, members))
    unseen, names = members.unseen()
    return Verdict(
        Outcome.INCONCLUSIVE,
        f"{count.executed} of the {need} devices that the gate needs have finished, "
        f"{unseen} did not report: {_listed(names, unseen)}",
    )


def explain(failures: Sequence[Failure]) -> str:
    """Failed devices by cause: "golden-mismatch on cam-1, cam-2 (worst error 0.3)"."""
    ordered = sorted(failures, key=lambda one: (-one.devices, one.cause))
    return "; ".join(
        f"{one.cause} on {_listed(one.names, one.devices)}"
        + (f" ({one.detail})" if one.detail else "")
        for one in ordered
    )


def _disagreement(count: Tally, members: Members, limit_pct: float) -> str:
    device, disagree = members.most_disagreeing()
    return (
        f"it predicts {100 * count.disagree:.3g} % of {count.compared} recent inputs otherwise "
        f"than the serving release (gate {limit_pct:g} %), {100 * disagree:.3g} % on {device}"
    )


def _passed(count: Tally, members: Members) -> str:
    parts = [f"{count.succeeded} of {count.taking} devices run it"]
    if count.failed:
        parts.append(f"{count.failed} failed, below the gate")
    if count.left and (unseen := members.unseen()[0]):
        parts.append(f"{unseen} not seen yet")
    return ", ".join(parts)


def _none_executed(count: Tally, members: Members) -> str:
    if not count.devices:
        return "no device fits this stage"
    name, detail = members.first()
    return f"none of {count.devices} devices can take it: {name}: {detail}"


def _listed(names: Sequence[str], of: int) -> str:
    """The first names of `of` devices.

    >>> _listed(["cam-1", "cam-2", "cam-3"], 5)
    'cam-1, cam-2, cam-3 and 2 more'
    """
    shown = names[:NAMED]
    more = f" and {of - len(shown)} more" if of > len(shown) else ""
    return ", ".join(shown) + more
