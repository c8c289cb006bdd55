"""Import requests of API and console: refused with a reason before they are queued."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from shoal import pipeline
from shoal.controller.data import datasets
from shoal.controller.data.records import TABLE
from shoal.controller.host.context import Context
from shoal.controller.operations.operations import Operation
from shoal.controller.releases.records import ModelFacts
from shoal.controller.training import task_declaration, tensor_kinds, training
from shoal.controller.training.jobs import TaskDeclaration
from shoal.errors import InputError, SettingError
from shoal.manifest import TENSORS, check_data_names, check_model
from shoal.tasks import KINDS
from shoal.tensor_sketches import LEAST_ITEMS
from shoal.validation_errors import decode_errors_as

#: Bytes of an upload: an ONNX file of up to 2 GiB, and its data files.
UPLOAD_LIMIT = 5 << 30
VARIANT, DATA = "variant:", "data:"
_OF_TENSORS = ("sample", "steps")
#: What an import of tensors does not take, and why.
_OF_ROWS = {
    "dataset": "a table has rows, not tensors",
    "labels": "its outputs are tensors, not classes",
    "settings": "nothing is claimed about it",
    "pipeline": "its inputs are tensors, not columns",
}
#: What an import of another task, for named tensors, does not take.
_OF_TABLES = {
    "dataset": "its labels are those of the sample",
    "pipeline": "its inputs are tensors, not columns",
}
#: Tasks that a model of rows can have too, which needs a dataset.
_ROWS_TASKS = ("", "classification", "regression")


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
    """An uploaded file: its path, and the client's name for it.

    stored    its SHA-256 among the blobs, "" for one that is not there yet
    dataset   "name@version" whose items it holds, "" for none
    """

    path: Path
    filename: str
    stored: str = ""
    dataset: str = ""


class ImportRequest(NamedTuple):
    """What a person gives.

    task      "classification" or "regression" for a model of rows, "" for what its dataset's label
              says; any of shoal.tasks.KINDS for named tensors, which have a sample in place of the
              dataset; "tensors": nothing is claimed
    labels    class names by output column
    settings  JSON of other fields of the task, "" for none
    pipeline  JSON of shoal.pipeline.Pipeline, "" for none
    files     "onnx", and "data:NAME" for each file that it keeps weights in; for rows
              "variant:NAME"; for tensors "sample" (.npz) and "steps" (TOML)
    kinds     of tensors, what inputs are: "x=image,y=tokens"
    source    fields of runs.records.Source, of a model that another system holds; empty for none
    trigger   "manual", or what asked for it
    """

    task: str
    dataset: str
    labels: list[str]
    pipeline: str
    files: Mapping[str, ImportFile]
    kinds: str = ""
    settings: str = ""
    source: Mapping[str, Any] = {}
    trigger: str = "manual"

    @property
    def of_rows(self) -> bool:
        """Whether it is of a model of rows, and not of named tensors."""
        named = "sample" in self.files or self.settings
        return self.task in _ROWS_TASKS and not (named and self.task and not self.dataset)


def start(
    ctx: Context, read_facts: ReadFacts, *, actor: str, model: str, request: ImportRequest
) -> Operation:
    """Store the files and enqueue the import.

    InputError for what makes no sense together, SettingError for a name that no model can have, or
    steps that cannot be read, AbsentError for an unknown dataset, ModelError for a file that
    cannot be imported.
    """
    request = _with_items(ctx, request)
    _check(request)
    check_model(model)
    kinds = tensor_kinds.parse_kinds(request.kinds)
    prepared = pipeline.parse(request.pipeline.encode()) if request.pipeline else None
    declared = _declared(request)
    for field, file in request.files.items():
        if field == "onnx" or field.startswith(VARIANT):
            steps = request.files.get("steps")
            beside = data_of(request.files) if field == "onnx" else {}
            facts = read_facts(file.path, called(file, field), beside, steps and steps.path)
            if field == "onnx":
                tensor_kinds.check_names(kinds, [one.name for one in facts.inputs])
    kept = {
        field: file.stored or ctx.blobs.put_file(file.path).sha256
        for field, file in request.files.items()
    }
    data = {field.removeprefix(DATA): kept[field] for field in kept if field.startswith(DATA)}
    if not request.of_rows:
        sample = request.files.get("sample")
        return training.start_tensors_import(
            ctx,
            actor=actor,
            model=model,
            onnx=kept["onnx"],
            sample=kept.get("sample", ""),
            dataset=sample.dataset if sample else "",
            steps=kept.get("steps", ""),
            kinds=kinds,
            declared=declared,
            data=data,
            source=request.source,
            trigger=request.trigger,
        )
    return training.start_import(
        ctx,
        actor=actor,
        model=model,
        onnx=kept["onnx"],
        variants={n.removeprefix(VARIANT): s for n, s in kept.items() if n.startswith(VARIANT)},
        data=data,
        dataset=request.dataset,
        labels=request.labels,
        task=request.task,
        pipeline=prepared,
        source=request.source,
        trigger=request.trigger,
    )


def data_of(files: Mapping[str, ImportFile]) -> dict[str, Path]:
    """The files that an ONNX file keeps weights in, by the names that it calls them.

    ModelError for a name that no file of a release can have.
    """
    named = {
        field.removeprefix(DATA): file.path
        for field, file in files.items()
        if field.startswith(DATA)
    }
    check_data_names(named)
    return named


def _with_items(ctx: Context, request: ImportRequest) -> ImportRequest:
    """The same, where the items of a dataset that is no table stand for the sample."""
    if not request.dataset or not request.task:
        return request
    version = datasets.get_dataset(ctx, request.dataset)
    if version.kind == TABLE:
        return request
    if "sample" in request.files:
        raise InputError(
            f"the items of {version.ref} are the sample, and there is another",
            "leave one of them out",
        )
    path = ctx.blobs.path(version.sha256)
    items = ImportFile(path, version.ref, stored=version.sha256, dataset=version.ref)
    return request._replace(dataset="", files={**request.files, "sample": items})


def called(file: ImportFile, field: str) -> str:
    """Name of a file in messages: the client's, without folders."""
    name = file.filename.replace("\\", "/").rpartition("/")[2][:80]
    return name if name and name.isprintable() else field


def parse_labels(text: str) -> list[str]:
    """A JSON array as it is, which commas and blanks may be part of; or names between commas.

    InputError for an array that cannot be read.

    >>> parse_labels("a, b"), parse_labels('["a, b", " "]')
    (['a', 'b'], ['a, b', ' '])
    """
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    with decode_errors_as(lambda cause: InputError(f"labels: {cause}", "a JSON array of texts")):
        return msgspec.json.decode(text, type=list[str])


def _declared(request: ImportRequest) -> TaskDeclaration | None:
    """What is claimed of named tensors; None for rows, and where nothing is."""
    if request.of_rows or request.task == TENSORS:
        return None
    settings: dict[str, Any] = {}
    if request.settings:
        with decode_errors_as(lambda cause: SettingError(f"settings of the task: {cause}")):
            settings = msgspec.json.decode(request.settings, type=dict[str, Any])
    settings_of = {name: value for name, value in settings.items() if name != "task"}
    task_declaration.check_words(request.task, settings, request.labels)
    return TaskDeclaration(word=request.task, settings=settings_of, labels=request.labels)


def _check(request: ImportRequest) -> None:
    given = {name for name in _OF_ROWS if getattr(request, name)} | set(request.files)
    if not request.of_rows:
        refused = _OF_ROWS if request.task == TENSORS else _OF_TABLES
        taken = {"onnx", *_OF_TENSORS, *(_OF_ROWS.keys() - refused.keys())}
        taken |= {name for name in given if name.startswith(DATA)}
        for name in sorted(given - taken):
            why = refused.get(name, "the file is served as it is, not quantized")
            raise InputError(f"task {request.task} takes no {name}: {why}", "leave it out")
        if request.kinds and "sample" not in given:
            raise InputError(
                "input kinds say how a sample's items are sketched, and there is no sample",
                f"give one of {LEAST_ITEMS} items or more, or leave the kinds out",
            )
        return
    if request.kinds:
        raise InputError("input kinds are for named tensors", "leave them out: columns are numbers")
    if "dataset" in given:
        for name in sorted(given & {"settings", *_OF_TENSORS}):
            verb = "is" if name == "sample" else "are"
            raise InputError(
                f"{name} {verb} for named tensors, a dataset for rows",
                "leave one of them out: rows come from the dataset, and a pipeline prepares them",
            )
        return
    if given & {"settings", *_OF_TENSORS} and not request.task:
        raise InputError(
            "the import has no task", f"say which: task {', '.join(KINDS)}; tensors claims nothing"
        )
    raise InputError(
        "an import needs data to be measured on, or task tensors",
        "name a dataset for a model of rows; give a sample with an array label for one of named "
        "tensors; or choose task tensors, which takes any ONNX model and claims nothing about it",
    )
