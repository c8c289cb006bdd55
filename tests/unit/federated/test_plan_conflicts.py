"""A plan whose parts do not go together says so before anybody trains."""

from typing import Any

import msgspec
import pytest

from shoal.controller.federated.planning.conflicts import check_plan
from shoal.controller.federated.strategy import strategy_of
from shoal.errors import SettingError
from shoal.federated.distributed import scale_for
from shoal.federated.fixed_point import FixedPoint
from shoal.federated.plan import Compression, Learning, Plan, Privacy, Secure

SECURE = Secure(degree=8, threshold=5, scale=FixedPoint(clip=1.0, devices=20, weight=64))
ONE = {"most_examples": 1}


def plan(strategy: str, **parts: Any) -> Plan:
    given: dict[str, Any] = {"least": 10, "learning": Learning(lr=0.1)} | parts
    return Plan(task="t", round=3, attempt=b"a" * 16, strategy=strategy, deadline_s=0.0, **given)


def private(where: str) -> Privacy:
    return Privacy(where=where, clip=1.0, noise=1.0)  # type: ignore[arg-type]


ROOMY = Secure(degree=8, threshold=5, scale=scale_for(private("distributed"), 1.0, 20, 10))


@pytest.mark.parametrize(
    ("strategy", "settings", "parts", "says"),
    [
        ("krum", {"malicious": 2}, {"secure": SECURE}, "compares single updates"),
        ("median", {}, {"secure": SECURE}, "secure aggregation hides them"),
        ("q-fedavg", {}, {"secure": SECURE}, "more than the weighted sum"),
        ("scaffold", {"population": 20}, {"secure": SECURE}, "more than the weighted sum"),
        ("fedavg", {}, {"secure": SECURE, "compression": Compression(kind="int8")}, "are noise"),
        ("fedavg", {}, {"secure": SECURE, "compression": Compression(zstd=True)}, "are noise"),
        ("fedavg", {}, {"secure": SECURE, "least": 1}, "2 or more"),
        ("fedavg", {}, {"secure": SECURE, "least": 30}, "for 20 devices"),
        ("fedavg", {}, {"secure": msgspec.structs.replace(SECURE, threshold=4)}, "more than half"),
        ("fedavg", {}, {"secure": msgspec.structs.replace(
            SECURE, scale=FixedPoint(clip=1.0, devices=10**5, weight=10**5))}, "32 bits"),
        ("krum", {"malicious": 2}, {"privacy": private("central")}, "not known here"),
        ("fedavg", {}, {"privacy": private("central")}, "most_examples to 1"),
        ("fedavg", ONE, {"privacy": private("distributed")}, "needs secure aggregation"),
        ("fedavg", ONE, {"privacy": private("distributed"), "secure": SECURE}, "no room"),
        ("fedavg", ONE, {"privacy": private("central"), "secure": SECURE}, "exact sum first"),
        ("fedavg", ONE, {"privacy": private("local"), "compression": Compression(kind="top-k")},
         "keeps the noise"),
        ("scaffold", {"population": 9}, {"compression": Compression(kind="top-k"),
         "learning": Learning(lr=0.1, terms={"shift": True})}, "control variates"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_reason(
    strategy: str, settings: dict, parts: dict, says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        check_plan(plan(strategy, **parts), strategy_of(strategy, settings))


@pytest.mark.parametrize(
    ("strategy", "settings", "parts"),
    [
        ("fedavg", {}, {}),
        ("krum", {"malicious": 2}, {"compression": Compression(kind="int8", zstd=True)}),
        ("fedadam", {}, {"secure": SECURE}),
        ("norm-clipping", {"bound": 1.0}, {"secure": ROOMY, "privacy": private("distributed")}),
        ("fedavg", ONE, {"privacy": private("central"), "compression": Compression(kind="top-k")}),
    ],
)
def test_what_goes_together_is_let_through(strategy: str, settings: dict, parts: dict) -> None:
    made = plan(strategy, **parts)
    assert check_plan(made, strategy_of(strategy, settings)) is made
