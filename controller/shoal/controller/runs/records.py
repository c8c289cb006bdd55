"""Records of runs: a run is an operation that makes a release, with what went in and came out."""

from typing import Any

import msgspec

from shoal.controller.store.records import Record

TRAIN, IMPORT, CHECKPOINT = KINDS = "train", "import", "checkpoint"
METRIC, PARAM, TAG = "metric", "param", "tag"
#: Last words of metrics where less is better.
_LESS = frozenset({"mae", "mse", "rmse", "loss", "error", "gap", "ms", "seconds", "bytes", "drop"})


class Artifact(Record, frozen=True, kw_only=True):
    """A file that a run made, or was given: its size in bytes; 0 where that is not known."""

    name: str
    sha256: str
    size: int = 0


class Source(Record, frozen=True, kw_only=True):
    """Where an imported model is from, as its registry tells.

    system     "mlflow"; name: of the version there, "press/3"; asked: as it was asked for
    url        where people see it; artifacts: where its files are
    run        that logged it, "" for none; code: what that run ran; revision: its Git commit
    tags       of the version, and of the run
    signature  "inputs" and "outputs" as they were declared
    """

    system: str
    name: str
    asked: str = ""
    url: str = ""
    artifacts: str = ""
    run: str = ""
    code: str = ""
    revision: str = ""
    tags: dict[str, str] = {}
    signature: dict[str, str] = {}


class Run(Record, frozen=True, kw_only=True):
    """One training or import.

    id          of its operation, whose output and progress are there
    kind        "train", "import", or "checkpoint" (a release of federated rounds)
    state       queued, running, succeeded, failed, canceled
    trigger     what started it: "manual", "alert:<id>", "rounds:<task>"
    release     "model@version" that it made, "" for none; release_state: of it
    parent      release that was the newest before it
    duration_s  from start to end, so far for a running one; 0 before it starts
    params      as used, defaults included; a list is text, "64,32"
    metrics     on held-back rows; those named "script.*" are what a script reported itself
    main        metric that the release is judged by; "" before there is one
    seed        of all random numbers; revision: of the code, as given; "" for none
    environment   versions of Python, the libraries and the machine; empty in lists
    curves      metric -> its values, one for each pass; empty in lists
    artifacts   files of the release, and the script; empty in lists
    source      of a model imported from a registry; None for others
    """

    id: str
    kind: str
    model: str
    state: str
    dataset: str
    dataset_sha256: str = ""
    estimator: str
    trigger: str
    release: str = ""
    release_state: str = ""
    parent: str = ""
    created_at: float
    created_by: str
    started_at: float
    finished_at: float
    duration_s: float
    progress: float = 0.0
    step: str = ""
    error: str = ""
    seed: int = 0
    revision: str = ""
    main: str = ""
    note: str = ""
    params: dict[str, float | str] = {}
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    environment: dict[str, str] = {}
    curves: dict[str, list[float]] = {}
    artifacts: list[Artifact] = []
    source: Source | None = None


class Compared(Record, frozen=True, kw_only=True):
    """One parameter or metric of several runs.

    values   in the runs' order, None where a run has none
    differs  whether they are not all the same
    best     place of the best value of a metric; -1 for none
    """

    name: str
    values: list[float | str | None]
    differs: bool
    best: int = -1


class Comparison(Record, frozen=True, kw_only=True):
    """Several runs side by side."""

    runs: list[Run]
    params: list[Compared]
    metrics: list[Compared]
    environment: list[Compared]


def less_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one, by the last word of its name.

    >>> less_is_better("rmse"), less_is_better("site_gap"), less_is_better("balanced_accuracy")
    (True, True, False)
    """
    return metric.replace(".", "_").replace(" ", "_").rpartition("_")[2].lower() in _LESS


def compare(runs: list[Run]) -> Comparison:
    """The runs side by side: every parameter, metric and version that one of them has."""
    metrics = [_compared(name, [r.metrics.get(name) for r in runs]) for name in _names(runs)]
    return Comparison(
        runs=runs,
        params=_side_by_side([r.params for r in runs]),
        metrics=[msgspec.structs.replace(one, best=_best(one)) for one in metrics],
        environment=_side_by_side([r.environment for r in runs]),
    )


def _names(runs: list[Run]) -> list[str]:
    """Names of all metrics: those that releases are judged by first."""
    names = dict.fromkeys(r.main for r in runs if r.main)
    return [*(names | dict.fromkeys(sorted({name for r in runs for name in r.metrics})))]


def _side_by_side(given: list[Any]) -> list[Compared]:
    names = sorted({name for one in given for name in one})
    return [_compared(name, [one.get(name) for one in given]) for name in names]


def _compared(name: str, values: list[Any]) -> Compared:
    return Compared(name=name, values=values, differs=len(set(values)) > 1)


def _best(one: Compared) -> int:
    known = [(value, i) for i, value in enumerate(one.values) if isinstance(value, float | int)]
    if not one.differs or not known:
        return -1
    chosen = min(known, key=lambda v: v[0]) if less_is_better(one.name) else max(
        known, key=lambda v: v[0]
    )  # fmt: skip
    return chosen[1]
