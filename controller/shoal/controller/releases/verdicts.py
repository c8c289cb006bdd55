"""Gates of a release: which variants each profile may run, before the release is signed.

A variant is judged by the task (metric and labels against fp32 on held-back rows), and dropped
where it costs more than fp32 in bytes or CPU time; of a model of tensors also the memory that it is
estimated to take. Latency and memory are measured by the device itself, in its probe.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from shoal.controller.releases.records import VariantReport, Verdict
from shoal.profile import Profile, QuantizationGate, load_recipes

FP32 = "fp32"
#: Loss of the main metric allowed to federated rounds, unless chance explains more.
ALLOWED_LOSS = 0.02
#: Resident MB of a process with onnxruntime and no model: docs/performance.md.
RUNTIME_MB = 53
IN_COMPANY = "its answer to a row depends on the rows that run with it, and devices batch requests"
_MB = 1 << 20
#: A preferred variant may be so much larger than one that it replaces.
_ABOUT = 1.1
#: Share of fp32's bytes, or of its time, that a variant needs at most to be worth a file.
_SMALLER, _FASTER = 0.95, 0.85


class Cpu(NamedTuple):
    """The CPU on which variants were timed: architecture and flags, as devices report theirs."""

    arch: str = ""
    flags: frozenset[str] = frozenset()

    def speaks_for(self, profile: Profile) -> bool:
        """Whether what is slow here is slow on the profile's boards: the same architecture, and
        every flag that the profile needs. A flag that it excludes only makes int8 faster here."""
        match = profile.match
        return (
            match.arch == self.arch
            and self.flags >= set(match.all_flags)
            and (not match.any_flags or bool(self.flags & set(match.any_flags)))
        )


def judge(
    reports: Mapping[str, VariantReport],
    skipped: Mapping[str, str],
    profiles: Mapping[str, Profile],
    main: str,
    *,
    imported: Collection[str] = (),
    cpu: Cpu | None = None,
) -> list[Verdict]:
    """One verdict for each variant of each profile.

    reports   variant -> measurements; fp32 must be among them
    skipped   variant -> why it was not built
    main      name of the metric that the gate compares
    imported  variants that a person gave: what they cost is for the device to measure
    cpu       that variants were timed on; None to judge no time
    """
    found = []
    for profile in profiles.values():
        timed = cpu is not None and cpu.speaks_for(profile)
        passed: list[VariantReport] = []
        for variant in profile.variants:
            report = reports.get(variant)
            if report is None:
                why = skipped.get(variant, "it was not built")
            else:
                why = _why_failed(report, reports[FP32], profile, main)
                if variant not in (FP32, *imported):
                    why = why or _why_costly(report, reports[FP32], profile.gate, timed=timed)
                    why = why or _why_needless(report, passed)
                if not why:
                    passed.append(report)
            found.append(Verdict(profile=profile.name, variant=variant, passed=not why, why=why))
    return found


def damage(report: VariantReport, fp32: VariantReport, gate: QuantizationGate, main: str) -> str:
    """What a variant loses beyond the gate, by the task; "" if it does not."""
    if report.name == FP32:
        return ""
    if report.not_finite:
        return f"NaN or infinity in its outputs for {report.not_finite} held-back rows"
    drop = fp32.metrics[main] - report.metrics[main]
    if drop > gate.max_metric_drop:
        return (
            f"{main} {report.metrics[main]:.3f} against {fp32.metrics[main]:.3f} of fp32: "
            f"{drop:.3f} lost, {gate.max_metric_drop:g} allowed"
        )
    if report.same_labels is not None and report.same_labels < gate.min_same_labels:
        return (
            f"fp32's label on {report.same_labels:.1%} of held-back rows, "
            f"{gate.min_same_labels:.0%} needed"
        )
    if main == "r2" and report.cosine < gate.min_cosine:
        return (
            f"its outputs' correlation with fp32's is {report.cosine:.4f}, "
            f"{gate.min_cosine:g} needed"
        )
    return ""


def judge_tensors(
    reports: Mapping[str, VariantReport],
    skipped: Mapping[str, str],
    memory_mb: float,
    profiles: Mapping[str, Profile],
    cpu: Cpu | None = None,
) -> list[Verdict]:
    """Verdicts on a model of tensors and its variants.

    memory_mb   estimate of what loading fp32 takes; others as `judge`
    """
    found = []
    for profile in profiles.values():
        timed = cpu is not None and cpu.speaks_for(profile)
        passed: list[VariantReport] = []
        for variant in profile.variants:
            report = reports.get(variant)
            if report is None:
                why = skipped.get(variant, "it was not built")
            else:
                needed = memory_mb * _share_in_memory(report, reports[FP32])
                why = report.worse or why_too_large(report.size, needed, profile)
                if variant != FP32:
                    why = why or _why_costly(report, reports[FP32], profile.gate, timed=timed)
                    why = why or _why_needless(report, passed)
                if not why:
                    passed.append(report)
            found.append(Verdict(profile=profile.name, variant=variant, passed=not why, why=why))
    return found


def _share_in_memory(report: VariantReport, fp32: VariantReport) -> float:
    """Memory of a variant over fp32's: its bytes, unless its weights are widened when loaded."""
    recipe = load_recipes().get(report.name)
    if recipe is None or recipe.quantizer not in ("static", "dynamic", "float16"):
        return 1.0
    return min(1.0, report.size / max(fp32.size, 1))


def carriers(size: int, memory_mb: float, profiles: Mapping[str, Profile]) -> list[Verdict]:
    """Whether each profile can carry a file as it is: one verdict for each."""
    found = []
    for profile in profiles.values():
        why = profile.unsupported or why_too_large(size, memory_mb, profile)
        found.append(Verdict(profile=profile.name, variant=FP32, passed=not why, why=why))
    return found


def why_too_large(size: int, memory_mb: float, profile: Profile) -> str:
    """Why a board of `profile` cannot carry a file of so many bytes that takes so much memory once
    it is loaded; "" if it can."""
    budget = profile.budget
    if size > budget.model_mb * _MB:
        return f"{size / _MB:.1f} MB, the profile's budget is {budget.model_mb:g}"
    resident = RUNTIME_MB + memory_mb
    if resident > budget.rss_mb:
        return (
            f"about {resident:.0f} MB resident with onnxruntime, "
            f"the profile's budget is {budget.rss_mb:g}"
        )
    return ""


def served(
    verdicts: Sequence[Verdict], profiles: Mapping[str, Profile]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Profile -> variants that passed, best first; and profile -> why none did."""
    lists, refused = {}, {}
    for name, profile in profiles.items():
        mine = [v for v in verdicts if v.profile == name]
        passed = [v.variant for v in mine if v.passed]
        if passed:
            lists[name] = passed
        else:
            refused[name] = profile.unsupported or "; ".join(f"{v.variant}: {v.why}" for v in mine)
    return lists, refused


def overridden(
    verdicts: Sequence[Verdict], built: Sequence[str], profiles: Mapping[str, Profile]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """As `served`, but every built variant passes: a person has overridden the gates."""
    passed = [
        Verdict(profile=v.profile, variant=v.variant, passed=v.variant in built, why=v.why)
        for v in verdicts
    ]
    return served(passed, profiles)


def no_better_than_guessing(task: str, metrics: Mapping[str, float], labels: int) -> str:
    """Why the model as a whole is refused; "" if it beats chance."""
    if task == "regression":
        r2 = metrics["r2"]
        return "" if r2 > 0 else f"R² {r2:.2f} on held-back rows: the mean guesses as well"
    found, chance = metrics["balanced_accuracy"], 1 / max(labels, 1)
    if found > chance * 1.05:
        return ""
    return f"balanced accuracy {found:.2f} on held-back rows: guessing gives {chance:.2f}"


def worse_than(
    before: str, then: Mapping[str, float], metrics: Mapping[str, float], main: str, rows: float
) -> str:
    """Why a model is refused that does worse than `before` on the same held-back rows; "" if it
    does not, or if nothing can be compared.

    then, metrics   of `before`, and of the model; main: a metric where more is better
    rows            number of held-out rows: with few, a small loss is noise
    """
    if main not in then or main not in metrics:
        return ""
    drop, allowed = then[main] - metrics[main], max(ALLOWED_LOSS, _by_chance(then[main], rows))
    if drop <= allowed:
        return ""
    return (
        f"{main} {metrics[main]:.4f} against {then[main]:.4f} of {before} on the same held-back "
        f"rows: {drop:.4f} lost, {allowed:.2g} allowed"
    )


def _by_chance(share: float, rows: float) -> float:
    """Two standard deviations between two shares of so many rows; R² is taken for one."""
    share = min(max(share, 0.0), 1.0)
    return 2 * math.sqrt(2 * share * (1 - share) / max(rows, 1.0))


def _why_failed(report: VariantReport, fp32: VariantReport, profile: Profile, main: str) -> str:
    if why := why_too_large(report.size, 0.0, profile):
        return why
    if why := damage(report, fp32, profile.gate, main):
        return why
    if report.in_company:
        return IN_COMPANY
    return ""


def _why_costly(
    report: VariantReport, fp32: VariantReport, gate: QuantizationGate, *, timed: bool
) -> str:
    """What a variant costs beyond fp32; "" if it pays. timed: its time_ratio counts."""
    if report.size > fp32.size:
        return f"{report.size / fp32.size:.2f}x fp32's size"
    ratio = report.time_ratio if timed else None
    if ratio is not None and ratio > gate.max_time_ratio:
        return f"{ratio:.2f}x fp32's time, {gate.max_time_ratio:g} allowed"
    if report.size > _SMALLER * fp32.size and (ratio is None or ratio > _FASTER):
        took = "" if ratio is None else f" and {ratio:.2f}x its time"
        return f"{report.size / fp32.size:.2f}x fp32's size{took}: it saves next to nothing"
    return ""


def _why_needless(report: VariantReport, passed: Sequence[VariantReport]) -> str:
    """Why a fallback is not listed: something that the profile prefers passed, and is as small."""
    recipe = load_recipes().get(report.name)
    if recipe is None or not recipe.fallback:
        return ""
    better = next((one for one in passed if one.size <= _ABOUT * report.size), None)
    return f"{better.name} passed, is preferred and about as small" if better else ""
