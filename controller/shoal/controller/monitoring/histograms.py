"""Histograms: the sketches of windows as tables of counts, and the training data's likewise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring.channels import Windows
from shoal.errors import SketchError
from shoal.sketch import Reference, References, Sketch
from shoal.sketch_batches import SketchBatch, decode
from shoal.tensor_sketches import in_words, is_statistic

I64 = npt.NDArray[np.int64]


def names_of(references: References) -> list[str]:
    """Names of all features: inputs, then outputs (marked, where an input has the same name)."""
    inputs = [f.name for f in references.inputs.features]
    taken = set(inputs)
    outputs = [f.name for f in references.outputs.features]
    return inputs + [f"{name} (output)" if name in taken else name for name in outputs]


def words_of(references: References) -> dict[str, str]:
    """Features in words, by name, of a model of tensors: "x.noise" is "noise of input x".

    Empty for a model of rows, whose features are columns.
    """
    inputs = [f.name for f in references.inputs.features]
    outputs = [f.name for f in references.outputs.features]
    if not all(is_statistic(name) for name in inputs):
        return {}
    found = {name: in_words(name, "input") for name in inputs}
    return found | {name: in_words(name, "output") for name in outputs}


def counts_of(references: References, inputs: bytes, outputs: bytes) -> I64:
    """Counts int64 (F, W) of sketch bytes: bins in order, zero padded, missing in the last column.

    Raises SketchError for bytes that do not match the references.
    """
    pieces = [
        _table(read(reference, data))
        for reference, data in ((references.inputs, inputs), (references.outputs, outputs))
    ]
    return _stack(pieces)


def windows_of(
    references: References, rows: Sequence[StoredWindow], local: npt.NDArray[np.float64]
) -> Windows:
    """Windows of several devices, inputs and outputs as F features in W bins; local (B,): their
    starts on the sites' clocks. Moments that a sketch could not hold are NaN.

    Raises SketchError for bytes that do not match the references.
    """
    sides = [
        _decoded(references.inputs, [row.inputs for row in rows]),
        _decoded(references.outputs, [row.outputs for row in rows]),
    ]
    counts = _side_by_side(sides[0].counts, sides[1].counts)
    missing, n = (
        np.concatenate([getattr(side, name) for side in sides], axis=1) for name in ("missing", "n")
    )
    moments = np.concatenate([side.moments for side in sides], axis=1).astype(np.float64)
    mean, m2, low, high = np.moveaxis(moments, -1, 0)
    held = np.isfinite(mean) & np.isfinite(m2) & np.isfinite(low) & np.isfinite(high) & (n > 0)
    return Windows(
        np.array([row.id for row in rows], np.float64),
        np.array([row.start_at for row in rows]),
        local,
        np.array([row.window_s for row in rows]),
        counts,
        missing,
        n,
        *(np.where(held, moment, np.nan) for moment in (mean, m2, low, high)),
    )


def training_of(references: References) -> I64:
    """Counts of the training rows in the same shape."""
    return _stack([_training(references.inputs), _training(references.outputs)])


def edges_of(references: References, feature: int) -> list[float]:
    """Bin edges of a feature, by its index in names_of."""
    both = [*references.inputs.features, *references.outputs.features]
    return both[feature].edges


def read(reference: Reference, data: bytes) -> Sketch:
    """Decode and validate a sketch; SketchError for damage or inconsistent counts.

    Moments may be infinite or NaN: one value of 1e20 overflows its feature's, and nothing else.
    """
    sketch = Sketch.from_bytes(reference, data)
    if (sketch.m2[sketch.n > 0] < 0).any():
        raise SketchError("sketch holds a negative sum of squares")
    if (sketch.n + sketch.missing != sketch.rows).any():
        raise SketchError("sketch's row count differs from its features'")
    return sketch


def rows_of_all(reference: Reference, given: Sequence[bytes]) -> list[int | None]:
    """Rows of each sketch, decoded together and checked as `read` does; None of one that `read`
    has to look at."""
    batch = decode(reference, given)
    known = batch.n > 0
    positive = ~(batch.moments[:, :, 1] < 0)
    fine = (positive | ~known).all(1) & (batch.n + batch.missing == batch.rows[:, None]).all(1)
    found: list[int | None] = [None] * len(given)
    for i, rows, ok in zip(np.flatnonzero(batch.read), batch.rows, fine, strict=True):
        found[i] = int(rows) if ok else None
    return found


def _decoded(reference: Reference, given: Sequence[bytes]) -> SketchBatch:
    found = decode(reference, given)
    if not found.read.all():
        read(reference, given[int(np.argmin(found.read))])  # says why
    return found


def _side_by_side(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(B, F1, W1) and (B, F2, W2) as (B, F1 + F2, W), zero padded."""
    wide = max(a.shape[-1], b.shape[-1])
    padded = [np.pad(each, ((0, 0), (0, 0), (0, wide - each.shape[-1]))) for each in (a, b)]
    return np.concatenate(padded, axis=1)


def _table(sketch: Sketch) -> I64:
    return np.concatenate([sketch.counts, sketch.missing[:, None]], axis=1)


def _training(reference: Reference) -> I64:
    width = max((len(f.edges) for f in reference.features), default=0) + 2
    table = np.zeros((len(reference.features), width), np.int64)
    for i, f in enumerate(reference.features):
        table[i, : len(f.counts) - 1] = f.counts[:-1]
        table[i, -1] = f.counts[-1]
    return table


def _stack(pieces: list[I64]) -> I64:
    """Stack pieces (F_i, W_i) by rows, padded before the last column."""
    width = max(piece.shape[1] for piece in pieces)
    table = np.zeros((sum(len(piece) for piece in pieces), width), np.int64)
    at = 0
    for piece in pieces:
        end = at + len(piece)
        table[at:end, : piece.shape[1] - 1] = piece[:, :-1]
        table[at:end, -1] = piece[:, -1]
        at = end
    return table
