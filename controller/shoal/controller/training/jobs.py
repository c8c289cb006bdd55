"""Training jobs and their results: the interface between use cases and the ML libraries."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec

from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built, ModelFacts
from shoal.errors import SettingError
from shoal.pipeline import Pipeline
from shoal.signature import Signature

#: Reports progress: fraction 0 to 1, and the current step.
ReportProgress = Callable[[float, str], None]

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=0.9)]
Scaler = Literal["minmax", "standard"]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters common to all training jobs.

    seed      of all random numbers: the same seed gives the same model
    holdout   share of rows (of groups, where the dataset has a split column) held back
    sites     train on these sites only; empty for all
    missing   handling of a missing value on the device: "refuse" the row, take the "last" value,
              or the "mean" of the training rows
    """

    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    holdout: Share = 0.25
    sites: list[str] = []
    missing: Literal["refuse", "last", "mean"] = "refuse"


class Mlp(Params, frozen=True, kw_only=True):
    """A small neural network. hidden: neurons per layer; alpha: weight decay."""

    hidden: Annotated[list[Positive], msgspec.Meta(min_length=1, max_length=8)] = msgspec.field(
        default_factory=lambda: [64, 32]
    )
    alpha: Annotated[float, msgspec.Meta(ge=0)] = 1e-4
    max_iter: Positive = 300
    scaler: Scaler = "minmax"


class Linear(Params, frozen=True, kw_only=True):
    """Logistic or ridge regression. strength: of the regularisation."""

    strength: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    max_iter: Positive = 2_000
    scaler: Scaler = "standard"


class Forest(Params, frozen=True, kw_only=True):
    """A random forest: fp32 only, trees do not quantize. depth: 0 for unlimited."""

    trees: Positive = 100
    depth: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0


class ImportParams(Params, frozen=True, kw_only=True):
    """An imported model: only the split of the data is configured.

    task       "classification" or "regression"; "" for what the label says
    pipeline   from the dataset's columns, as measured in the plant, to the model's inputs;
               None when the columns are the inputs
    """

    task: Literal["", "classification", "regression"] = ""
    pipeline: Pipeline | None = None


IMPORTED = "imported"
#: Estimator -> its task, and its parameters.
ESTIMATORS: dict[str, tuple[str, type[Params]]] = {
    "mlp": ("classification", Mlp),
    "logistic": ("classification", Linear),
    "random-forest": ("classification", Forest),
    "mlp-regressor": ("regression", Mlp),
    "ridge": ("regression", Linear),
    "random-forest-regressor": ("regression", Forest),
    IMPORTED: ("", ImportParams),
}


#: Task -> the estimator that is taken when none is named.
DEFAULT_ESTIMATORS = {"classification": "mlp", "regression": "mlp-regressor"}


def estimators_of(task: str) -> list[str]:
    """Names of the estimators of a task.

    >>> estimators_of("regression")
    ['mlp-regressor', 'ridge', 'random-forest-regressor']
    """
    return [name for name, (of, _) in ESTIMATORS.items() if of == task]


def read_params(estimator: str, params: Mapping[str, Any]) -> Params:
    """Validated parameters of `estimator`; SettingError names what is wrong and what is allowed."""
    if estimator not in ESTIMATORS:
        raise SettingError(f"no estimator {estimator!r}", f"there are: {', '.join(ESTIMATORS)}")
    kind = ESTIMATORS[estimator][1]
    try:
        return msgspec.convert(dict(params), kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise SettingError(f"{estimator}: {error}", f"its parameters are: {known}") from error


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of federated rounds, for a release.

    theta      file of float32 little-endian (P,)
    graph      the train graph, which maps theta to the initialisers of the job's onnx
    personal   [start, stop) of theta that never left the devices (FedPer's head)
    notes      for the model card, a sentence each
    """

    theta: Path
    graph: Path
    personal: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job that builds one release of a model.

    table       the dataset's file; `dataset` describes its columns
    estimator   of ESTIMATORS; params as read_params takes them
    onnx        an imported model; None to train one
    variants    further imported variants by name; measured, not trusted
    labels      class names by output column, for an imported model
    checkpoint  replaces the parameters in `onnx`; None to keep them
    """

    model: str
    dataset: DatasetVersion
    table: Path
    estimator: str = "mlp"
    params: dict[str, Any] = {}
    onnx: Path | None = None
    variants: dict[str, Path] = {}
    labels: list[str] = []
    checkpoint: Checkpoint | None = None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What running a model of tensors has shown.

    golden    content of golden.msgpack, with the outputs of variant "fp32"
    notes     what was inferred or differs from what the file declares, a sentence each
    run_ms    one item, median; rss_mb: resident memory of the process that ran it, at most
    """

    facts: ModelFacts
    signature: Signature
    golden: bytes
    notes: list[str]
    run_ms: float
    rss_mb: float


class TensorsJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that builds a release of an ONNX file of which nothing is claimed.

    sample   .npz of the author's own inputs, stacked along a new first axis; None to try shapes
    steps    file of declared steps that become part of the model; None for none
    """

    model: str
    onnx: Path
    sample: Path | None = None
    steps: Path | None = None


class TrainGraphJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that builds the train graph of a model: shoal.controller.federated.records.Graph.

    onnx        the file; output: the output that is trained
    proximal, shift   gradient terms that the strategy needs
    """

    onnx: Path
    output: str
    loss: Literal["cross-entropy", "bce", "mse", "huber"]
    delta: float = 1.0
    answers: Literal["auto", "logits", "probabilities"] = "auto"
    optimiser: Literal["sgd", "momentum", "adam"] = "sgd"
    trained: list[str] = []
    personal: list[str] = []
    clip_norm: float = 0.0
    proximal: bool = False
    shift: bool = False


class TrainGraph(msgspec.Struct, frozen=True, kw_only=True):
    """ONNX graphs for devices, and the initial theta, float32 little-endian (size,)."""

    graph: bytes
    loss_graph: bytes
    inference: bytes
    theta: bytes
    size: int
    personal: tuple[tuple[int, int], ...]


class ModelBuilder(Protocol):
    """Trains or imports a model, evaluates it, quantizes it per profile and gates each variant."""

    def build(self, job: Job, progress: ReportProgress) -> Built:
        """Build a release; DatasetError or ModelError when that is impossible."""
        ...

    def build_tensors(self, job: TensorsJob, progress: ReportProgress) -> Built:
        """Build a release of tensors; ModelError when the model cannot be run."""
        ...

    def derive(self, job: TrainGraphJob) -> TrainGraph:
        """Build a train graph; ModelError names the part of the model that cannot be trained."""
        ...
