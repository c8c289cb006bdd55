"""Import requests of API and console: refused with a reason before they are queued."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from shoal import pipeline
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.releases.records import ModelFacts
from shoal.controller.training import tensor_kinds, training
from shoal.errors import InputError
from shoal.manifest import TENSORS, check_model
from shoal.tensor_sketches import LEAST_ITEMS

VARIANT = "variant:"
_NO_MODELS = ("sample", "steps")
#: What an import of tensors does not take, and why.
_OF_ROWS = {
    "dataset": "nothing is measured against data",
    "labels": "its outputs are tensors, not classes",
    "pipeline": "its inputs are tensors, not columns",
}


class ReadFacts(Protocol):
    """Reads an ONNX file that nobody has vouched for."""

    def __call__(
        self, path: Path, name: str, data: Mapping[str, Path] = {}, steps: Path | None = None
    ) -> ModelFacts:
        """Facts of the file at `path`; ModelError, naming it `name`, for one that cannot be run.

        data    the files that it keeps weights in, by the names that it calls them
        steps   a file of declared steps, which become part of the model
        """
        ...


class ImportFile(NamedTuple):
    """An uploaded file: its path, and the client's name for it."""

    path: Path
    filename: str


class ImportRequest(NamedTuple):
    """What a person gives.

    task      "classification" or "regression" for a model of rows, "" for what its dataset's label
              says; "tensors" for any other model
    labels    class names by output column
    pipeline  JSON of shoal.pipeline.Pipeline, "" for none
    files     "onnx", and "variant:NAME" for rows; for tensors "sample" (.npz) and "steps" (TOML)
    kinds     of tensors, what inputs are: "x=image,y=tokens"
    """

    task: str
    dataset: str
    labels: list[str]
    pipeline: str
    files: Mapping[str, ImportFile]
    kinds: str = ""


def start(
    ctx: Context, read_facts: ReadFacts, *, actor: str, model: str, request: ImportRequest
) -> Operation:
    """Store the files and enqueue the import.

    InputError for what makes no sense together, SettingError for a name that no model can have, or
    steps that cannot be read, AbsentError for an unknown dataset, ModelError for a file that
    cannot be imported.
    """
    _check(request)
    check_model(model)
    kinds = tensor_kinds.parse_kinds(request.kinds)
    prepared = pipeline.parse(request.pipeline.encode()) if request.pipeline else None
    for field, file in request.files.items():
        if field not in _NO_MODELS:
            steps = request.files.get("steps")
            facts = read_facts(file.path, called(file, field), steps=steps and steps.path)
            if field == "onnx":
                tensor_kinds.check_names(kinds, [one.name for one in facts.inputs])
    kept = {field: ctx.blobs.put_file(file.path).sha256 for field, file in request.files.items()}
    if request.task == TENSORS:
        return training.start_tensors_import(
            ctx,
            actor=actor,
            model=model,
            onnx=kept["onnx"],
            sample=kept.get("sample", ""),
            steps=kept.get("steps", ""),
            kinds=kinds,
        )
    return training.start_import(
        ctx,
        actor=actor,
        model=model,
        onnx=kept["onnx"],
        variants={n.removeprefix(VARIANT): s for n, s in kept.items() if n.startswith(VARIANT)},
        dataset=request.dataset,
        labels=request.labels,
        task=request.task,
        pipeline=prepared,
    )


def called(file: ImportFile, field: str) -> str:
    """Name of a file in messages: the client's, without folders."""
    name = file.filename.replace("\\", "/").rpartition("/")[2][:80]
    return name if name and name.isprintable() else field


def _check(request: ImportRequest) -> None:
    given = {name for name in _OF_ROWS if getattr(request, name)} | set(request.files)
    if request.task == TENSORS:
        for name in sorted(given - {"onnx", *_NO_MODELS}):
            why = _OF_ROWS.get(name, "the file is served as it is, not quantized")
            raise InputError(f"task tensors takes no {name}: {why}", "leave it out")
        if request.kinds and "sample" not in given:
            raise InputError(
                "input kinds say how a sample's items are sketched, and there is no sample",
                f"give one of {LEAST_ITEMS} items or more, or leave the kinds out",
            )
        return
    if request.kinds:
        raise InputError("input kinds are for task tensors", "leave them out: columns are numbers")
    if "sample" in given:
        raise InputError("sample is for task tensors", "leave it out: rows come from the dataset")
    if "steps" in given:
        raise InputError(
            "steps are for task tensors", "choose it, or prepare rows with a pipeline instead"
        )
    if "dataset" not in given:
        raise InputError(
            "an import needs a dataset to be measured on, or task tensors",
            "name a dataset; or choose task tensors, which takes any ONNX model and claims "
            "nothing about it",
        )
