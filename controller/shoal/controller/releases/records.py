"""Records of models and releases, and what a release is packed from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.controller.store.records import Record
from shoal.manifest import DeclaredSteps, Feature
from shoal.pipeline import Pipeline
from shoal.signature import Signature as TensorSignature
from shoal.signature import State, Tensor
from shoal.tasks import Task


class Contributor(msgspec.Struct, frozen=True, kw_only=True):
    """A device whose updates are in a checkpoint. examples: rows over its rounds, as reported."""

    device: str
    site: str
    rounds: int
    examples: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The federated rounds that a release was made of.

    number     of the round that made the checkpoint; rounds: all that led to it, oldest first
    release    "model@version" that the task began with
    epsilon    of the task's privacy when that round was done; None without privacy
    secure     rounds used secure aggregation
    """

    task: str
    number: int
    rounds: list[int]
    release: str
    strategy: str
    devices: list[Contributor]
    epsilon: float | None = None
    delta: float = 0.0
    secure: bool = False


class OutputAgreement(Record, frozen=True, kw_only=True):
    """How far one output of a variant is from fp32's on held-back items of a sample.

    max_error   largest difference, as a share of the output's largest value
    cosine      of the worst item; correlation over the items where one has a single number; None
                where neither says anything
    same        share of items, or of their rows, with fp32's largest element at the same place; of
                whole numbers, flags and texts the share of equal elements; None where it has none
    by_kernels  largest change, as a share, between onnxruntime's optimised and literal kernels
    """

    output: str
    max_error: float
    cosine: float | None = None
    same: float | None = None
    by_kernels: float = 0.0


class VariantReport(Record, frozen=True, kw_only=True):
    """One variant, or candidate for one, as the controller built and measured it on held-back rows.

    size         in bytes; 0 of a candidate that could not be made, or was not tried
    cosine       of its outputs to fp32's, mean; of one output column their correlation
    same_labels  share of rows with fp32's label; None of a regression, and where not measured
    time_ratio   CPU time of one row over fp32's, on the controller; None where not measured
    not_finite   rows with NaN or infinity among the outputs
    in_company   its answer to a row depends on the rows that run with it
    outputs      of a model of tensors: agreement of each output
    worse        why it must not stand in for fp32, by the task's measure; "" if it may
    dropped      why it is not in the release; "" of a variant that is
    """

    name: str
    sha256: str
    size: int
    metrics: dict[str, float]
    cosine: float
    detail: str = ""
    same_labels: float | None = None
    time_ratio: float | None = None
    not_finite: int = 0
    in_company: bool = False
    outputs: list[OutputAgreement] = []
    worse: str = ""
    dropped: str = ""


class Verdict(Record, frozen=True, kw_only=True):
    """Whether a variant may go to a profile, and why not."""

    profile: str
    variant: str
    passed: bool
    why: str = ""


class Signature(Record, frozen=True, kw_only=True):
    role: str
    key: str
    at: float
    by: str


class TensorFact(Record, frozen=True, kw_only=True):
    """An input or output as the file declares it.

    type    a datatype of the protocol, or the name of an ONNX type that it does not have
    shape   lengths, names of free axes, "?" for an axis without a name; None without a shape
    """

    name: str
    type: str
    shape: list[int | str] | None


class ModelFacts(Record, frozen=True, kw_only=True):
    """What an ONNX file says of itself, before it is run.

    opsets        domain -> version; "" is the standard one
    operators     domain-qualified name -> nodes of it, bodies and functions included
    parameters    stored elements, and stored_bytes their bytes, wherever they are stored
    memory_mb     estimate of what a process needs to load it
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: list[TensorFact]
    outputs: list[TensorFact]
    operators: dict[str, int]
    nodes: int
    parameters: int
    stored_bytes: int
    memory_mb: float


class TaskReport(Record, frozen=True, kw_only=True):
    """What a model of tensors claims, and how far that is true.

    meaning    the task
    metrics    on items whose answer is known; empty where there were none
    main       the metric that is judged, where more is better
    items      that were measured, of so many `given`
    guessing   why it is no better than guessing; "" if it is, or if that cannot be told
    notes      what was taken from the outputs, left out, or not measured, a sentence each
    """

    meaning: Task
    metrics: dict[str, float] = {}
    main: str = ""
    items: int = 0
    given: int = 0
    guessing: str = ""
    notes: list[str] = []


class TensorsReport(Record, frozen=True, kw_only=True):
    """What the controller measured by running a model of tensors: its signature, and how it ran.

    notes     what it found otherwise than declared, or could not find out
    run_ms    of one item on the controller; rss_mb: resident memory of the process that ran it
    steps     declared pre- and post-processing that is part of its graph; None without
    task      what is claimed; None where nothing is
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    states: list[State]
    together: str
    item_bytes: int
    facts: ModelFacts
    notes: list[str]
    run_ms: float
    rss_mb: float
    steps: DeclaredSteps | None = None
    task: TaskReport | None = None


class ModelInspection(Record, frozen=True, kw_only=True):
    """What an ONNX file says of itself, and which profiles can carry it as it is.

    size   of the file in bytes
    """

    size: int
    facts: ModelFacts
    verdicts: list[Verdict]


class Release(Record, frozen=True, kw_only=True):
    """One version of a model, from training to the fleet.

    state      "validated" (built, not signed), "refused" (by a gate), "candidate" (signed by
               the automation key: canary ring only), "released" (signed for stable),
               "deleting"
    trigger    what made it: "manual", or "alert:<id>"
    metrics    of the fp32 model on held-back data; worst_site, site_gap, and by_site, per site:
               balanced accuracy of a classification, R2 of a regression
    dataset    "name@version" that it was made with; "" for none
    origin     the federated rounds and devices that trained it, if any
    tensors    of a model of tensors; None for one of rows
    notes      of a model of rows: what was inferred, added or left out
    why_refused  by a gate; it can be published with an override
    quarantined  why it cannot be published or rolled out: a round of it is poisoned, or it was
               revoked
    revoked_at since when it must never be installed again; 0: it was not revoked
    retired_at   since when it, or its model, cannot be published or rolled out any more; 0: it can
    """

    model: str
    version: int
    state: str
    dataset: str
    dataset_sha256: str
    operation: str
    trigger: str
    created_at: float
    created_by: str
    task: str
    estimator: str
    metrics: dict[str, float]
    by_site: dict[str, float]
    variants: list[VariantReport]
    verdicts: list[Verdict]
    signatures: list[Signature]
    labels: list[str]
    features: list[str]
    params: dict[str, Any] = {}
    parent: str = ""
    override: str = ""
    origin: Origin | None = None
    tensors: TensorsReport | None = None
    notes: list[str] = []
    why_refused: str = ""
    quarantined: str = ""
    retired_at: float = 0.0
    retired_by: str = ""
    revoked_at: float = 0.0

    @property
    def ref(self) -> str:
        return f"{self.model}@{self.version}"


class Model(Record, frozen=True, kw_only=True):
    """A model and its policy on drift.

    retrain_on_drift   when a drift alert opens and a newer dataset version comes, train again
    task               federated task that drift requests `rounds` of; "" for none
    cooldown_s         seconds between two such times, at least; asked_at: the last one, 0: never
    retired_at         since when it can be neither trained nor rolled out any more; 0: it can
    """

    name: str
    created_at: float
    latest: str
    released: str
    releases: int
    retrain_on_drift: bool
    dataset: str
    task: str = ""
    rounds: int = 10
    cooldown_s: float = 86_400.0
    asked_at: float = 0.0
    retired_at: float = 0.0
    retired_by: str = ""


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A model with everything that a release needs.

    metrics     of fp32 on held-back rows; by_site the task's main metric per site
    main        name of the main metric; "" for none
    files       variant name -> ONNX bytes, or the author's own file, kept byte for byte
    data        variant name -> files that its weights are in, by the names that it calls them
    why_refused why the release as a whole is refused, "" if it is not
    notes       for people: what was inferred, added or left out
    references, golden, card   contents of the bundle's files
    pipeline    how a device makes the model's rows
    params      as used, defaults included
    signature, tensors   of a model of tensors: what is signed, and the whole report
    curves      metric -> its values over the training, one for each pass
    reported    metrics that a script measured itself: "script.NAME" -> value
    """

    task: str
    main: str
    metrics: dict[str, float]
    by_site: dict[str, float]
    features: list[Feature]
    labels: list[str]
    files: Mapping[str, bytes | Path]
    data: Mapping[str, Mapping[str, Path]] = {}
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
    notes: list[str] = []
    signature: TensorSignature | None = None
    tensors: TensorsReport | None = None
    curves: dict[str, list[float]] = {}
    reported: dict[str, float] = {}
