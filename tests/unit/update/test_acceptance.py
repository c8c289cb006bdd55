"""Verdicts on what was measured and on what was observed."""

import msgspec
import pytest

from shoal.agent.serving.window import Vitals
from shoal.agent.update.acceptance import Measured, Watch, judge_observation, judge_probe
from shoal.profile import profile

PROFILE = profile("x86-vnni")
GOOD = Measured(
    variant="int8-u8s8-pc",
    worst_error=1e-6,
    labels_differ=0,
    golden_rows=64,
    p50_ms=0.04,
    p99_ms=0.09,
    rss_mb=70.0,
)
FP32 = msgspec.structs.replace(GOOD, variant="fp32")


def but(**fields: object) -> Measured:
    return msgspec.structs.replace(GOOD, **fields)


CASES = [
    ([GOOD, FP32], "", "int8-u8s8-pc"),
    ([GOOD, msgspec.structs.replace(FP32, p50_ms=0.02)], "", "fp32"),
    ([GOOD, msgspec.structs.replace(FP32, p50_ms=0.038)], "", "int8-u8s8-pc"),
    ([GOOD, msgspec.structs.replace(FP32, p50_ms=0.02, p99_ms=99.0)], "", "int8-u8s8-pc"),
    ([but(worst_error=PROFILE.gate.golden_atol), FP32], "", "int8-u8s8-pc"),
    ([but(worst_error=2e-3), FP32], "golden-mismatch", ""),
    ([but(labels_differ=1), FP32], "golden-mismatch", ""),
    ([GOOD, msgspec.structs.replace(FP32, labels_differ=1)], "golden-mismatch", ""),
    ([but(p99_ms=PROFILE.budget.p99_ms + 1), FP32], "", "fp32"),
    ([but(rss_mb=PROFILE.budget.rss_mb + 1.0), FP32], "", "fp32"),
    ([but(p99_ms=99.0), msgspec.structs.replace(FP32, p99_ms=99.0)], "too-slow", ""),
    ([but(rss_mb=999.0)], "too-big", ""),
    ([but(p99_ms=99.0), msgspec.structs.replace(FP32, rss_mb=999.0)], "too-slow", ""),
]


@pytest.mark.parametrize(("measured", "cause", "variant"), CASES)
def test_a_probe_is_judged(measured: list[Measured], cause: str, variant: str) -> None:
    verdict = judge_probe(measured, PROFILE)
    assert (verdict.cause, verdict.variant, verdict.passed) == (cause, variant, not cause)
    assert verdict.facts["golden_rows"] == 64


def test_a_mismatch_has_its_size_and_number_of_rows() -> None:
    detail = judge_probe([but(worst_error=0.25, labels_differ=3)], PROFILE).detail
    assert "0.25" in detail
    assert "3 of 64" in detail


def test_a_slow_release_has_its_latency_and_the_budget_in_the_reason() -> None:
    detail = judge_probe([but(p99_ms=31.5)], PROFILE).detail
    assert "31.50 ms" in detail
    assert "20 ms" in detail


def test_the_choice_of_a_variant_lists_every_timing() -> None:
    facts = judge_probe([GOOD, msgspec.structs.replace(FP32, p50_ms=0.02)], PROFILE).facts
    assert facts["why"] == "fp32 of int8-u8s8-pc 40 µs, fp32 20 µs"


WATCH = Watch(since_s=0.0, until_s=60.0)
FLAKY = Watch(since_s=0.0, until_s=60.0, before=Vitals(requests=100, errors=30, slow=30))
OBSERVED = [
    ("all well, not over yet", WATCH, Vitals(requests=500, rows=500), 30.0, None),
    ("all well", WATCH, Vitals(requests=500, rows=500), 60.0, ""),
    ("nothing came in", WATCH, Vitals(), 60.0, ""),
    ("one bad request of two", WATCH, Vitals(requests=2, errors=1), 60.0, ""),
    ("errors, clear early", WATCH, Vitals(requests=50, errors=10), 5.0, "unhealthy"),
    ("errors, too few to tell yet", WATCH, Vitals(requests=9, errors=9), 5.0, None),
    ("errors, few, but it is over", WATCH, Vitals(requests=9, errors=9), 60.0, "unhealthy"),
    ("errors as before the swap", FLAKY, Vitals(requests=100, errors=33), 60.0, ""),
    ("errors beyond those before", FLAKY, Vitals(requests=100, errors=50), 60.0, "unhealthy"),
    ("slow", WATCH, Vitals(requests=200, slow=40), 9.0, "too-slow"),
    ("slow as before the swap", FLAKY, Vitals(requests=100, slow=33), 60.0, ""),
    ("answers that are no numbers", WATCH, Vitals(requests=9, rows=9, odd=9), 2.0, "unhealthy"),
    ("a request that is not answered yet", WATCH, Vitals(longest_s=14.0), 20.0, None),
    ("a request that will never be answered", WATCH, Vitals(longest_s=16.0), 20.0, "unhealthy"),
    ("one odd answer of many", WATCH, Vitals(requests=999, rows=999, odd=2), 60.0, ""),
]


@pytest.mark.parametrize(("case", "watch", "vitals", "now", "cause"), OBSERVED)
def test_a_release_in_service_is_judged(
    case: str, watch: Watch, vitals: Vitals, now: float, cause: str | None
) -> None:
    verdict = judge_observation(watch, vitals, now)
    assert (verdict.cause if verdict else None) == cause
