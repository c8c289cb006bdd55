"""Which forms of a model its boards get: tried, measured beside fp32, and kept where they pay.

A static form that fails its gate is made again without the nodes whose quantization costs the
most (sensitivity search). Forms for boards without a better one are tried last, and all of them
have a time limit together.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from onnx import ModelProto

from shoal.controller.releases import verdicts
from shoal.controller.releases.records import VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import comparison, quantize, runtime
from shoal.controller.training.io.rows import Data
from shoal.controller.training.io.validate import MAIN
from shoal.controller.training.io.variants import Variants
from shoal.controller.training.jobs import ReportProgress
from shoal.errors import ModelError
from shoal.profile import Profile, Recipe, load_profiles, load_recipes

#: Seconds for all candidates of a model together.
LIMIT_S = 600.0
#: Seconds of fp32 runs that calibrating may take, and rows that it takes in any case.
_CALIBRATION_S, _LEAST_ROWS = 30.0, 16
#: Share of fp32's size at which no fallback is tried.
_SMALL = 0.5
#: Groups of nodes that the search tells apart, and rows that it compares outputs for.
_GROUPS, _SEARCH_ROWS = 12, 256


class Judged(NamedTuple):
    """Reports of every candidate, those of variants that stay in the release first, and the
    verdicts on them; see VariantReport.dropped."""

    reports: dict[str, VariantReport]
    verdicts: list[Verdict]


def judge_candidates(
    built: Variants,
    data: Data,
    task: str,
    progress: ReportProgress,
    imported: Sequence[str] = (),
    limit_s: float = LIMIT_S,
) -> Judged:
    """Make and measure every variant that some profile wants; drop those that no profile takes.

    Changes `built`: files are added, and reasons and notes.

    imported   variants that a person gave: measured, and never dropped from the release
    limit_s    seconds for all that are made here
    """
    trial = _Trial(built, data, task, progress, imported, limit_s)
    try:
        return trial.run()
    finally:
        trial.quantizer.close()


class _Trial:
    """One model's candidates."""

    def __init__(
        self,
        built: Variants,
        data: Data,
        task: str,
        progress: ReportProgress,
        imported: Sequence[str],
        limit_s: float,
    ) -> None:
        self._built, self._data, self._main = built, data, MAIN[task]
        self._progress, self._imported = progress, imported
        self._began, self._limit_s, self._longest_s = time.monotonic(), limit_s, 0.0
        self._profiles, self._cpu = load_profiles(), comparison.read_cpu()
        self._costs: list[float] = []
        self._dropped: dict[str, VariantReport] = {}
        self._model = ModelProto.FromString(built.files[FP32])
        self._fp32 = comparison.reference_of(built.files[FP32], data.held, task)
        self._reports = {
            name: comparison.report_of(name, model, self._fp32)
            for name, model in built.files.items()
        }
        most = int(_CALIBRATION_S / max(self._fp32.row_s, 1e-9))
        most = min(quantize.CALIBRATION_ROWS, max(_LEAST_ROWS, most))
        self.quantizer = quantize.Quantizer(self._model, data.train.x, most)

    def run(self) -> Judged:
        wanted = _wanted(self._profiles)
        for at, (name, recipe) in enumerate(wanted):
            if name in self._built.files:
                continue
            self._at = 0.45 + 0.35 * at / len(wanted)
            if why := self._needless(name, recipe) or self._try(name, recipe):
                self._built.skipped[name] = why
                if name not in self._dropped:
                    self._dropped[name] = VariantReport(
                        name=name, sha256="", size=0, metrics={}, cosine=0.0, dropped=why
                    )
        found = self._judge()
        for name in [*self._built.files]:
            if name in (FP32, *self._imported) or _passes(found, name):
                continue
            reasons = sorted({v.why for v in found if v.variant == name})
            self._drop(self._reports.pop(name), "; ".join(reasons))
            del self._built.files[name]
        return Judged({**self._reports, **self._dropped}, found)

    def _drop(self, report: VariantReport, why: str) -> None:
        self._dropped[report.name] = msgspec.structs.replace(report, dropped=why)

    def _judge(self) -> list[Verdict]:
        return verdicts.judge(
            self._reports,
            self._built.skipped,
            self._profiles,
            self._main,
            imported=self._imported,
            cpu=self._cpu,
        )

    def _needless(self, name: str, recipe: Recipe) -> str:
        """Why a candidate need not be tried; "" if it must."""
        if why := quantize.not_quantizable(self._model, recipe.quantizer):
            return why
        if recipe.fallback:
            small = {
                n for n, r in self._reports.items() if r.size <= _SMALL * self._reports[FP32].size
            }
            served = {v.profile for v in self._judge() if v.passed and v.variant in small}
            if all(p.name in served for p in self._profiles.values() if name in p.variants):
                return "not needed: a variant that is preferred passed, and has half of fp32's size"
        if self._out_of_time():
            return self._no_time()
        return ""

    def _out_of_time(self) -> bool:
        return time.monotonic() - self._began + self._longest_s > self._limit_s

    def _no_time(self) -> str:
        spent = time.monotonic() - self._began
        return (
            f"skipped for time: {spent:.0f} s spent on the model's variants, "
            f"{self._limit_s:.0f} allowed"
        )

    def _try(self, name: str, recipe: Recipe) -> str:
        """Make, measure and keep a candidate; the reason if it cannot be used by any profile."""
        self._progress(self._at, f"quantizing {name}")
        try:
            made, report = self._measured(name, recipe)
            why = self._damage(report)
            if why and recipe.quantizer == "static":
                less = self._search(name, recipe)
                if less is not None:
                    (made, report), why = less, ""
                elif self._out_of_time():
                    why = f"{why}; {self._no_time()}"
            if why:
                self._drop(report, why)
                return why
            self._progress(self._at, f"timing {name}")
            ratio = comparison.time_ratio(
                runtime.open_session(made, name), self._fp32.session, self._data.held.x
            )
        except ModelError as error:
            return error.message
        self._built.files[name] = made
        self._reports[name] = msgspec.structs.replace(report, time_ratio=ratio)
        return ""

    def _measured(
        self, name: str, recipe: Recipe, excluded: Sequence[str] = ()
    ) -> tuple[bytes, VariantReport]:
        began = time.monotonic()
        made = self.quantizer.make(recipe, name, excluded)
        report = comparison.report_of(name, made, self._fp32, timed=False)
        self._longest_s = max(self._longest_s, time.monotonic() - began)
        return made, report

    def _damage(self, report: VariantReport) -> str:
        """Why no profile may run it, whatever it costs; "" if one may."""
        if report.in_company:
            return verdicts.IN_COMPANY
        reasons = [
            verdicts.damage(report, self._reports[FP32], profile.gate, self._main)
            for profile in self._profiles.values()
            if report.name in profile.variants
        ]
        return "" if "" in reasons or not reasons else reasons[0]

    def _search(self, name: str, recipe: Recipe) -> tuple[bytes, VariantReport] | None:
        """The form with the fewest groups of nodes left in float32 that passes; None: no such."""
        groups = _groups(self.quantizer.nodes())
        if len(groups) < 2:
            return None
        costs = self._costs = self._costs or self._cost_each(name, recipe, groups)
        order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
        for many in range(1, min(len(groups), len(order) + 1)):
            found = self._without(name, recipe, [groups[i] for i in order[:many]])
            if found is not None:
                return self._put_back(name, recipe, [groups[i] for i in order[:many]], found)
            if self._out_of_time():
                break
        return None

    def _cost_each(self, name: str, recipe: Recipe, groups: Sequence[Sequence[str]]) -> list[float]:
        """Mean squared difference of outputs on training rows when only that group is quantized;
        of fewer groups when time runs out."""
        x = _spread(self._data.train.x, _SEARCH_ROWS)
        want, every = runtime.run(self._fp32.session, x, FP32), [n for g in groups for n in g]
        costs: list[float] = []
        for group in groups:
            if self._out_of_time():
                break
            self._progress(self._at, f"{name}: what quantizing {_words(group)} costs")
            rest = [node for node in every if node not in group]
            try:
                outputs = runtime.outputs(self.quantizer.make(recipe, name, rest), x, name)
                cost = float(np.square(outputs.astype(np.float64) - want).mean())
            except ModelError:
                cost = np.inf
            costs.append(cost if np.isfinite(cost) else np.inf)
        return costs

    def _without(
        self, name: str, recipe: Recipe, left: Sequence[Sequence[str]]
    ) -> tuple[bytes, VariantReport] | None:
        """The form without these groups, if it passes."""
        nodes = [node for group in left for node in group]
        self._progress(self._at, f"quantizing {name} but for {_words(nodes)}")
        try:
            made, report = self._measured(name, recipe, nodes)
        except ModelError:
            return None
        if self._damage(report):
            return None
        return made, msgspec.structs.replace(report, detail=f"quantized but for {_words(nodes)}")

    def _put_back(
        self,
        name: str,
        recipe: Recipe,
        left: list[Sequence[str]],
        found: tuple[bytes, VariantReport],
    ) -> tuple[bytes, VariantReport]:
        """Quantize again what was left out and need not be, while there is time."""
        for group in left[:-1]:
            if self._out_of_time():
                break
            fewer = [one for one in left if one is not group]
            if (smaller := self._without(name, recipe, fewer)) is not None:
                left, found = fewer, smaller
        return found


def _wanted(profiles: Mapping[str, Profile]) -> list[tuple[str, Recipe]]:
    """Recipes that some profile wants, those for boards without a better one last."""
    asked = {variant for profile in profiles.values() for variant in profile.variants}
    found = [(n, r) for n, r in load_recipes().items() if n in asked and r.quantizer != "none"]
    return sorted(found, key=lambda one: one[1].fallback)


def _passes(found: Sequence[Verdict], name: str) -> bool:
    return any(v.passed for v in found if v.variant == name)


def _groups(nodes: Sequence[str]) -> list[Sequence[str]]:
    """Neighbouring nodes in at most _GROUPS groups."""
    return [part.tolist() for part in np.array_split(nodes, min(len(nodes), _GROUPS)) if len(part)]


def _words(nodes: Sequence[str]) -> str:
    """Names, the first few.

    >>> _words(["Conv_0", "Gemm_1"]), _words(["a", "b", "c", "d", "e"])
    ('Conv_0, Gemm_1', 'a, b, c and 2 more')
    """
    if len(nodes) <= 4:
        return ", ".join(nodes)
    return f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"


def _spread(x: runtime.F32, most: int) -> runtime.F32:
    return x[np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int))]
