"""Whether a variant's outputs agree with fp32's: by the task's own measure, or by numbers alone."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.controller.releases.records import OutputAgreement
from shoal.signature import Signature
from shoal.task_outputs import items_first
from shoal.tasks import Task
from shoal.tensors import Array, Named

F64 = npt.NDArray[np.float64]
#: Gate of a model of which nothing is claimed: worst cosine, and share of the same largest element.
LEAST_COSINE, LEAST_SAME = 0.99, 0.95
#: Largest error of an output that has a single number an item, of which no cosine says anything.
MOST_ERROR = 0.05
#: Items for a correlation, axes of scores beside that of the items, and classes, at least.
_FEW, _RANK, _CLASSES = 3, 2, 2


class Agreement(NamedTuple):
    """What was compared. metrics: of the task, if there is one; why: it does not agree, "" if it
    does."""

    outputs: list[OutputAgreement]
    metrics: dict[str, float]
    why: str


class Comparison(Protocol):
    """The measure of one task.

    `want` are fp32's outputs by name, `got` the variant's, an entry for each held-back item.
    NaN or infinity where fp32 has none must fail.
    """

    def __call__(self, want: Sequence[Named], got: Sequence[Named]) -> Agreement: ...


def comparison_of(signature: Signature) -> Comparison:
    """The comparison of a model of which nothing is claimed: each output by itself."""
    axes = {tensor.name: tensor.batch for tensor in signature.outputs}
    states = {state.given for state in signature.states}

    def compare(want: Sequence[Named], got: Sequence[Named]) -> Agreement:
        outputs = []
        for name in want[0]:
            one = compare_output(name, [w[name] for w in want], [g[name] for g in got], axes[name])
            outputs.append(msgspec.structs.replace(one, same=None) if name in states else one)
        return Agreement(outputs, {}, next(filter(None, map(why_not, outputs)), ""))

    return compare


def comparison_of_task(task: Task, signature: Signature) -> Comparison:
    """The comparison of a model with a task: what its answers mean, whatever the numbers are.

    Outputs are still described each by itself, and a number that became NaN fails.
    """
    from shoal.controller.training.io import task_metrics  # which loads scikit-learn

    by_output = comparison_of(signature)

    def compare(want: Sequence[Named], got: Sequence[Named]) -> Agreement:
        found = by_output(want, got)
        broken = [one for one in found.outputs if not np.isfinite(one.max_error)]
        if broken:
            return found._replace(why=why_not(broken[0]))
        firsts = [[items_first(signature, one) for one in answers] for answers in (want, got)]
        meant = task_metrics.agreement(task, *firsts)
        return found._replace(metrics=meant.metrics, why=meant.why)

    return compare


def why_not(one: OutputAgreement) -> str:
    """What an output lacks; "" if it agrees."""
    if not np.isfinite(one.max_error):
        return f"{one.output}: NaN, infinity or another shape where fp32 has a number"
    if one.same is not None and one.same < LEAST_SAME:
        return (
            f"{one.output}: fp32's largest element on {one.same:.1%} of held-back items, "
            f"{LEAST_SAME:.0%} needed"
        )
    if one.cosine is not None and one.cosine < LEAST_COSINE:
        return f"{one.output}: worst cosine to fp32's {one.cosine:.4f}, {LEAST_COSINE:g} needed"
    if one.cosine is None and one.same is None and one.max_error > MOST_ERROR:
        return f"{one.output}: error {one.max_error:.3f} of its largest, {MOST_ERROR:g} allowed"
    return ""


def compare_output(
    name: str, want: Sequence[Array], got: Sequence[Array], batch: int | None
) -> OutputAgreement:
    """One output, an array for each item. batch: its axis that counts items."""
    fits = all(w.shape == g.shape and w.dtype == g.dtype for w, g in zip(want, got, strict=True))
    if not fits:
        return OutputAgreement(output=name, max_error=float("inf"))
    if want[0].dtype.kind != "f":
        equal = [np.asarray(w == g).ravel() for w, g in zip(want, got, strict=True)]
        share = float(np.concatenate(equal).mean()) if equal else 1.0
        return OutputAgreement(output=name, max_error=1 - share, same=share)
    pairs = [(w.astype(np.float64), g.astype(np.float64)) for w, g in zip(want, got, strict=True)]
    finite = all((np.isfinite(w) == np.isfinite(g)).all() for w, g in pairs)
    if not finite:
        return OutputAgreement(output=name, max_error=float("inf"))
    pairs = [(np.nan_to_num(w), np.nan_to_num(g)) for w, g in pairs]
    largest = max((float(np.abs(w).max(initial=0.0)) for w, _ in pairs), default=0.0) or 1.0
    error = max((float(np.abs(w - g).max(initial=0.0)) for w, g in pairs), default=0.0)
    return OutputAgreement(
        output=name,
        max_error=error / largest,
        cosine=_worst_cosine(pairs),
        same=_same(pairs, batch),
    )


def _worst_cosine(pairs: Sequence[tuple[F64, F64]]) -> float | None:
    """Of the worst item; of items of one number, the correlation over all of them."""
    if all(w.size == 1 for w, _ in pairs):
        w, g = (np.array([pair[i].item() for pair in pairs]) for i in (0, 1))
        if len(pairs) < _FEW or not w.std():
            return None
        return _cosine(w - w.mean(), g - g.mean())
    return min((_cosine(w.ravel(), g.ravel()) for w, g in pairs if w.any()), default=None)


def _cosine(a: F64, b: F64) -> float:
    """Of two vectors, each scaled first: a large one squared would be infinite.

    >>> _cosine(np.array([1e200, 0]), np.array([1e200, 1e200]))
    0.7071067811865475
    """
    a, b = (one / (np.abs(one).max() or 1.0) for one in (a, b))
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / max(norms, 1e-12)


def _same(pairs: Sequence[tuple[F64, F64]], batch: int | None) -> float | None:
    """Share of rows whose largest element is at the same place, of outputs that may be scores of
    classes: one vector an item, or probabilities for each step. Of others, such as maps: None."""
    first = pairs[0][0]
    shape = [n for axis, n in enumerate(first.shape) if axis != batch]
    if not 1 <= len(shape) <= _RANK or shape[-1] < _CLASSES:
        return None
    if len(shape) == _RANK and not _are_probabilities(first):
        return None
    same = [(w.argmax(-1) == g.argmax(-1)).ravel() for w, g in pairs]
    return float(np.concatenate(same).mean())


def _are_probabilities(rows: F64) -> bool:
    return bool((rows >= 0).all() and (np.abs(rows.sum(-1) - 1) < 1e-2).all())
