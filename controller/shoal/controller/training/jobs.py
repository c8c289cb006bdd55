"""Training jobs and their results: the interface between use cases and the ML libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built, ModelFacts, TaskReport
from shoal.signature import Signature
from shoal.sketch import References

#: Reports progress: fraction 0 to 1, and the current step.
ReportProgress = Callable[[float, str], None]


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


class ScriptLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a script may take: CPU seconds, MB of memory, MB of a file."""

    cpu_s: int
    memory_mb: int
    file_mb: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job that builds one release of a model.

    table       the dataset's file; `dataset` describes its columns
    estimator   of shoal.estimators; params as read_params takes them
    onnx        an imported model; None to train one
    variants    further imported variants by name; measured, not trusted
    labels      class names by output column, for an imported model
    data        files that `onnx` keeps weights in, by the names that it calls them
    found       in the dataset's cleaning report, a sentence for each that warns
    checkpoint  replaces the parameters in `onnx`; None to keep them
    script      leaves the model, for the estimator "script"; limits: what it may take
    """

    model: str
    dataset: DatasetVersion
    table: Path
    estimator: str = "mlp"
    params: dict[str, Any] = {}
    found: list[str] = []
    onnx: Path | None = None
    variants: dict[str, Path] = {}
    labels: list[str] = []
    data: dict[str, Path] = {}
    checkpoint: Checkpoint | None = None
    script: Path | None = None
    limits: ScriptLimits | None = None


class TaskDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """What a person claims of a model of tensors.

    word       of the task; settings: fields of it (shoal.tasks), others follow from the outputs
    labels     of it by index, or its alphabet; empty where the settings have them
    """

    word: str
    settings: dict[str, Any] = {}
    labels: list[str] = []


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What running a model of tensors has shown.

    golden    content of golden.msgpack, with the outputs of variant "fp32"
    notes     what was inferred or differs from what the file declares, a sentence each
    run_ms    one item, median; rss_mb: resident memory of the process that ran it, at most
    references  statistics of the sample's items; of no features without a sample
    task      what was claimed and measured; None where nothing was
    items     of the sample
    """

    facts: ModelFacts
    signature: Signature
    references: References
    golden: bytes
    notes: list[str]
    run_ms: float
    rss_mb: float
    task: TaskReport | None = None
    items: int = 0


class TensorsJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that builds a release of an ONNX file with named tensors.

    sample   .npz of the author's own inputs, stacked along a new first axis; None to try shapes
    steps    file of declared steps that become part of the model; None for none
    kinds    what inputs are, as the author says: tensor_kinds.parse_kinds
    declared what is claimed of it; None for nothing
    data     files that `onnx` keeps weights in, by the names that it calls them
    """

    model: str
    onnx: Path
    sample: Path | None = None
    steps: Path | None = None
    kinds: dict[str, str] = {}
    declared: TaskDeclaration | None = None
    data: dict[str, Path] = {}


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

    def environment(self) -> dict[str, str]:
        """Versions of Python, of the libraries that build models, and the machine."""
        ...

    def derive(self, job: TrainGraphJob) -> TrainGraph:
        """Build a train graph; ModelError names the part of the model that cannot be trained."""
        ...
