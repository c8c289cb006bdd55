"""What a run of Shoal is in MLflow: its parameters, metrics, tags and status.

Names and limits: https://mlflow.org/docs/latest/rest-api.html#log-batch
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from shoal.controller.operations.operations import ENDED
from shoal.controller.runs.records import Run

#: Entries of one call of log-batch: metrics; parameters and tags.
METRICS, OTHERS = 900, 90
#: Characters of a parameter and of a tag.
_PARAM, _TAG = 6_000, 5_000
_STATUS = {
    "queued": "SCHEDULED", "running": "RUNNING", "succeeded": "FINISHED", "failed": "FAILED",
    "canceled": "KILLED",
}  # fmt: skip
_UNUSUAL = re.compile(r"[^\w./ :-]", re.ASCII)


def batches(run: Run, url: str) -> Iterator[dict[str, Any]]:
    """Bodies of log-batch. Repeating one changes nothing: every value has its time and step.

    url   where the console shows the run
    """
    rows = [("metrics", one) for one in _metrics(run)]
    # Those of a run that goes on may still be completed, and MLflow takes no second value.
    params = run.params if run.state in ENDED else {}
    others = [("params", _entry(name, value, _PARAM)) for name, value in params.items()]
    others += [("tags", _entry(name, value, _TAG)) for name, value in _tags(run, url).items()]
    for some, most in ((rows, METRICS), (others, OTHERS)):
        for first in range(0, len(some), most):
            body: dict[str, list[Any]] = {}
            for kind, entry in some[first : first + most]:
                body.setdefault(kind, []).append(entry)
            yield body


def status(run: Run) -> dict[str, Any]:
    """Fields of runs/update."""
    ended = {"end_time": _ms(run.finished_at)} if run.state in ENDED else {}
    return {"status": _STATUS[run.state], "run_name": f"{run.model} {run.kind} {run.id}", **ended}


def _metrics(run: Run) -> Iterator[dict[str, Any]]:
    at = _ms(run.finished_at or run.started_at or run.created_at)
    for name, points in run.curves.items():
        yield from (_metric(name, point, at, step) for step, point in enumerate(points))
    for name, value in run.metrics.items():
        if math.isfinite(value):
            yield _metric(name, value, at, len(run.curves.get(name, ())))
    if run.started_at:
        step = round(100 * run.progress)
        yield _metric("shoal.progress", run.progress, _ms(run.started_at) + step, step)


def _metric(name: str, value: float, at: int, step: int) -> dict[str, Any]:
    return {"key": _key(name), "value": value, "timestamp": at, "step": step}


def _tags(run: Run, url: str) -> dict[str, str]:
    files = {one.name: f"sha256:{one.sha256}" for one in run.artifacts}
    source = run.source
    found = {
        "mlflow.user": run.created_by,
        "mlflow.source.name": "shoal",
        "mlflow.source.type": "PROJECT",
        "mlflow.source.git.commit": run.revision,
        "mlflow.note.content": run.note,
        "shoal.run": run.id,
        "shoal.kind": run.kind,
        "shoal.model": run.model,
        "shoal.release": run.release,
        "shoal.release_state": run.release_state,
        "shoal.dataset": run.dataset,
        "shoal.dataset_sha256": run.dataset_sha256,
        "shoal.estimator": run.estimator,
        "shoal.trigger": run.trigger,
        "shoal.metric": run.main,
        "shoal.source": f"{source.system}:{source.name}" if source else "",
        "shoal.error": run.error,
        "shoal.artifacts": msgspec.json.encode(files).decode() if files else "",
        "shoal.url": url,
    }
    return run.tags | {name: text for name, text in found.items() if text}


def _entry(name: str, value: Any, most: int) -> dict[str, str]:
    return {"key": _key(name), "value": str(value)[:most]}


def _key(name: str) -> str:
    """A name that MLflow takes.

    >>> _key("loss (train)")
    'loss _train_'
    """
    return _UNUSUAL.sub("_", name)[:250]


def _ms(at: float) -> int:
    return int(at * 1_000)
