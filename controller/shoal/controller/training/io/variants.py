"""The variants of a model: trained here or handed in, then quantized by every recipe there is."""

from pathlib import Path
from typing import NamedTuple

from onnx import ModelProto

from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import (
    checkpoint_graph,
    estimators,
    export,
    import_model,
    quantize,
)
from shoal.controller.training.io.rows import Data
from shoal.controller.training.jobs import Job, Params, Say
from shoal.errors import ModelError
from shoal.profile import load_recipes


class Made(NamedTuple):
    """Variants by name: their bytes, why others were not built, and what a person should know."""

    files: dict[str, bytes]
    skipped: dict[str, str]
    notes: list[str]


def make(job: Job, params: Params, data: Data, task: str, say: Say) -> Made:
    """Every variant of the job's model; ModelError when there can be none."""
    columns = len(data.labels) if task == "classification" else 1
    if job.onnx is None:
        say(0.10, f"training {job.estimator} on {len(data.train.y)} rows")
        pipeline = estimators.fit(job.estimator, params, data.train)
        say(0.40, "exporting to ONNX")
        model = export.export(pipeline, len(data.features), columns)
        made = Made({FP32: model.SerializeToString()}, {}, [])
    else:
        say(0.10, "checking the model that was handed in")
        made = _take_in(job, job.onnx, params, data, columns, task)
    _quantize_missing(made, data, say)
    return made


def _take_in(job: Job, onnx: Path, params: Params, data: Data, columns: int, task: str) -> Made:
    recipes = load_recipes()
    if strangers := sorted(set(job.variants) - set(recipes)):
        raise ModelError(f"no variant {strangers[0]!r}", f"there are: {', '.join(recipes)}")
    made = Made({}, {}, [])
    for name, path in ({FP32: onnx} | job.variants).items():
        model = import_model.read(path, f"{name} of {job.model}", len(data.features), columns)
        if job.checkpoint is not None:
            model = checkpoint_graph.written(model, job.checkpoint)
        if task == "classification":
            model, note = import_model.with_probabilities(model, data.held.x, name)
            made.notes.extend([f"{name} {note}"] if note else [])
        if job.checkpoint is not None:
            model, notes = checkpoint_graph.with_head(model, job.checkpoint, data, params.seed)
            made.notes.extend([*job.checkpoint.notes, *notes])
        made.files[name] = model.SerializeToString()
    return made


def _quantize_missing(made: Made, data: Data, say: Say) -> None:
    """Add every variant that a recipe says how to build and that did not come with the model."""
    model = ModelProto.FromString(made.files[FP32])
    impossible = quantize.why_not(model)
    wanted = [(name, r) for name, r in load_recipes().items() if r.quantizer != "none"]
    for at, (name, recipe) in enumerate(wanted):
        if name in made.files:
            continue
        if impossible:
            made.skipped[name] = impossible
            continue
        say(0.45 + 0.2 * at / len(wanted), f"quantizing {name}")
        try:
            made.files[name] = quantize.quantize(model, recipe, data.train.x, name)
        except ModelError as error:
            made.skipped[name] = error.message
