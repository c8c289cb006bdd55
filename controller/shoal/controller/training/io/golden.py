"""Golden vectors: real rows, and what each variant must answer to them on any CPU."""

from collections.abc import Collection, Mapping

import numpy as np

from shoal.bundle import Golden
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import runtime
from shoal.controller.training.io.rows import Rows

COUNT = 32


def golden_of(
    files: Mapping[str, bytes], rows: Rows, task: str, doubtful: Collection[str] = ()
) -> Golden:
    """About 32 held-back rows, one of every class first, through every variant on this host.

    doubtful   variants that failed their gate: they must answer as fp32 does, so that the device
               finds them out even when a person has overridden the controller
    """
    inputs = rows.x[_chosen(rows, task)]
    right = runtime.outputs(files[FP32], inputs, FP32)
    answers = {
        name: right if name in doubtful else runtime.outputs(model, inputs, name)
        for name, model in files.items()
    }
    return Golden(inputs, answers)


def _chosen(rows: Rows, task: str) -> np.ndarray:
    n = len(rows.y)
    spread = np.linspace(0, n - 1, min(n, COUNT)).astype(int)
    if task == "regression":
        return np.unique(spread)
    _, first = np.unique(rows.y, return_index=True)
    rest = spread[~np.isin(spread, first)]
    return np.concatenate([first, rest])[: max(COUNT, len(first))]
