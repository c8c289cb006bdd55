"""What training is asked for and what it gives: the seam between use cases and the libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from shoal.controller.records import DatasetVersion, VariantReport, Verdict
from shoal.manifest import Feature

#: Told how far the work is, 0 to 1, and what it does now.
Say = Callable[[float, str], None]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One model to be made.

    table       the dataset's file; `dataset` says what its columns are
    estimator   "mlp", "logistic", "random-forest", "ridge", ...: see io/learning/estimators.py
    params      of the estimator; and "seed", "holdout" (share held back), "sites" (train on these)
    onnx        a model that was trained elsewhere; None to train one
    variants    further variants that came with it, by name; measured, not trusted
    labels      class names by output column, for a model that came from elsewhere
    """

    model: str
    dataset: DatasetVersion
    table: Path
    estimator: str = "mlp"
    params: dict[str, Any] = {}
    onnx: Path | None = None
    variants: dict[str, Path] = {}
    labels: list[str] = []


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A model with everything that a release needs.

    metrics     of fp32 on held-back rows; by_site the task's metric per site
    files       variant name -> ONNX bytes
    references, golden, card   contents of the bundle's files
    """

    task: str
    metrics: dict[str, float]
    by_site: dict[str, float]
    features: list[Feature]
    labels: list[str]
    files: dict[str, bytes]
    variants: list[VariantReport]
    verdicts: list[Verdict]
    references: bytes
    golden: bytes
    card: str
    opset: int
    ort: str
    params: dict[str, Any]


class Learning(Protocol):
    """Trains or takes in a model, measures it, quantizes it per profile and judges each variant."""

    def build(self, job: Job, say: Say) -> Built:
        """DatasetError or ModelError say what cannot be, and the mend."""
        ...
