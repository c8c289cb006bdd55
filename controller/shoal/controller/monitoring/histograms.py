"""Histograms: the sketches of a window as one table of counts, and the training data's likewise."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.errors import SketchError
from shoal.sketch import Reference, References, Sketch
from shoal.sketch_batches import decode
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


def training_of(references: References) -> I64:
    """Counts of the training rows in the same shape."""
    return _stack([_training(references.inputs), _training(references.outputs)])


def edges_of(references: References, feature: int) -> list[float]:
    """Bin edges of a feature, by its index in names_of."""
    both = [*references.inputs.features, *references.outputs.features]
    return both[feature].edges


def read(reference: Reference, data: bytes) -> Sketch:
    """Decode and validate a sketch; SketchError for damage, NaN or inconsistent counts."""
    sketch = Sketch.from_bytes(reference, data)
    known = sketch.n > 0
    moments = np.stack([sketch.mean, sketch.m2, sketch.low, sketch.high])
    if not np.isfinite(moments[:, known]).all() or (sketch.m2[known] < 0).any():
        raise SketchError("sketch holds moments that are not finite")
    if (sketch.n + sketch.missing != sketch.rows).any():
        raise SketchError("sketch's row count differs from its features'")
    return sketch


def rows_of_all(reference: Reference, given: Sequence[bytes]) -> list[int | None]:
    """Rows of each sketch, decoded together and checked as `read` does; None of one that `read`
    has to look at."""
    batch = decode(reference, given)
    known = batch.n > 0
    finite = np.isfinite(batch.moments).all(2) & (batch.moments[:, :, 1] >= 0)
    fine = (finite | ~known).all(1) & (batch.n + batch.missing == batch.rows[:, None]).all(1)
    found: list[int | None] = [None] * len(given)
    for i, rows, ok in zip(np.flatnonzero(batch.read), batch.rows, fine, strict=True):
        found[i] = int(rows) if ok else None
    return found


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
