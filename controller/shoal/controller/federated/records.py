"""Records of federated learning: task plans, tasks, rounds, participations, checkpoints.

As in shoal.controller.store.records: the same structs in use cases, API and console; times are Unix
seconds, UTC (``_at``), 0 for never. Blobs are named by hex SHA-256, "" for none.
"""

from typing import Annotated, Any, Literal

import msgspec

from shoal.controller.federated.planning.client_selection import Demands
from shoal.controller.federated.privacy.adaptive_clip import AdaptiveClip
from shoal.controller.federated.rounds.machine import Pace
from shoal.controller.store.records import Record
from shoal.federated.plan import Compression, Learning, NotNegative, Positive, Privacy
from shoal.federated.spending import Budget

NAME_PATTERN = "^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class _Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a person's input: an unknown field is an error."""


class AskedLearning(Learning, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.federated.plan.Learning; `terms` come from the strategy."""

    lr: Positive = 0.05


class AskedPrivacy(Privacy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.federated.plan.Privacy."""


class AskedCompression(Compression, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.federated.plan.Compression."""


class AskedBudget(Budget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.federated.spending.Budget; a delta of 0: that of privacy."""

    delta: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0


class AskedClip(AdaptiveClip, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.controller.federated.privacy.adaptive_clip.AdaptiveClip."""


class AskedPace(Pace, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.controller.federated.rounds.machine.Pace."""


class AskedDemands(Demands, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """shoal.controller.federated.planning.client_selection.Demands; `model` is the task's."""

    model: str = ""


class Graph(_Input, frozen=True, kw_only=True):
    """The train graph: docs/federated/train-graph.md.

    loss        "" for the default of the model's task: cross-entropy, or mse
    delta       Huber's
    answers     whether the model's output is logits or probabilities
    trained     initialisers by name, with * and ?; empty for all layers
    personal    of those, the ones that stay on each device: FedPer's head
    ditto       pull of a personal model towards the global one; 0: none is trained
    clip_norm   largest norm of a step's gradient; 0 for no limit
    variant     file of the release that is trained
    """

    loss: Literal["", "cross-entropy", "bce", "mse", "huber"] = ""
    delta: Positive = 1.0
    answers: Literal["auto", "logits", "probabilities"] = "auto"
    optimiser: Literal["sgd", "momentum", "adam"] = "sgd"
    trained: list[str] = []
    personal: list[str] = []
    ditto: NotNegative = 0.0
    clip_norm: NotNegative = 0.0
    variant: str = "fp32"


class Hiding(_Input, frozen=True, kw_only=True):
    """Secure aggregation: input of plan.Secure, which depends on the devices of a round.

    corrupt     share of the devices that may collude against one
    clip        of single elements of an update
    weight      largest number of examples that a device counts for
    degree      neighbours of each device; 0: the smallest safe number; threshold likewise
    """

    corrupt: Share = 0.0
    clip: Positive = 1.0
    weight: Count = 1
    degree: Natural = 0
    threshold: Natural = 0


class TaskPlan(_Input, frozen=True, kw_only=True):
    """Plan of a federated task: initial model, strategy, privacy, eligible devices.

    release     "model@version" of the initial model; or else
    dataset     "name@version", on which `estimator` is trained first, as the model's next release
    model       name for the model of a dataset; with a release, its own
    settings    of the strategy
    adaptive    adaptive clipping, starting at privacy.clip; central privacy only
    evaluate    every so many rounds devices evaluate the new checkpoint; 0: never
    candidate   every so many rounds the checkpoint becomes a release, and a candidate for the
                canary ring if it passes every gate; 0: only on request
    gateways    site -> the device there that may send the sum of its site's updates
    attempts    attempts of one round until the task stops
    budget      privacy budget over all rounds; None: unlimited
    """

    name: Name
    release: str = ""
    model: str = ""
    dataset: str = ""
    estimator: str = "mlp"
    params: dict[str, Any] = {}
    graph: Graph = Graph()
    strategy: str = "fedavg"
    settings: dict[str, Any] = {}
    learning: AskedLearning = AskedLearning()
    privacy: AskedPrivacy | None = None
    adaptive: AskedClip | None = None
    secure: Hiding | None = None
    compression: AskedCompression = AskedCompression()
    pace: AskedPace
    demands: AskedDemands = AskedDemands()
    evaluate: Natural = 1
    candidate: Natural = 0
    gateways: dict[str, str] = {}
    attempts: Count = 3
    budget: AskedBudget | None = None


class Prepared(Record, frozen=True, kw_only=True):
    """Files of a task for its devices, made once when it is planned.

    graph, loss_graph   ONNX: one training step; the loss and the output
    inference           ONNX that theta is written into (gradient.weights.write_theta)
    theta               float32 little-endian (size,): the initial model
    personal            [start, stop) of theta that stay on each device
    labels, features    classes by index, columns of a row: as the release has them
    """

    graph: str
    loss_graph: str
    inference: str
    theta: str
    size: int
    personal: list[tuple[int, int]] = []
    labels: list[str] = []
    features: list[str] = []


class Task(Record, frozen=True, kw_only=True):
    """A federated task.

    state         "preparing", "failed" (preparation failed), "ready" (no round is requested),
                  "running", "stopped"
    reason        why it is stopped or failed, or what it waits for
    rounds, asked completed rounds, and requested ones
    checkpoint    newest theta; `memory` the strategy's state; `parent` the round that made them,
                  0: none
    epsilon       spent, at the plan's delta; 0 without privacy
    """

    name: str
    model: str
    release: str
    state: str
    reason: str
    plan: TaskPlan
    operation: str
    created_at: float
    created_by: str
    rounds: int = 0
    asked: int = 0
    prepared: Prepared | None = None
    checkpoint: str = ""
    memory: str = ""
    parent: int = 0
    epsilon: float = 0.0


class Quarantined(Task, frozen=True, kw_only=True):
    """A task after a quarantine, with the affected releases, rollouts and devices of its model.

    releases    in quarantine now, oldest first; rollouts of them -> state
    withdrawn   devices whose assignment of such a release was withdrawn
    serving     release -> devices that serve it, by their last report
    next_step   how to roll these devices back, a sentence; "" when no device has such a release
    """

    releases: list[str] = []
    rollouts: dict[str, str] = {}
    withdrawn: list[str] = []
    serving: dict[str, list[str]] = {}
    next_step: str = ""


class Lifted(Task, frozen=True, kw_only=True):
    """A task after a round's quarantine was lifted, and what may be rolled out again.

    cleared     attempts whose status changed
    rounds_left rounds that stay in quarantine because of other rounds
    releases    out of quarantine, oldest first; paused rollouts of them -> state
    next_step   a sentence: nothing is rolled out by itself; "" when there is no such release
    """

    cleared: list[str] = []
    rounds_left: list[int] = []
    releases: list[str] = []
    rollouts: dict[str, str] = {}
    next_step: str = ""


class Measure(Record, frozen=True, kw_only=True):
    """Metrics of a checkpoint on some rows.

    loss       mean
    accuracy   None for a regression; low, high: its 95 % confidence interval
    """

    rows: int
    loss: float
    accuracy: float | None = None
    devices: int = 0
    low: float | None = None
    high: float | None = None


class Round(Record, frozen=True, kw_only=True):
    """One round; a failed one is tried again under the next number.

    id          "task.number"; attempt: number of attempts in a row
    purpose     "train", or "evaluate": devices measured `theta` without training
    state       see shoal.controller.federated.rounds.machine.TRANSITIONS
    reason      why it failed, a slug; detail: a sentence
    parent      the round whose checkpoint, `theta`, it started from; 0: the initial model
    checkpoint  theta after it; `memory` the strategy's state
    loss        mean over the devices' rows before training; None where it is hidden
    measured    the checkpoint on the devices' rows; slices: see aggregation.evaluation
    epsilon     of the task, after this round; clip: of its updates; 0 where there is none
    marks       mark -> number of devices
    reasons     reason of a refusal or loss -> number of devices
    ignored     reason -> number of ignored messages
    bytes       of received updates; seconds from start to end
    poisoned    why it and everything derived from it is in quarantine; "" if it is not
    charge      reason that a person gave for its quarantine; "" if it is inherited
    pruned_at   when its checkpoint's file was deleted: [rounds] checkpoints in controller.toml
    """

    id: str
    task: str
    number: int
    attempt: int
    state: str
    reason: str
    secure: bool
    parent: int
    theta: str
    started_at: float
    deadline_at: float = 0.0
    ended_at: float = 0.0
    detail: str = ""
    purpose: str = "train"
    checkpoint: str = ""
    memory: str = ""
    loss: float | None = None
    measured: Measure | None = None
    slices: dict[str, Measure] = {}
    epsilon: float = 0.0
    clip: float = 0.0
    marks: dict[str, int] = {}
    reasons: dict[str, int] = {}
    ignored: dict[str, int] = {}
    bytes: int = 0
    seconds: float = 0.0
    poisoned: str = ""
    charge: str = ""
    pruned_at: float = 0.0


class Participation(Record, frozen=True, kw_only=True):
    """One device in one round.

    mark       see shoal.controller.federated.rounds.machine.Mark
    reason     why it refused or was lost
    loss, norm, cosine, suspect   of its update (aggregation.outlier_scores); None, "" if hidden
    seconds    of its training, as reported; bytes of its update as received
    chosen     its update is in the aggregate
    """

    round: str
    device: str
    site: str
    task: str
    number: int
    mark: str
    reason: str = ""
    examples: int = 0
    loss: float | None = None
    norm: float | None = None
    cosine: float | None = None
    suspect: str = ""
    seconds: float = 0.0
    bytes: int = 0
    chosen: bool = False


class Checkpoint(Record, frozen=True, kw_only=True):
    """A task's theta, with what a model of it needs.

    number     of the round that made it; 0: the initial model
    lineage    rounds whose updates are in it, oldest first
    """

    task: str
    number: int
    theta: str
    prepared: Prepared
    lineage: list[int]
