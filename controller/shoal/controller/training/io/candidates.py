"""Which forms of a model its boards get: tried, measured beside fp32, and kept where they pay.

Forms for boards without a better one are tried last. A static form that fails its gate is then
made again without the nodes whose quantization costs the most (sensitivity search). All of it has
a time limit.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from onnx import ModelProto

from shoal.controller.releases.records import VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import quantize
from shoal.controller.training.io.quantize import Quantizer
from shoal.controller.training.jobs import ReportProgress
from shoal.errors import ModelError
from shoal.profile import Profile, Recipe, load_profiles, load_recipes

#: Seconds for all candidates of a model together.
LIMIT_S = 600.0
#: Share of fp32's size at which no fallback is tried.
_SMALL = 0.5
#: Groups of nodes that the search tells apart.
_GROUPS = 12


class Judged(NamedTuple):
    """Reports of every candidate, those of variants that stay in the release first, and the
    verdicts on them; see VariantReport.dropped. files: what stays, by name."""

    reports: dict[str, VariantReport]
    verdicts: list[Verdict]
    files: dict[str, bytes]


class Measures(Protocol):
    """How candidates of one model are measured: rows against a dataset, tensors against samples.

    report_of    of a variant, without its time; ModelError when it cannot be loaded or run
    time_ratio   CPU time of one item over fp32's
    distance     mean squared difference from fp32's outputs: which of two forms is worse
    damage       why no profile may run it, whatever it costs; "" if one may
    judge        verdicts for every profile and variant; skipped: variant -> why it was not made
    """

    def report_of(self, name: str, model: bytes) -> VariantReport: ...
    def time_ratio(self, name: str, model: bytes) -> float: ...
    def distance(self, name: str, model: bytes) -> float: ...
    def damage(self, report: VariantReport) -> str: ...
    def judge(
        self, reports: Mapping[str, VariantReport], skipped: Mapping[str, str]
    ) -> list[Verdict]: ...


class Trial:
    """One model's candidates.

    reports    of what is there already: fp32, and variants that a person gave
    skipped    candidates that are not to be tried: why
    limit_s    seconds for all that are made here
    trying     is told the name of each candidate before it is made
    """

    def __init__(
        self,
        model: ModelProto,
        quantizer: Quantizer,
        measures: Measures,
        reports: Mapping[str, VariantReport],
        progress: ReportProgress,
        *,
        skipped: Mapping[str, str] = {},
        limit_s: float = LIMIT_S,
        trying: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._model, self._quantizer, self._measures = model, quantizer, measures
        self._given, self._reports = frozenset(reports), dict(reports)
        self._progress, self._skipped, self._trying = progress, dict(skipped), trying
        self._began, self._limit_s, self._longest_s = time.monotonic(), limit_s, 0.0
        self._profiles = load_profiles()
        self._costs: list[float] = []
        self._left: list[Sequence[str]] = []
        self._files: dict[str, bytes] = {}
        self._dropped: dict[str, VariantReport] = {}

    def run(self) -> Judged:
        """Make and measure every variant that some profile wants; drop those that none takes."""
        wanted = _wanted(self._profiles)
        for at, (name, recipe) in enumerate(wanted):
            if name in self._given:
                continue
            self._at = at / len(wanted) / 2
            why = self._skipped.get(name) or self._needless(name, recipe)
            if why := why or self._try(name, recipe):
                self._skipped[name] = why
                if name not in self._dropped:
                    self._drop(_unmade(name), why)
        self._search_again([(n, r) for n, r in wanted if r.quantizer == "static"])
        found = self._judge()
        for name in [*self._files]:
            if not _passes(found, name):
                reasons = sorted({v.why for v in found if v.variant == name})
                self._drop(self._reports.pop(name), "; ".join(reasons))
                del self._files[name]
        return Judged({**self._reports, **self._dropped}, found, self._files)

    def _drop(self, report: VariantReport, why: str) -> None:
        self._dropped[report.name] = msgspec.structs.replace(report, dropped=why)

    def _judge(self) -> list[Verdict]:
        return self._measures.judge(self._reports, self._skipped)

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
        self._trying(name)
        self._progress(self._at, f"quantizing {name}")
        try:
            made, report = self._measured(name, recipe)
            if why := self._measures.damage(report):
                self._drop(report, why)
                return why
            self._keep(name, made, report)
        except ModelError as error:
            return error.message
        return ""

    def _keep(self, name: str, made: bytes, report: VariantReport) -> None:
        self._progress(self._at, f"timing {name}")
        ratio = self._measures.time_ratio(name, made)
        self._files[name] = made
        self._reports[name] = msgspec.structs.replace(report, time_ratio=ratio)

    def _search_again(self, static: Sequence[tuple[str, Recipe]]) -> None:
        """Make static forms again that lose too much, without what quantization ruins."""
        for at, (name, recipe) in enumerate(static):
            if name not in self._dropped or not self._dropped[name].size:
                continue
            self._at = 0.5 + at / len(static) / 2
            self._trying(name)
            try:
                if (found := self._search(name, recipe)) is not None:
                    self._keep(name, *found)
                    del self._skipped[name], self._dropped[name]
                elif self._out_of_time():
                    why = f"{self._dropped[name].dropped}; {self._no_time()}"
                    self._drop(self._dropped[name], why)
            except ModelError:
                continue

    def _measured(
        self, name: str, recipe: Recipe, excluded: Collection[str] = ()
    ) -> tuple[bytes, VariantReport]:
        began = time.monotonic()
        made = self._quantizer.make(recipe, name, excluded)
        report = self._measures.report_of(name, made)
        self._longest_s = max(self._longest_s, time.monotonic() - began)
        return made, report

    def _search(self, name: str, recipe: Recipe) -> tuple[bytes, VariantReport] | None:
        """The form with the fewest groups of nodes left in float32 that passes; None: no such."""
        groups = _groups(self._quantizer.nodes())
        if len(groups) < 2:
            return None
        if self._left:  # what another static form of the model had to leave out
            found = self._without(name, recipe, self._left)
            if found is not None:
                return found
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
        """Distance of the outputs when only that group is quantized; of fewer groups when time
        runs out."""
        every = [node for group in groups for node in group]
        costs: list[float] = []
        for group in groups:
            if self._out_of_time():
                break
            self._progress(self._at, f"{name}: what quantizing {_words(group)} costs")
            rest = [node for node in every if node not in group]
            try:
                cost = self._measures.distance(name, self._quantizer.make(recipe, name, rest))
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
        if self._measures.damage(report):
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
        self._left = left
        return found


def _wanted(profiles: Mapping[str, Profile]) -> list[tuple[str, Recipe]]:
    """Recipes that some profile wants, those for boards without a better one last."""
    asked = {variant for profile in profiles.values() for variant in profile.variants}
    found = [(n, r) for n, r in load_recipes().items() if n in asked and r.quantizer != "none"]
    return sorted(found, key=lambda one: one[1].fallback)


def _unmade(name: str) -> VariantReport:
    return VariantReport(name=name, sha256="", size=0, metrics={}, cosine=0.0)


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
