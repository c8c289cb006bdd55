"""A device judges a plan by its own limits, whatever the plan says."""

from typing import Any

import msgspec
import pytest

from shoal.agent.federated.eligibility import Condition, check_graph, judge
from shoal.agent.host.round_limits import Limits
from shoal.errors import RefusedError
from shoal.federated.distributed import scale_for
from shoal.federated.fixed_point import FixedPoint
from shoal.federated.plan import Learning, Plan, Privacy, Secure
from shoal.federated.spending import Budget, Ledger

PLAN = Plan(
    task="t", round=7, attempt=b"a" * 16, strategy="fedavg", least=10, deadline_s=100.0,
    learning=Learning(lr=0.1),
)  # fmt: skip
SECURE = Secure(degree=8, threshold=5, scale=FixedPoint(clip=1.0, devices=20))
WELL = Condition(rows=100, idle=True, mains=True, celsius=50.0, last=6)


def central(clip: float = 1.0, noise: float = 2.0) -> dict[str, Any]:
    return {"privacy": Privacy(where="central", clip=clip, noise=noise)}


def local(clip: float = 1.0, noise: float = 2.0) -> dict[str, Any]:
    return {"privacy": Privacy(where="local", clip=clip, noise=noise)}


def judged(plan: dict[str, Any], limits: dict[str, Any], condition: dict[str, Any]) -> Ledger:
    """PLAN, by a device that is WELL, each but for these."""
    planned = msgspec.structs.replace(PLAN, **plan)
    found = msgspec.structs.replace(WELL, **condition)
    return judge(planned, 1000, Limits(**limits), found, Ledger(), 50.0)


@pytest.mark.parametrize(
    ("reason", "plan", "limits", "condition"),
    [
        ("not-enabled", {}, {"enabled": False}, {}),
        ("few-rows", {}, {"rows": 101}, {}),
        ("few-rows", {}, {"rows": 0}, {"rows": 0}),
        ("busy", {}, {}, {"idle": False}),
        ("on-battery", {}, {}, {"mains": False}),
        ("hot", {}, {}, {"celsius": 75.1}),
        ("small-cohort", {"least": 2}, {}, {}),
        ("small-cohort", {}, {"cohort": 11}, {}),
        ("bare-update", {}, {"secure": True}, {}),
        ("bare-update", {"privacy": Privacy(where="distributed", clip=1, noise=1)}, {}, {}),
        ("long-clip", {}, {"clip": 1.0}, {}),
        ("long-clip", central(clip=1.1), {"clip": 1.0}, {}),
        ("little-noise", {}, {"noise": 1.0}, {}),
        ("little-noise", local(noise=0.9), {"noise": 1.0}, {}),
        ("little-noise", central(noise=0.9), {"noise": 1.0, "trust_central": True}, {}),
        ("little-noise", {}, {"budget": Budget(epsilon=3.0)}, {}),
        ("central-noise", central(noise=9.0), {"noise": 1.0}, {}),
        ("central-noise", central(noise=9.0), {"budget": Budget(epsilon=3.0)}, {}),
        ("central-noise", {"secure": SECURE, **central()}, {}, {}),
        ("central-noise", {"secure": SECURE, **central()}, {"trust_central": True}, {}),
        ("budget-spent", local(noise=0.5), {"budget": Budget(epsilon=3.0)}, {}),
        ("late", {"deadline_s": 49.0}, {}, {}),
        ("answered-before", {}, {}, {"last": 7}),
    ],
)
def test_each_refusal_has_its_reason(reason, plan, limits, condition) -> None:
    with pytest.raises(RefusedError) as refusal:
        judged(plan, limits, condition)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("plan", "limits", "condition"),
    [
        ({}, {}, {}),
        ({}, {"idle": False, "mains": False, "celsius": 0}, {"idle": False, "mains": False}),
        ({}, {}, {"mains": None, "celsius": None}),
        ({"secure": SECURE}, {"secure": True}, {}),
        (local(), {"clip": 1.0, "noise": 2.0, "budget": Budget(epsilon=6.0)}, {}),
        (central(), {"noise": 2.0, "budget": Budget(epsilon=5.0), "trust_central": True}, {}),
        (central(), {"clip": 1.0}, {}),
    ],
)
def test_what_is_within_its_limits_a_device_takes_part_in(plan, limits, condition) -> None:
    judged(plan, limits, condition)


@pytest.mark.parametrize("where", ["central", "local", "distributed"])
def test_a_round_is_written_into_the_ledger_as_what_it_costs(where: str) -> None:
    privacy = Privacy(where=where, clip=1.0, noise=2.0)  # type: ignore[arg-type]
    secure = None
    if where == "distributed":
        secure = Secure(degree=8, threshold=5, scale=scale_for(privacy, 1.0, 20, 10))
    plan = msgspec.structs.replace(PLAN, privacy=privacy, secure=secure)
    after = judge(plan, 1000, Limits(), WELL, Ledger(), 50.0)
    effective = 1.0 if where == "local" else 2.0
    assert after.rounds == 1
    assert after.rho == pytest.approx(1 / (2 * effective**2), rel=0.01)
    assert after.rho >= 1 / (2 * effective**2)


def test_without_privacy_nothing_is_spent() -> None:
    assert judge(PLAN, 1000, Limits(), WELL, Ledger(), 50.0) == Ledger()


def test_a_graph_that_is_not_listed_is_refused_and_without_a_list_any_is_run() -> None:
    known, other = "ab" * 32, "cd" * 32
    check_graph(other, Limits())
    check_graph(known, Limits(graphs=frozenset({known})))
    with pytest.raises(RefusedError, match=other) as refusal:
        check_graph(other, Limits(graphs=frozenset({known})))
    assert refusal.value.reason == "unknown-graph"
