"""What training is asked for and what it gives: the seam between use cases and the libraries."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec

from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built
from shoal.errors import SettingError
from shoal.pipeline import Pipeline

#: Told how far the work is, 0 to 1, and what it does now.
Say = Callable[[float, str], None]

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=0.9)]
Scaler = Literal["minmax", "standard"]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every training takes.

    seed      of everything drawn: the same seed gives the same model
    holdout   share of rows (of groups, where the dataset has a split column) held back
    sites     train on these sites only; empty for all
    missing   what a device makes of a missing value: "refuse" the row, take the "last" one, or
              the "mean" of the training rows
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
    """A random forest: fp32 only, trees do not quantize. depth: 0 for as deep as they grow."""

    trees: Positive = 100
    depth: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0


class Foreign(Params, frozen=True, kw_only=True):
    """A model trained elsewhere: only the split of the data is ours.

    pipeline   what it reads of the dataset's columns, which are as the plant measures them;
               None for the columns themselves
    """

    pipeline: Pipeline | None = None


IMPORTED = "imported"
#: Estimator -> the task it is for, and its parameters.
ESTIMATORS: dict[str, tuple[str, type[Params]]] = {
    "mlp": ("classification", Mlp),
    "logistic": ("classification", Linear),
    "random-forest": ("classification", Forest),
    "mlp-regressor": ("regression", Mlp),
    "ridge": ("regression", Linear),
    "random-forest-regressor": ("regression", Forest),
    IMPORTED: ("", Foreign),
}


def read_params(estimator: str, params: Mapping[str, Any]) -> Params:
    """The parameters of `estimator`, checked; SettingError says what is wrong and what there is."""
    if estimator not in ESTIMATORS:
        raise SettingError(f"no estimator {estimator!r}", f"there are: {', '.join(ESTIMATORS)}")
    kind = ESTIMATORS[estimator][1]
    try:
        return msgspec.convert(dict(params), kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise SettingError(f"{estimator}: {error}", f"its parameters are: {known}") from error


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What federated rounds learned.

    theta      file of float32 little-endian (P,)
    graph      the train graph, which says where theta's numbers belong in the job's onnx
    personal   [start, stop) of theta that never left the devices (FedPer's head)
    notes      for the card: who trained it, a sentence each
    """

    theta: Path
    graph: Path
    personal: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One model to be made.

    table       the dataset's file; `dataset` says what its columns are
    estimator   of ESTIMATORS; params as read_params takes them
    onnx        a model that was trained elsewhere; None to train one
    variants    further variants that came with it, by name; measured, not trusted
    labels      class names by output column, for a model that came from elsewhere
    checkpoint  what takes the place of the numbers in `onnx`; None to leave them
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


class Derivation(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is to be trained on devices: shoal.controller.federated.records.Graph.

    onnx        the file; output: the one that is learned
    proximal, shift   terms of a step that the strategy needs
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


class Derived(msgspec.Struct, frozen=True, kw_only=True):
    """What devices are given: ONNX graphs, and theta, float32 little-endian (size,)."""

    graph: bytes
    loss_graph: bytes
    inference: bytes
    theta: bytes
    size: int
    personal: tuple[tuple[int, int], ...]


class Learning(Protocol):
    """Trains or takes in a model, measures it, quantizes it per profile and judges each variant."""

    def build(self, job: Job, say: Say) -> Built:
        """DatasetError or ModelError say what is impossible, with a hint."""
        ...

    def derive(self, wish: Derivation) -> Derived:
        """A model's train graph; ModelError names what in it cannot be trained, with a hint."""
        ...
