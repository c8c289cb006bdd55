"""`shoal model import` and `inspect`: models made elsewhere, as files or in MLflow's registry."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import Command, Session
from shoal.cli.data_files import data_files
from shoal.cli.model_upload import FILE, finish, open_upload, pairs, wait_option
from shoal.cli.options import names_of, timeout_option
from shoal.cli.render import plain, size
from shoal.cli.steps_file import open_steps
from shoal.cli.tensors import facts_tables
from shoal.errors import SettingError, ShoalError
from shoal.manifest import check_model
from shoal.tasks import KINDS

#: Seconds for the controller to hash, store and check a model of gigabytes once it has it.
_READING_S = 600.0
#: Seconds for it to fetch one from MLflow, and to check it.
_FETCHING_S = 1_500.0
_MLFLOW = "mlflow:"
_data = click.option(
    "--data",
    "data",
    type=FILE,
    multiple=True,
    help="A file that FILE keeps weights in, of the name that it uses; may be repeated. Those that "
    "are beside FILE are found.",
)
_steps = click.option(
    "--steps",
    type=FILE,
    help="With --task tensors: TOML of pre- and post-processing that becomes part of the model, so "
    "that raw data is sent; docs/models/steps.md.",
)


class ModelSource(click.ParamType):
    """An ONNX file that exists, or mlflow:NAME/VERSION, which the controller looks up."""

    name = "file"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if str(value).startswith(_MLFLOW) else FILE.convert(value, param, ctx)


@click.command("import", cls=Command)
@click.argument("name")
@click.argument("file", type=ModelSource(), required=False)
@click.option("--dataset", default="", metavar="NAME[@N]", help="Dataset to measure it on.")
@click.option(
    "--task",
    type=click.Choice(list(KINDS)),
    help="What its outputs mean. With --dataset: classification or regression, where the label's "
    "column leaves that open. tensors: any ONNX model; nothing is claimed about it.",
)
@click.option(
    "--sample",
    type=FILE,
    help="Without --dataset: .npz of inputs to run it with, one array for each input, items "
    'stacked along a new first axis; it is measured on the array "label". Without it, shapes are '
    "tried, and nothing is measured. By 8 real items or more, smaller and faster variants are "
    "made, measured, and kept where they agree with FILE.",
)
@click.option(
    "--task-settings",
    "settings",
    type=FILE,
    help="JSON of what a task needs beside labels, such as which output; docs/models/tasks.md.",
)
@_steps
@click.option(
    "--input-kind",
    "kinds",
    multiple=True,
    metavar="INPUT=KIND",
    help="With --sample: what an input's items are, for drift detection: image (or image:NCHW), "
    "audio, tokens, text, numbers, or nothing, which is not looked at. Inferred where not said; "
    "may be repeated.",
)
@_data
@click.option(
    "--labels",
    default="",
    metavar="A,B,...|FILE",
    help="Labels by place in the output: a,b,c, or a file of one a line.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=FILE",
    help="Your own file for a variant, such as int8-u8s8-pc, instead of quantizing FILE.",
)
@click.option(
    "--pipeline",
    type=FILE,
    help="JSON: units, ranges, scaling, missing values; docs/sources-and-sinks.md.",
)
@wait_option
@timeout_option
@click.pass_obj
def import_(
    session: Session,
    name: str,
    file: Path | str | None,
    dataset: str,
    task: str | None,
    sample: Path | None,
    settings: Path | None,
    steps: Path | None,
    kinds: tuple[str, ...],
    data: tuple[Path, ...],
    labels: str,
    variants: tuple[str, ...],
    pipeline: Path | None,
    wait: bool,
    timeout: float,
) -> None:
    """Make the next release of a model from your own ONNX FILE, or from MLflow's registry.

    FILE may be mlflow:NAME/VERSION or mlflow:NAME@alias: the controller fetches the ONNX flavour of
    that version, compares its signature with the graph, and remembers the run, the Git commit and
    the tags that MLflow has of it (docs/mlflow.md). Without a NAME the release is of the model that
    has the same name here.

    With --dataset: a model of rows. It takes one float32 input (rows, features), in the order of
    the dataset's feature columns, and gives one float32 output: (rows, classes) of probabilities,
    or (rows, 1) of a quantity (--task regression where the label leaves that open). It is measured
    on the dataset, quantized and gated.

    Without --dataset: any model that onnxruntime loads, with its tensors by name. --task says what
    its outputs mean, and it is measured on the labels of --sample, or of --dataset where that
    is one of images, audio or tensors. With --task tensors nothing is claimed about it: no metric,
    no labels. With a sample of 20 items or more its inputs and outputs are watched for drift: light
    and sharpness of images, level and spectrum of audio, vocabulary of tokens and texts.

    \b
    Examples:
      shoal model inspect mine.onnx
      shoal model import mlflow:lot-codes@champion --dataset stamps
      shoal model import lot-codes mlflow:press/3 --task tensors
      shoal model import lot-codes mine.onnx --dataset stamps@1
      shoal model import digits cnn.onnx --task classification --sample d.npz --labels names.txt
      shoal model import faces embed.onnx --task embedding --sample faces.npz
      shoal model import ocr-lines lines.onnx --task tensors
      shoal model import ocr-lines lines.onnx --task tensors --sample lines.npz
      shoal model import ocr-lines lines.onnx --task tensors --steps steps.toml
      shoal model import ocr-lines lines.onnx --task tensors --sample lines.npz --input-kind x=image
      shoal model import ocr-lines lines.onnx --task tensors --data /srv/lines.onnx.data
    """
    name, file = _named(name, file)
    called = file if isinstance(file, str) else file.name
    if not dataset and not task:
        raise SettingError(
            f"nothing to measure {called} on",
            "add --dataset NAME for a model of rows; for any other --task TASK with --sample "
            "FILE.npz, or --task tensors: nothing is claimed about it",
        )
    fields = {"dataset": dataset, "labels": _labels(labels), "task": task or ""}
    fields["kinds"] = ",".join(kinds)
    if settings is not None:
        fields["settings"] = settings.read_bytes().decode(errors="replace")
    if pipeline is not None:
        fields["pipeline"] = pipeline.read_bytes().decode(errors="replace")
    if isinstance(file, str):
        for option, given in (
            ("--data", data), ("--variant", variants), ("--sample", sample), ("--steps", steps)
        ):  # fmt: skip
            if given:
                raise SettingError(
                    f"{option} is of a FILE, and {file} is in MLflow", "leave it out"
                )
        words = names_of(labels)
        if Path(labels).is_file():
            words = msgspec.json.decode(fields["labels"])
        body: dict[str, Any] = {name: value for name, value in fields.items() if value}
        body |= {"source": file, "labels": words}
        started = session.api.post(at("models", name, "import-mlflow"), body, _FETCHING_S)
        finish(session, started, wait, timeout)
        return
    with ExitStack() as opened:
        files = _model(session, opened, file, data)
        for variant, path in pairs(variants, "--variant").items():
            files[f"variant:{variant}"] = open_upload(opened, Path(path))
        if sample is not None:
            files["sample"] = open_upload(opened, sample)
        if steps is not None:
            files["steps"] = open_steps(steps)
        started = session.api.upload(at("models", name, "import"), files, fields, _READING_S)
    finish(session, started, wait, timeout)


@click.command("inspect", cls=Command)
@click.argument("file", type=FILE)
@_steps
@_data
@click.pass_obj
def inspect(session: Session, file: Path, steps: Path | None, data: tuple[Path, ...]) -> None:
    """Read an ONNX FILE without importing it: inputs, outputs, operators, memory, and which
    profiles can carry it. Exit code 2, with the reason, when it could not be imported.

    With --steps: the same of the model with these steps, or what does not fit.

    \b
    Examples:
      shoal model inspect mine.onnx
      shoal model inspect mine.onnx --json
      shoal model inspect mine.onnx --steps steps.toml
    """
    with ExitStack() as opened:
        files = _model(session, opened, file, data)
        if steps is not None:
            files["steps"] = open_steps(steps)
        found = session.api.upload(at("models", "inspect"), files, {}, _READING_S)
    next_ = f"import it with: shoal model import NAME {file} --task tensors"
    next_ += ", or --dataset NAME" if steps is None else f" --steps {steps}"
    session.show(found, lambda: Group(*facts_tables(found), "", plain(next_)))


def _named(name: str, file: Path | str | None) -> tuple[str, Path | str]:
    """The model and where its file is; a version of MLflow alone names both."""
    if file is not None:
        return name, file
    if not name.startswith(_MLFLOW):
        raise click.UsageError("Missing argument '[FILE]'.")
    registered = name.removeprefix(_MLFLOW).partition("/")[0].partition("@")[0]
    try:
        check_model(registered)
    except ShoalError as error:
        hint = f"name the model: shoal model import NAME {name}"
        raise SettingError(f"{registered!r} is no name of a model here", hint) from error
    return registered, name


def _model(
    session: Session, opened: ExitStack, file: Path, given: tuple[Path, ...]
) -> dict[str, tuple[str, Any]]:
    """The upload of an ONNX file and its data files; says which of these were found."""
    found = data_files(file, given)
    for name, path in found.items():
        if path not in given:
            session.print_line(f"with {plain(name)} ({size(path.stat().st_size)}) from beside it")
    uploads = {f"data:{name}": open_upload(opened, path) for name, path in found.items()}
    return {"onnx": open_upload(opened, file), **uploads}


def _labels(text: str) -> str:
    """Labels for the API: those of a file, one a line, as JSON; others as they are."""
    path = Path(text)
    try:
        if not text or not path.is_file():
            return text
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError, ValueError):
        return text
    lines = lines[:-1] if lines[-1] == "" else lines
    return msgspec.json.encode([line.removesuffix("\r") for line in lines]).decode()
