"""Measures of the variants of a model of tensors: beside fp32, on items of a sample.

Runs foreign models: only in the child process of tensor_candidates.py, or in tests.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from onnx import ModelProto

from shoal import bundle
from shoal.controller.releases import verdicts
from shoal.controller.releases.records import OutputAgreement, VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32, Cpu
from shoal.controller.training.io import agreement, runtime, timing
from shoal.controller.training.io.agreement import Comparison
from shoal.controller.training.io.onnx_graph import nodes_of
from shoal.errors import ModelError
from shoal.golden import MOST_ELEMENTS
from shoal.profile import load_profiles, load_recipes
from shoal.signature import Signature
from shoal.tensors import MOST_UNEQUAL, TOLERANCES, Array, Named, StoredTensor

Run = Callable[[Named], dict[str, Array]]
#: Items that are run with another one, of the search's comparisons, and of the literal kernels.
_PAIRS, _SEARCHED, _LITERAL = 4, 8, 4
_TIMED = 16
#: Difference in company, over the largest value, that other kernels do not explain.
_COMPANY = 1e-3
#: Largest change by onnxruntime's kernels that is told from a broken file on a device.
MOST_BY_KERNELS = 0.25
#: Least tolerance of golden outputs of 8-bit arithmetic, as a share of the largest value.
_INT8_TOLERANCE = 0.1


class Sample(NamedTuple):
    """Items of one model: some to calibrate with, others to judge by. vectors: the golden ones'
    inputs."""

    calibration: Sequence[Named]
    held: Sequence[Named]
    vectors: Sequence[Named]


class TensorMeasures:
    """Measures of one model.

    compared   outputs that are the same from run to run
    memory_mb  estimate of what loading fp32 takes
    """

    def __init__(
        self,
        fp32: bytes,
        signature: Signature,
        sample: Sample,
        compared: Sequence[str],
        memory_mb: float,
        cpu: Cpu | None,
        comparison: Comparison | None = None,
    ) -> None:
        self._signature, self._sample, self._compared = signature, sample, compared
        self._memory_mb, self._cpu, self._profiles = memory_mb, cpu, load_profiles()
        self._compare = comparison or agreement.comparison_of(signature)
        self._fp32 = self._run_of(fp32, FP32)
        self._want = run_in_order(self._fp32, signature, sample.held)[1]
        self.feeds = run_in_order(self._fp32, signature, sample.calibration)[0]
        report = VariantReport(
            name=FP32, sha256=_sha256(fp32), size=len(fp32), metrics={}, cosine=1.0
        )
        itself = self._compare(self._kept(self._want), self._kept(self._want))
        self.given = {FP32: msgspec.structs.replace(report, metrics=itself.metrics)}

    def report_of(self, name: str, model: bytes) -> VariantReport:
        run = self._run_of(model, name)
        got = run_in_order(run, self._signature, self._sample.held)[1]
        found = self._compare(self._kept(self._want), self._kept(got))
        changes = self._by_kernels(run, model, name)
        outputs = [
            msgspec.structs.replace(one, by_kernels=changes.get(one.output, 0.0))
            for one in found.outputs
        ]
        return VariantReport(
            name=name,
            sha256=_sha256(model),
            size=len(model),
            metrics=found.metrics,
            cosine=min([one.cosine for one in outputs if one.cosine is not None], default=1.0),
            same_labels=min([one.same for one in outputs if one.same is not None], default=None),
            in_company=_scales_with_company(model) or self._depends_on_company(run),
            outputs=outputs,
            worse=found.why or next(filter(None, map(_unsteady, outputs)), ""),
        )

    def time_ratio(self, name: str, model: bytes) -> float:
        run = self._run_of(model, name)
        return timing.time_ratio(run, self._fp32, self._sample.held[:_TIMED])

    def distance(self, name: str, model: bytes) -> float:
        run, feeds = self._run_of(model, name), self.feeds[:_SEARCHED]
        return sum(
            _squared(one[key], other[key])
            for one, other in ((self._fp32(item), run(item)) for item in feeds)
            for key in self._compared
        )

    def damage(self, report: VariantReport) -> str:
        return report.worse

    def judge(
        self, reports: Mapping[str, VariantReport], skipped: Mapping[str, str]
    ) -> list[Verdict]:
        return verdicts.judge_tensors(reports, skipped, self._memory_mb, self._profiles, self._cpu)

    def golden_of(self, report: VariantReport, model: bytes) -> list[dict[str, StoredTensor]]:
        """What the variant answers to each golden vector, with the tolerance that was measured."""
        run = self._run_of(model, report.name)
        changes = {one.output: one.by_kernels for one in report.outputs}
        least = _INT8_TOLERANCE if _in_8_bits(report.name) else 0.0
        found = []
        for feeds in self._sample.vectors:
            answer = run(feeds)
            found.append(
                {
                    name: _stored(answer[name], max(least, 2 * changes.get(name, 0.0)))
                    for name in self._compared
                }
            )
        return found

    def _run_of(self, model: bytes, name: str, *, literal: bool = False) -> Run:
        session = runtime.open_session(model, name, only_check=literal)
        outputs = [tensor.name for tensor in self._signature.outputs]

        def run(feeds: Named) -> dict[str, Array]:
            try:
                return dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
            except Exception as error:
                raise ModelError(f"{name} fails: {runtime.message_of(error)}") from error

        return run

    def _kept(self, answers: Sequence[Named]) -> list[Named]:
        return [{name: answer[name] for name in self._compared} for answer in answers]

    def _by_kernels(self, run: Run, model: bytes, name: str) -> dict[str, float]:
        """Largest change of each output by onnxruntime's optimisations; none where it has no
        literal kernels."""
        items = self._sample.vectors[:_LITERAL]
        try:
            literal = self._run_of(model, name, literal=True)
            pairs = [(run(item), literal(item)) for item in items]
        except ModelError:
            return {}
        return {
            key: agreement.compare_output(
                key, [one[key] for one, _ in pairs], [other[key] for _, other in pairs], None
            ).max_error
            for key in self._compared
        }

    def _depends_on_company(self, run: Run) -> bool:
        """Whether an item answers otherwise beside another one, where the signature says that it
        does not."""
        if self._signature.together != "batch":
            return False
        *items, other = sorted(self._sample.held, key=_size)
        for one in items[:_PAIRS]:
            if any(one[name].shape != other[name].shape for name in one):
                continue
            alone, beside = run(one), run(self._stacked(one, other))
            for tensor in self._signature.outputs:
                if tensor.name in self._compared and tensor.batch is not None:
                    part = np.take(beside[tensor.name], [0], axis=tensor.batch)
                    if _differs(alone[tensor.name], part):
                        return True
        return False

    def _stacked(self, one: Named, other: Named) -> dict[str, Array]:
        axes = {tensor.name: tensor.batch for tensor in self._signature.inputs}
        return {
            name: array
            if (axis := axes[name]) is None
            else np.concatenate([array, other[name]], axis=axis)
            for name, array in one.items()
        }


def run_in_order(
    run: Run, signature: Signature, items: Sequence[Named]
) -> tuple[list[Named], list[Named]]:
    """Inputs and answers of items; of a recurrent model as one sequence, each with the states that
    the one before has left, so that errors add up as they will in service."""
    fed: list[Named] = []
    answers: list[Named] = []
    for item in items:
        feeds = dict(item)
        for state in signature.states if answers else ():
            left = answers[-1][state.given]
            if left.shape == feeds[state.taken].shape:
                feeds[state.taken] = left
        fed.append(feeds)
        answers.append(run(feeds))
    return fed, answers


def _unsteady(one: OutputAgreement) -> str:
    if one.by_kernels <= MOST_BY_KERNELS:
        return ""
    return (
        f"{one.output}: onnxruntime's kernels change it by {one.by_kernels:.2f} of its largest "
        f"value, {MOST_BY_KERNELS:g} allowed: a device could not tell it from a broken file"
    )


def _in_8_bits(name: str) -> bool:
    recipe = load_recipes().get(name)
    return recipe is not None and recipe.quantizer in ("static", "dynamic")


def _stored(array: Array, tolerance: float) -> StoredTensor:
    usual = TOLERANCES.get(str(StoredTensor.of(array[:0]).datatype), MOST_UNEQUAL)
    return StoredTensor.of(array, MOST_ELEMENTS, min(1.0, tolerance) if tolerance > usual else 0.0)


def _scales_with_company(model: bytes) -> bool:
    """Whether it takes the scale of its activations from all items that run together."""
    graph = ModelProto.FromString(model).graph
    return any(node.op_type.startswith("DynamicQuantize") for node in nodes_of(graph))


def _size(item: Named) -> float:
    """Of an item's numbers: a scale taken from the largest item is most wrong for the smallest."""
    floats = [array for array in item.values() if array.dtype.kind == "f"]
    return sum(float(np.abs(np.nan_to_num(array)).sum(dtype=np.float64)) for array in floats)


def _differs(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return True
    if a.dtype.kind != "f":
        return bool((a != b).any())
    return not np.abs(a - b).max(initial=0.0) <= _COMPANY * (np.abs(a).max(initial=0.0) or 1.0)


def _squared(a: Array, b: Array) -> float:
    """Mean squared difference as a share of the largest value of `a`; infinite where unequal in
    shape."""
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return float((a != b).mean()) if a.size else 0.0
    largest = float(np.abs(a).max(initial=0.0)) or 1.0
    return float(np.square((a.astype(np.float64) - b) / largest).mean()) if a.size else 0.0


def _sha256(model: bytes) -> str:
    return bundle.describe("", model).sha256
