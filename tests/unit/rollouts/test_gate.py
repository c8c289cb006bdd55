"""The install gate: which devices count, when it decides, and its reasons."""

from collections import defaultdict
from typing import NamedTuple

import pytest

from shoal.controller.rollouts import device_states, gate
from shoal.controller.rollouts.gate import Count, Failure, Outcome, tally


class Member(NamedTuple):
    device: str
    state: str
    cause: str
    detail: str
    seen: bool
    online: bool
    disagree: float = 0.0
    compared: int = 0


class Listed:
    """Members of a stage in a list; the controller asks its database."""

    def __init__(self, members):
        self.members = sorted(members)
        self.left = [m for m in self.members if m.state not in device_states.ENDED]

    def is_awaited(self):
        return any(m.seen or m.online or m.state == "WAITING" for m in self.left)

    def unseen(self):
        names = [m.device for m in self.left if not m.seen]
        return len(names), names[:3]

    def failures(self):
        causes = defaultdict(list)
        for member in self.members:
            if member.state in device_states.FAILURES:
                causes[member.cause].append(member)
        return [
            Failure(cause, len(lost), [m.device for m in lost[:3]], lost[0].detail)
            for cause, lost in causes.items()
        ]

    def most_disagreeing(self):
        worst = max(self.members, key=lambda m: m.disagree)
        return worst.device, worst.disagree

    def first(self):
        return self.members[0].device, self.members[0].detail


def counted(members):
    states = defaultdict(Count)
    for m in members:
        one = Count(1, int(m.compared > 0), m.compared, round(m.disagree * m.compared))
        states[m.state] = states[m.state].plus(one)
    return tally(states)


def judge(members, **asked):
    return gate.judge(counted(members), Listed(members), **asked)


def members(**states):
    """seen=..., and so on: "ok", "bad", "working", "unseen", "offline", "waiting", "skipped"."""
    kinds = {
        "ok": ("SUCCEEDED", "", True, True),
        "bad": ("FAILED", "golden-mismatch", True, True),
        "working": ("OBSERVING", "", True, True),
        "unseen": ("ASSIGNED", "", False, True),
        "offline": ("ASSIGNED", "", False, False),
        "waiting": ("WAITING", "", False, False),
        "skipped": ("SKIPPED", "unsupported-profile", True, True),
    }
    return [
        Member(
            f"{kind}-{i}", state, cause, "worst error 0.31" if kind == "bad" else "", seen, online
        )
        for kind, count in states.items()
        for i in range(count)
        for state, cause, seen, online in [kinds[kind]]
    ]


@pytest.mark.parametrize(
    ("states", "threshold", "need", "expired", "outcome"),
    [
        ({"ok": 4}, 10, 1, False, Outcome.PASSED),
        ({"ok": 3, "working": 1}, 10, 1, False, Outcome.WAIT),
        ({"bad": 1, "working": 3}, 10, 1, False, Outcome.FAILED),
        ({"bad": 1, "working": 3}, 10, 3, False, Outcome.WAIT),
        ({"bad": 1, "ok": 9}, 10.1, 1, False, Outcome.PASSED),
        ({"bad": 1, "ok": 9}, 10, 1, False, Outcome.FAILED),
        ({"bad": 1}, 10, 5, False, Outcome.FAILED),
        ({"ok": 1, "offline": 3}, 10, 1, False, Outcome.PASSED),
        ({"ok": 1, "unseen": 3}, 10, 1, False, Outcome.WAIT),
        ({"ok": 1, "unseen": 3}, 10, 1, True, Outcome.PASSED),
        ({"ok": 1, "offline": 3}, 10, 2, False, Outcome.WAIT),
        ({"ok": 1, "offline": 3}, 10, 2, True, Outcome.INCONCLUSIVE),
        ({"offline": 3}, 10, 1, False, Outcome.WAIT),
        ({"offline": 3}, 10, 1, True, Outcome.INCONCLUSIVE),
        ({"waiting": 2, "ok": 1}, 10, 1, False, Outcome.WAIT),
        ({}, 10, 1, False, Outcome.INCONCLUSIVE),
        ({"skipped": 2}, 10, 1, False, Outcome.INCONCLUSIVE),
        ({"skipped": 2, "ok": 1}, 10, 3, False, Outcome.PASSED),
        ({"ok": 5}, 0, 1, False, Outcome.PASSED),
    ],
)
def test_the_gates_verdict(states, threshold, need, expired, outcome):
    verdict = judge(members(**states), threshold_pct=threshold, min_executed=need, expired=expired)
    assert verdict.outcome is outcome


@pytest.mark.parametrize("states", [{}, {"skipped": 2}])
def test_a_stage_without_devices_passes_only_when_an_earlier_one_has_proven_the_release(states):
    asked = {"threshold_pct": 10, "min_executed": 1, "expired": False}
    assert judge(members(**states), **asked).outcome is Outcome.INCONCLUSIVE
    assert judge(members(**states), **asked, proven=True).outcome is Outcome.PASSED


def test_a_failed_gate_names_device_cause_and_detail():
    why = judge(members(bad=5, ok=1), threshold_pct=10, min_executed=1, expired=False).why
    assert "5 of 6" in why
    assert "golden-mismatch on bad-0, bad-1, bad-2 and 2 more (worst error 0.31)" in why


def test_the_unseen_are_listed_and_are_no_success():
    count = counted(members(ok=2, offline=3, skipped=1))
    assert (count.succeeded, count.left, count.taking) == (2, 3, 5)
    why = judge(members(ok=2, offline=3), threshold_pct=10, min_executed=1, expired=True).why
    assert "2 of 5 devices run it" in why
    assert "3 not seen yet" in why


def test_silence_is_inconclusive_and_names_the_silent():
    verdict = judge(members(offline=2), threshold_pct=10, min_executed=1, expired=True)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "offline-0, offline-1" in verdict.why


def compared(*shares, state="OBSERVING"):
    return [
        Member(f"cam-{i}", state, "", "", True, True, disagree=share, compared=100)
        for i, share in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("shares", "limit_pct", "need", "outcome"),
    [
        ((0.02, 0.30), 100.0, 1, Outcome.WAIT),
        ((0.02, 0.30), 15.0, 1, Outcome.FAILED),
        ((0.02, 0.26), 15.0, 1, Outcome.WAIT),
        ((0.30,), 15.0, 1, Outcome.FAILED),
        ((0.30, 0.30), 15.0, 3, Outcome.WAIT),
        ((0.0, 0.0), 0.0, 1, Outcome.WAIT),
        ((0.01,), 0.0, 1, Outcome.FAILED),
    ],
)
def test_a_release_that_answers_otherwise_too_often_is_stopped_before_all_serve_it(
    shares, limit_pct, need, outcome
):
    others = members(waiting=4)
    verdict = judge(
        [*compared(*shares), *others],
        threshold_pct=10, min_executed=need, expired=False, max_disagree_pct=limit_pct,
    )  # fmt: skip
    assert verdict.outcome is outcome
    if outcome is Outcome.FAILED:
        assert "recent inputs otherwise than the serving release" in verdict.why


def test_a_release_that_could_not_be_compared_is_judged_by_its_installs_alone():
    assert (
        judge(
            members(ok=4), threshold_pct=10, min_executed=1, expired=False, max_disagree_pct=0.0
        ).outcome
        is Outcome.PASSED
    )
