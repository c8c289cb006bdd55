"""Golden vectors: real rows, and the outputs that each variant must give on any CPU."""

from collections.abc import Collection, Mapping

import numpy as np

from shoal.bundle import Golden
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import runtime
from shoal.controller.training.io.rows import Rows

COUNT = 32


def golden_of(
    files: Mapping[str, bytes], rows: Rows, task: str, failed: Collection[str] = ()
) -> Golden:
    """Outputs of every variant on this host for about 32 held-back rows, one of each class first.

    failed   variants that failed their gate: fp32's outputs are expected of them, so that the
             device refuses them even when a person has overridden the controller
    """
    inputs = rows.x[_select(rows, task)]
    reference = runtime.outputs(files[FP32], inputs, FP32)
    outputs = {
        name: reference if name in failed else runtime.outputs(model, inputs, name)
        for name, model in files.items()
    }
    return Golden(inputs, outputs)


def _select(rows: Rows, task: str) -> np.ndarray:
    n = len(rows.y)
    spread = np.linspace(0, n - 1, min(n, COUNT)).astype(int)
    if task == "regression":
        return np.unique(spread)
    _, first = np.unique(rows.y, return_index=True)
    rest = spread[~np.isin(spread, first)]
    return np.concatenate([first, rest])[: max(COUNT, len(first))]
