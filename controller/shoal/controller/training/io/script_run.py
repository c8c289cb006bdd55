"""Run an operator's own training script, in a process with limits and a folder of its own.

The folder, which is the script's working directory, has

    job.json        shoal.controller.training.io.script_run.ScriptJob
    train.parquet   the rows to train on: float32 features, the label, the site; no held-back row

and the script leaves in it

    model.onnx      float32 (N, features) in, float32 (N, labels) out; (N, 1) for regression
    metrics.json    optional: an object of numbers; shown as what the script reports
    curves.json     optional: metric -> array of numbers, one for each pass
    notes.txt       optional: a note a line, for the model card

It is the operator's own code, not a sandboxed guest: see docs/training.md.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd

from shoal.controller.data.records import DatasetVersion
from shoal.controller.training.io.rows import Data
from shoal.controller.training.jobs import ScriptLimits
from shoal.errors import ModelError
from shoal.estimators import ScriptParams

#: Bytes of metrics.json, metrics in it, notes and characters of a note that are read at most.
_METRICS_BYTES, _METRICS, _NOTES, _NOTE = 65_536, 50, 20, 300
_CURVES_BYTES = 4 << 20
#: Bytes of a model that an import takes.
_MODEL_BYTES = 2 << 30


class ScriptJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a script is told, in job.json.

    task       "classification" or "regression"
    dataset    "name@version"; rows: in train.parquet; held_back: rows that are not
    features   columns of train.parquet, in the order of the model's input
    label      its column of the label: a text of `labels`, or a number for regression
    labels     class names by output column
    site       its column of sites; "" where the dataset has none
    columns    of the dataset, with role and dtype; holdout, split: share and groups held back
    seed       of all random numbers; params: as given with --param
    """

    model: str
    task: str
    dataset: str
    rows: int
    held_back: int
    features: list[str]
    label: str
    labels: list[str]
    site: str
    columns: list[dict[str, str]]
    holdout: float
    split: str
    seed: int
    params: dict[str, Any]


class ScriptResult(NamedTuple):
    """The model that a script left, and notes: what it reports, a sentence each.

    reported   "script.NAME" -> value, of its metrics.json; curves: of its curves.json
    """

    onnx: Path
    notes: list[str]
    reported: dict[str, float]
    curves: dict[str, list[float]]


class Given(NamedTuple):
    """What a script is run on; `data` is split, and its held-back rows stay here."""

    params: ScriptParams
    data: Data
    model: str
    task: str
    dataset: DatasetVersion


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How a script ended, in error.json: the exception, and the script's line that led to it."""

    error: str
    line: int = 0
    code: str = ""


@contextmanager
def run(script: Path, given: Given, limits: ScriptLimits) -> Iterator[ScriptResult]:
    """Run `script` on the training rows of `data`; its files are gone after the block.

    ModelError names the line of the script that failed, the limit that was reached, or the file
    that is missing.
    """
    with tempfile.TemporaryDirectory(prefix="script-") as name:
        folder = Path(name)
        _write(folder, given)
        (folder / "home").mkdir()
        (folder / f"{given.params.name}.py").write_bytes(script.read_bytes())
        _run(folder, given.params, limits)
        metrics = _metrics(folder)
        notes = [*_reported(metrics), *_notes(folder)]
        reported = {f"script.{name}": value for name, value in metrics.items()}
        yield ScriptResult(_model(folder), notes, reported, _curves(folder))


def _write(folder: Path, given: Given) -> None:
    data, dataset, params = given.data, given.dataset, given.params
    frame = pd.DataFrame(data.train.x, columns=data.features)
    y = data.train.y
    frame[dataset.label] = [data.labels[i] for i in y] if data.labels else y
    if dataset.site:
        frame[dataset.site] = data.train.site
    frame.to_parquet(folder / "train.parquet", index=False)
    job = ScriptJob(
        model=given.model,
        task=given.task,
        dataset=dataset.ref,
        rows=len(y),
        held_back=len(data.held.y),
        features=data.features,
        label=dataset.label,
        labels=data.labels,
        site=dataset.site,
        columns=[{"name": c.name, "role": c.role, "dtype": c.dtype} for c in dataset.columns],
        holdout=params.holdout,
        split=dataset.split,
        seed=params.seed,
        params=params.values,
    )
    (folder / "job.json").write_bytes(msgspec.json.format(msgspec.json.encode(job), indent=2))


def _run(folder: Path, params: ScriptParams, limits: ScriptLimits) -> None:
    """Run the script to its end; its output goes to the operation's log."""
    module = "shoal.controller.training.io.script_process"
    words = (limits.memory_mb, limits.cpu_s, limits.file_mb, os.getpid())
    sys.stdout.flush()
    before = _children_cpu_s()
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, params.name, params.entry, *map(str, words)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=_environment(folder, params.seed),
    )
    if done.returncode == 0:
        return
    late = _children_cpu_s() - before >= limits.cpu_s
    raise _failure(folder, f"{params.name}.py", done.returncode, limits, late)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(folder: Path, seed: int) -> dict[str, str]:
    """The environment of a script: nothing of the controller's but where programs are."""
    kept = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    own = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "PYTHONHASHSEED": str(seed),
        "PYTHONUNBUFFERED": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return {name: os.environ[name] for name in kept if name in os.environ} | own


def _failure(folder: Path, name: str, status: int, limits: ScriptLimits, late: bool) -> ModelError:
    log = "its output is in the operation's log: shoal operation log ID"
    if status == -signal.SIGXCPU or (status == -signal.SIGKILL and late):
        return ModelError(
            f"{name} was ended after {limits.cpu_s} s of CPU",
            "do less, or raise script_cpu_s under [operations] in controller.toml",
        )
    if status < 0:
        return ModelError(f"{name} was ended by {signal.Signals(-status).name}", log)
    try:
        told = msgspec.json.decode((folder / "error.json").read_bytes(), type=Failure)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return ModelError(f"{name} ended with status {status}", log)
    if told.error.startswith("MemoryError"):
        return ModelError(
            f"{name} needs more than {limits.memory_mb} MB of memory{_at(told)}",
            "use less, or raise script_memory_mb under [operations] in controller.toml",
        )
    if "File too large" in told.error:
        return ModelError(
            f"{name} wrote a file of more than {limits.file_mb} MB{_at(told)}",
            "write less, or raise script_file_mb under [operations] in controller.toml",
        )
    return ModelError(f"{name}{_at(told)}: {told.error}", log)


def _at(told: Failure) -> str:
    return f", line {told.line} ({told.code})" if told.line else ""


def _model(folder: Path) -> Path:
    path = folder / "model.onnx"
    if not path.is_file() or path.is_symlink():
        raise ModelError("the script left no model.onnx", f"it left: {_left(folder)}")
    if path.stat().st_size > _MODEL_BYTES:
        raise ModelError("model.onnx is larger than 2 GiB", "export a smaller model")
    return path


def _left(folder: Path) -> str:
    given = {"job.json", "train.parquet", "home", "__pycache__"}
    found = sorted(p.name for p in folder.iterdir() if p.name not in given and p.suffix != ".py")
    return ", ".join(found[:20]) or "nothing"


def _metrics(folder: Path) -> dict[str, float]:
    """The first metrics that the script reports."""
    found = _object(folder / "metrics.json", _METRICS_BYTES, dict[str, float], '{"name": 0.5}')
    return {name[:60]: value for name, value in list(found.items())[:_METRICS]}


def _reported(metrics: dict[str, float]) -> list[str]:
    listed = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
    return [f"reported by the script, not measured here: {listed}"] if listed else []


def _curves(folder: Path) -> dict[str, list[float]]:
    example = '{"loss": [0.5, 0.25]}'
    return _object(folder / "curves.json", _CURVES_BYTES, dict[str, list[float]], example)


def _object(path: Path, limit: int, kind: Any, example: str) -> Any:
    """A JSON object that the script may have left, else {}; ModelError for another one."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(limit), type=kind)
    except msgspec.DecodeError as error:
        raise ModelError(
            f"{path.name} is no object of numbers: {error}", f"write it as {example}"
        ) from error


def _notes(folder: Path) -> list[str]:
    path = folder / "notes.txt"
    if not path.is_file():
        return []
    with path.open("rb") as file:
        text = file.read(_NOTES * _NOTE * 4).decode(errors="replace")
    lines = [" ".join(line.split())[:_NOTE] for line in text.splitlines()]
    return [line for line in lines if line][:_NOTES]
