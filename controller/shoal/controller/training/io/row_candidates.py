"""Candidates of a model of rows, measured on held-back rows of its dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from shoal.controller.releases import verdicts
from shoal.controller.releases.records import VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import comparison, runtime
from shoal.controller.training.io.candidates import LIMIT_S, Judged, Trial
from shoal.controller.training.io.onnx_graph import INPUT
from shoal.controller.training.io.quantize import Quantizer
from shoal.controller.training.io.rows import Data
from shoal.controller.training.io.validate import MAIN
from shoal.controller.training.io.variants import Variants
from shoal.controller.training.jobs import ReportProgress
from shoal.profile import load_profiles
from shoal.tensors import Named

#: Rows to calibrate with, in batches; seconds of fp32 runs that it may take, and rows in any case.
CALIBRATION_ROWS, _BATCH = 512, 64
_CALIBRATION_S, _LEAST_ROWS = 30.0, 16
#: Rows that the search compares outputs for.
_SEARCH_ROWS = 256


def judge_candidates(
    built: Variants,
    data: Data,
    task: str,
    progress: ReportProgress,
    imported: Sequence[str] = (),
    limit_s: float = LIMIT_S,
) -> Judged:
    """Make and measure every variant that some profile wants; add those that stay to `built.files`.

    imported   variants that a person gave: measured, and never dropped from the release
    limit_s    seconds for all that are made here
    """
    measures = RowMeasures(built, data, task, imported)
    model = ModelProto.FromString(built.files[FP32])
    quantizer = Quantizer(model, batches(data.train.x, measures.calibration_rows))
    try:
        trial = Trial(
            model,
            quantizer,
            measures,
            measures.given,
            lambda share, step: progress(0.45 + 0.35 * share, step),
            limit_s=limit_s,
        )
        found = trial.run()
    finally:
        quantizer.close()
    built.files.update(found.files)
    return found


def batches(x: runtime.F32, most: int = CALIBRATION_ROWS) -> list[Named]:
    """At most `most` rows of x (n, F), spread evenly, in runs of a model of rows."""
    chosen = _spread(x, most)
    step = min(_BATCH, runtime.rows_per_run(chosen))
    return [{INPUT: chosen[i : i + step]} for i in range(0, len(chosen), step)]


class RowMeasures:
    """Measures of one model of rows; given: reports of the variants that are there already."""

    def __init__(self, built: Variants, data: Data, task: str, imported: Sequence[str]) -> None:
        self._data, self._main, self._imported = data, MAIN[task], imported
        self._profiles, self._cpu = load_profiles(), comparison.read_cpu()
        self._fp32 = comparison.reference_of(built.files[FP32], data.held, task)
        self.given = {
            name: comparison.report_of(name, model, self._fp32)
            for name, model in built.files.items()
        }
        most = int(_CALIBRATION_S / max(self._fp32.row_s, 1e-9))
        self.calibration_rows = min(CALIBRATION_ROWS, max(_LEAST_ROWS, most))

    def report_of(self, name: str, model: bytes) -> VariantReport:
        return comparison.report_of(name, model, self._fp32, timed=False)

    def time_ratio(self, name: str, model: bytes) -> float:
        session = runtime.open_session(model, name)
        return comparison.row_time_ratio(session, self._fp32.session, self._data.held.x)

    def distance(self, name: str, model: bytes) -> float:
        x = _spread(self._data.train.x, _SEARCH_ROWS)
        want = runtime.run(self._fp32.session, x, FP32)
        got = runtime.outputs(model, x, name)
        return float(np.square(got.astype(np.float64) - want).mean())

    def damage(self, report: VariantReport) -> str:
        if report.in_company:
            return verdicts.IN_COMPANY
        reasons = [
            verdicts.damage(report, self.given[FP32], profile.gate, self._main)
            for profile in self._profiles.values()
            if report.name in profile.variants
        ]
        return "" if "" in reasons or not reasons else reasons[0]

    def judge(
        self, reports: Mapping[str, VariantReport], skipped: Mapping[str, str]
    ) -> list[Verdict]:
        return verdicts.judge(
            reports, skipped, self._profiles, self._main, imported=self._imported, cpu=self._cpu
        )


def _spread(x: runtime.F32, most: int) -> runtime.F32:
    return x[np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int))]
