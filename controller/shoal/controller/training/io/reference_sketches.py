"""Reference sketches: the distribution of inputs and outputs in the training data."""

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from shoal.controller.training.io.runtime import F32
from shoal.outputs import PREDICTION, SCORE, predicted, score
from shoal.sketch import MAX_EDGES, References, reference_of

if TYPE_CHECKING:  # it brings pandas, a second, which an import of tensors does not need
    from shoal.controller.training.io.rows import Rows

SCORE_BINS = 20


def references_of(
    features: list[str], rows: "Rows", predictions: F32, task: str, threshold: float
) -> References:
    """References of training rows and of the fp32 model's outputs (n, C) for them."""
    inputs = {name: rows.x[:, i].astype(np.float64) for i, name in enumerate(features)}
    outputs = {SCORE: score(predictions).astype(np.float64)}
    if task == "regression":
        return References(inputs=reference_of(inputs), outputs=reference_of(outputs))
    outputs[PREDICTION] = predicted(predictions, threshold).astype(np.float64)
    edges = {SCORE: score_edges(threshold), PREDICTION: prediction_edges(predictions.shape[1])}
    return References(inputs=reference_of(inputs), outputs=reference_of(outputs, edges))


def score_edges(threshold: float) -> list[float]:
    """Twenty bins of equal width from 0 to 1, one more cut exactly at the decision threshold."""
    uniform = {round(i / SCORE_BINS, 6) for i in range(1, SCORE_BINS)}
    return sorted(uniform | {threshold})


def prediction_edges(classes: int) -> list[float]:
    """A bin per class; several classes a bin where there are more than a sketch has edges."""
    step = -(-max(classes - 1, 1) // MAX_EDGES)
    return [k + 0.5 for k in range(0, max(classes - 1, 1), step)]


def to_bytes(references: References) -> bytes:
    return msgspec.json.encode(references)
