"""The fp32 model of a job, trained or imported, and the variants that were imported with it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import (
    checkpoint_graph,
    estimators,
    export,
    import_model,
    script_run,
)
from shoal.controller.training.io.rows import Data
from shoal.controller.training.jobs import Job, ReportProgress
from shoal.errors import ModelError
from shoal.estimators import Params, ScriptParams
from shoal.profile import load_recipes


class Variants(NamedTuple):
    """Variants by name: their bytes, reasons for those not built, and notes for the model card.

    curves     metric -> its values over the training; reported: what a script measured itself
    """

    files: dict[str, bytes]
    skipped: dict[str, str]
    notes: list[str]
    curves: Mapping[str, list[float]] = MappingProxyType({})
    reported: Mapping[str, float] = MappingProxyType({})


def build_variants(
    job: Job, params: Params, data: Data, task: str, progress: ReportProgress
) -> Variants:
    """Train or import the job's model; ModelError when that is impossible."""
    columns = len(data.labels) if task == "classification" else 1
    if isinstance(params, ScriptParams):
        progress(0.10, f"running {params.name}.py on {len(data.train.y)} rows")
        return _of_script(job, params, data, columns, task, progress)
    if job.onnx is None:
        progress(0.10, f"training {job.estimator} on {len(data.train.y)} rows")
        pipeline = estimators.fit(job.estimator, params, data.train)
        progress(0.40, "exporting to ONNX")
        model = export.export(pipeline, len(data.features), columns)
        curves = estimators.curves_of(pipeline)
        return Variants({FP32: model.SerializeToString()}, {}, [], curves)
    progress(0.10, "checking the imported model")
    return _import(job, job.onnx, params, data, columns, task)


def _of_script(
    job: Job, params: ScriptParams, data: Data, columns: int, task: str, progress: ReportProgress
) -> Variants:
    if job.script is None or job.limits is None:
        raise ModelError("there is no script to train with", "see: shoal model train --help")
    given = script_run.Given(params, data, job.model, task, job.dataset)
    with script_run.run(job.script, given, job.limits) as left:
        progress(0.40, "checking the model that the script left")
        built = _import(job, left.onnx, params, data, columns, task)
    built.notes[:0] = left.notes
    return built._replace(curves=left.curves, reported=left.reported)


def _import(job: Job, onnx: Path, params: Params, data: Data, columns: int, task: str) -> Variants:
    recipes = load_recipes()
    if unknown := sorted(set(job.variants) - set(recipes)):
        raise ModelError(f"no variant {unknown[0]!r}", f"there are: {', '.join(recipes)}")
    built = Variants({}, {}, [])
    for name, path in ({FP32: onnx} | job.variants).items():
        beside = job.data if name == FP32 else {}
        called = f"{name} of {job.model}"
        model = import_model.read(path, called, len(data.features), columns, beside)
        if job.checkpoint is not None:
            model = checkpoint_graph.with_parameters(model, job.checkpoint)
        if task == "classification":
            model, note = import_model.with_probabilities(model, data.held.x, name)
            built.notes.extend([f"{name} {note}"] if note else [])
        if job.checkpoint is not None:
            model, notes = checkpoint_graph.with_head(model, job.checkpoint, data, params.seed)
            built.notes.extend([*job.checkpoint.notes, *notes])
        built.files[name] = model.SerializeToString()
    return built
