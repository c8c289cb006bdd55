"""Evaluation metrics: on held-back rows, per site, and with noise on the inputs.

The main metric is balanced accuracy for classification (accuracy flatters a model that always
predicts "no fault") and R² for regression.
"""

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from shoal.controller.data.frames import in_order
from shoal.controller.training.io.rows import Rows
from shoal.controller.training.io.runtime import F32, rows_per_run

MAIN = {"classification": "balanced_accuracy", "regression": "r2"}
#: Gaussian noise on each feature, in its own standard deviations.
NOISE = (0.01, 0.05, 0.1)
Predict = Callable[[F32], F32]


def metrics_of(task: str, y: npt.NDArray, outputs: F32) -> dict[str, float]:
    """Metrics of `outputs` (n, C) against y (n,)."""
    if task == "regression":
        predicted = outputs[:, 0]
        return {
            "r2": float(r2_score(y, predicted)) if len(y) > 1 else 0.0,
            "mae": float(mean_absolute_error(y, predicted)),
            "rmse": float(root_mean_squared_error(y, predicted)),
        }
    predicted = outputs.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class that is predicted but absent
        balanced = float(balanced_accuracy_score(y, predicted))
    return {
        "accuracy": float(accuracy_score(y, predicted)),
        "balanced_accuracy": balanced,
        "macro_f1": float(f1_score(y, predicted, average="macro", zero_division=0)),
    }


def by_site(task: str, rows: Rows, outputs: F32) -> dict[str, float]:
    """The main metric per site; empty for a dataset without sites."""
    return {
        site: metrics_of(task, rows.y[rows.site == site], outputs[rows.site == site])[MAIN[task]]
        for site in in_order(rows.site)
        if site
    }


def robustness(task: str, rows: Rows, predict: Predict, seed: int) -> dict[str, float]:
    """The main metric under noise of each scale: noise_1pct, noise_5pct, noise_10pct."""
    spread = rows.x.std(0)
    found = {}
    for scale in NOISE:
        outputs = _with_noise(rows.x, spread, scale, predict, seed)
        found[f"noise_{scale:.0%}".replace("%", "pct")] = metrics_of(task, rows.y, outputs)[
            MAIN[task]
        ]
    return found


def _with_noise(x: F32, spread: F32, scale: float, predict: Predict, seed: int) -> F32:
    """Outputs for x (n, F) with noise of `scale` times spread (F,), made a few rows at a time."""
    random, step, parts = np.random.default_rng(seed), rows_per_run(x), []
    for at in range(0, len(x), step):
        some = x[at : at + step]
        noise = random.normal(size=some.shape) * spread * scale
        parts.append(predict((some + noise).astype(np.float32)))
    return np.concatenate(parts)


def fairness(sites: dict[str, float]) -> dict[str, float]:
    """Metric of the worst site, and its gap to the best; empty with fewer than two sites."""
    if len(sites) < 2:
        return {}
    worst, best = min(sites.values()), max(sites.values())
    return {"worst_site": worst, "site_gap": best - worst}


def cosine(a: F32, b: F32) -> float:
    """Mean cosine between the outputs (n, C) of two variants; for one column, their correlation."""
    if a.shape[1] == 1:
        a, b = (a - a.mean()).T, (b - a.mean()).T
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(norms, 1e-12)).mean())
