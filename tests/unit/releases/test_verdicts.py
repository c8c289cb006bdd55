"""The gates between a built variant and a class of boards."""

import msgspec
import pytest

from shoal.controller.releases import verdicts
from shoal.controller.releases.records import VariantReport
from shoal.controller.releases.verdicts import Cpu
from shoal.profile import load_profiles

MAIN = "balanced_accuracy"


def report(name: str, metric: float = 0.97, cosine: float = 1.0, size: int = 1000) -> VariantReport:
    return VariantReport(name=name, sha256="", size=size, metrics={MAIN: metric}, cosine=cosine)


#: As facts of a device name them.
RPI4 = Cpu("aarch64", frozenset({"asimd"}))


def why(variant: VariantReport, profile: str = "rpi4", **more: object) -> str:
    reports = {"fp32": report("fp32"), variant.name: variant}
    judged = verdicts.judge(reports, {}, {profile: load_profiles()[profile]}, MAIN, **more)  # type: ignore[arg-type]
    return next(v.why for v in judged if v.variant == variant.name)


def but(**changes: object) -> VariantReport:
    return msgspec.structs.replace(report("int8-u8s8-pc", size=300), **changes)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (report("int8-u8s8-pc", 0.96, size=300), ""),
        (report("int8-u8s8-pc", 0.949, 0.999), "0.021 lost, 0.02 allowed"),
        (but(same_labels=0.94), "fp32's label on 94.0% of held-back rows, 95% needed"),
        (but(not_finite=1), "NaN or infinity in its outputs for 1 held-back rows"),
        (but(in_company=True), verdicts.IN_COMPANY),
        (but(size=1001), "1.00x fp32's size"),
        (but(size=990), "0.99x fp32's size: it saves next to nothing"),
        (report("int8-u8s8-pc", size=49 << 20), "49.0 MB, the profile's budget is 48"),
        (report("fp32", 0.5), ""),
    ],
)
def test_a_variant_passes_or_its_verdict_names_the_number_that_failed(
    variant: VariantReport, words: str
) -> None:
    assert why(variant).endswith(words)
    assert bool(why(variant)) == bool(words)


@pytest.mark.parametrize(
    ("profile", "cpu", "words"),
    [
        ("rpi4", RPI4, "1.20x fp32's time, 1.1 allowed"),
        ("rpi4", Cpu("x86_64", frozenset({"avx2"})), ""),
        ("rpi4", None, ""),
        ("x86-vnni", Cpu("x86_64", frozenset({"avx2"})), ""),
        ("x86-vnni", Cpu("x86_64", frozenset({"avx2", "avx_vnni"})), "1.20x fp32's time"),
    ],
)
def test_a_slow_variant_is_refused_for_boards_whose_cpu_is_like_the_one_that_timed_it(
    profile: str, cpu: Cpu | None, words: str
) -> None:
    slow = but(time_ratio=1.2)
    assert why(slow, profile, cpu=cpu).startswith(words)
    assert bool(why(slow, profile, cpu=cpu)) == bool(words)


def test_what_a_person_gave_may_be_larger_and_slower_and_not_worse() -> None:
    dear = but(time_ratio=3.0, size=2_000)
    assert why(dear, cpu=RPI4, imported=[dear.name]) == ""
    assert why(but(same_labels=0.5), cpu=RPI4, imported=[dear.name])


def test_a_regression_is_judged_by_its_correlation_with_fp32() -> None:
    def of(name: str, cosine: float) -> VariantReport:
        return VariantReport(
            name=name,
            sha256="",
            size=900 if name == "fp32" else 300,
            metrics={"r2": 0.8},
            cosine=cosine,
        )

    for cosine, passes in ((0.95, True), (0.85, False)):
        reports = {"fp32": of("fp32", 1.0), "int8-u8s8-pc": of("int8-u8s8-pc", cosine)}
        judged = verdicts.judge(reports, {}, {"rpi4": load_profiles()["rpi4"]}, "r2")
        assert judged[0].passed == passes


def test_a_fallback_goes_to_boards_that_have_nothing_as_small() -> None:
    reports = {
        "fp32": report("fp32"),
        "int8-u8s8-pc": report("int8-u8s8-pc", 0.5, size=300),
        "int8-s8s8-pc": report("int8-s8s8-pc", size=300),
        "fp16-weights": report("fp16-weights", size=500),
    }
    profiles = load_profiles()
    lists, _ = verdicts.served(verdicts.judge(reports, {}, profiles, MAIN), profiles)
    assert lists["rpi4"] == ["fp16-weights", "fp32"]
    assert lists["rpi5"] == ["int8-s8s8-pc", "fp32"]


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
