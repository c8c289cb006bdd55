"""What a release is packed from: variants, metrics, references, card."""

from typing import Any

import msgspec

from shoal.controller.store.records import VariantReport, Verdict
from shoal.manifest import Feature
from shoal.pipeline import Pipeline


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A model with everything that a release needs.

    metrics     of fp32 on held-back rows; by_site the task's main metric per site
    main        name of the main metric
    files       variant name -> ONNX bytes
    why_refused why the release as a whole needs a person's word, "" when it does not
    references, golden, card   contents of the bundle's files
    pipeline    how a device makes the model's rows
    params      as used, defaults included
    """

    task: str
    main: str
    metrics: dict[str, float]
    by_site: dict[str, float]
    features: list[Feature]
    labels: list[str]
    files: dict[str, bytes]
    variants: list[VariantReport]
    verdicts: list[Verdict]
    why_refused: str
    references: bytes
    golden: bytes
    card: str
    opset: int
    ort: str
    threshold: float
    params: dict[str, Any]
    pipeline: Pipeline
