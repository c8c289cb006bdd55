"""The gates between a built variant and a class of boards."""

import pytest

from shoal.controller.releases import verdicts
from shoal.controller.releases.records import VariantReport
from shoal.profile import load_profiles

MAIN = "balanced_accuracy"


def report(name: str, metric: float = 0.97, cosine: float = 1.0, size: int = 1000) -> VariantReport:
    return VariantReport(name=name, sha256="", size=size, metrics={MAIN: metric}, cosine=cosine)


def why(variant: VariantReport, profile: str = "rpi4") -> str:
    reports = {"fp32": report("fp32"), variant.name: variant}
    judged = verdicts.judge(reports, {}, {profile: load_profiles()[profile]}, MAIN)
    return next(v.why for v in judged if v.variant == variant.name)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (report("int8-u8s8-pc", 0.96, 0.999), ""),
        (report("int8-u8s8-pc", 0.949, 0.999), "0.021 lost, 0.02 allowed"),
        (report("int8-u8s8-pc", 0.97, 0.98), "cosine to fp32's is 0.9800, 0.99 needed"),
        (report("int8-u8s8-pc", size=49 << 20), "49.0 MB, the profile's budget is 48"),
        (report("fp32", 0.5), ""),
    ],
)
def test_a_variant_passes_or_its_verdict_names_the_number_that_failed(
    variant: VariantReport, words: str
) -> None:
    assert why(variant).endswith(words)
    assert bool(why(variant)) == bool(words)


def test_a_board_falls_back_to_what_passed_and_an_unsupported_one_gets_the_reason() -> None:
    profiles = load_profiles()
    reports = {"fp32": report("fp32"), "int8-u8s8-pc": report("int8-u8s8-pc", 0.1)}
    judged = verdicts.judge(reports, {"int8-s8s8-pc": "no time"}, profiles, MAIN)
    lists, refused = verdicts.served(judged, profiles)
    assert lists["rpi4"] == lists["generic"] == ["fp32"]
    assert list(refused) == ["rpi3-armv7"]
    assert "reflash" in refused["rpi3-armv7"]


def test_an_override_lists_what_exists_and_still_nothing_for_an_unsupported_board() -> None:
    profiles = load_profiles()
    reports = {"fp32": report("fp32"), "int8-u8s8-pc": report("int8-u8s8-pc", 0.1)}
    judged = verdicts.judge(reports, {}, profiles, MAIN)
    lists, refused = verdicts.overridden(judged, list(reports), profiles)
    assert lists["rpi4"] == ["int8-u8s8-pc", "fp32"]
    assert lists["jetson-orin"] == ["fp32"]
    assert list(refused) == ["rpi3-armv7"]


@pytest.mark.parametrize(
    ("task", "metrics", "fine"),
    [
        ("classification", {MAIN: 0.97}, True),
        ("classification", {MAIN: 0.34}, False),
        ("regression", {"r2": 0.5}, True),
        ("regression", {"r2": -0.1}, False),
    ],
)
def test_a_model_that_only_guesses_is_refused(
    task: str, metrics: dict[str, float], fine: bool
) -> None:
    assert (verdicts.no_better_than_guessing(task, metrics, 3) == "") == fine
