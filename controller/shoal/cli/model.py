"""`shoal model`: train, import, and set the retraining policy."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Group

from shoal import estimators
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.data_files import data_files
from shoal.cli.deletion import deletion_of
from shoal.cli.estimators import TrainCommand, list_estimators
from shoal.cli.operation import operation_card
from shoal.cli.options import DURATION, timeout_option
from shoal.cli.release import quarantined, release_card, retired, revoked, trained_by
from shoal.cli.render import Columns, JsonObject, ago, duration, instant, plain, size, table
from shoal.cli.steps_file import open_steps
from shoal.cli.tensors import facts_tables
from shoal.cli.undeploy import undeploy, undeployment, undeployments
from shoal.cli.waiting import follow
from shoal.errors import SettingError
from shoal.tasks import KINDS

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
#: Seconds for the controller to hash, store and check a model of gigabytes once it has it.
_READING_S = 600.0
_data = click.option(
    "--data",
    "data",
    type=_FILE,
    multiple=True,
    help="A file that FILE keeps weights in, of the name that it uses; may be repeated. Those that "
    "are beside FILE are found.",
)
_wait = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended."
)
_steps = click.option(
    "--steps",
    type=_FILE,
    help="With --task tensors: TOML of pre- and post-processing that becomes part of the model, so "
    "that raw data is sent; docs/models/steps.md.",
)


@click.group(cls=CommandGroup)
def model() -> None:
    """Models: a series of releases, trained or imported from ONNX."""


@model.command("list")
@click.option("--all", "all_", is_flag=True, help="With those that are retired.")
@click.pass_obj
def list_models(session: Session, all_: bool) -> None:
    """List models.

    \b
    Example:
      shoal model list
    """
    more: dict[str, Any] = {"all": "true"} if all_ else {}
    found = list(session.api.items(at("models"), **more))
    columns: Columns = {
        "model": "name",
        "releases": "releases",
        "newest": "latest",
        "released": "released",
        "retrains on drift": "retrain_on_drift",
        "from": "dataset",
        "rounds on drift": "task",
        "retired": retired,
        "since": lambda m: instant(m["created_at"]),
    }
    none = "no model; train one with: shoal model train MODEL --dataset NAME"
    session.show(found, lambda: table(found, columns, empty=none))


@model.command("show")
@click.argument("name")
@click.pass_obj
def show_model(session: Session, name: str) -> None:
    """Show a model and its releases.

    \b
    Example:
      shoal model show lot-codes
    """
    found = session.api.get(at("models", name))
    releases = list(session.api.items(at("releases"), model=name, all="true"))
    columns: Columns = {
        "release": lambda r: f"{r['model']}@{r['version']}",
        "state": "state",
        "dataset": "dataset",
        "metrics": "metrics",
        "trigger": "trigger",
        "trained by": trained_by,
        "revoked": revoked,
        "quarantined": quarantined,
        "retired": retired,
        "when": lambda r: instant(r["created_at"]),
    }
    session.show(
        found | {"history": releases}, lambda: table(releases, columns, empty="no release yet")
    )


@model.command("train", cls=TrainCommand)
@click.argument("name")
@click.option("--dataset", required=True, metavar="NAME[@N]", help="Dataset to train on.")
@click.option("--estimator", default="", help="Estimator to fit, of the list below.")
@click.option(
    "--task",
    type=click.Choice(["classification", "regression"]),
    help="What the label is, where its column leaves that open.",
)
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="Parameter, of the list below."
)
@click.option("--site", "sites", multiple=True, help="Only rows of this site; may be repeated.")
@click.option(
    "--script",
    type=_FILE,
    help="Your own Python instead of an estimator; docs/training.md says what it is given and "
    "leaves. Every --param but seed, holdout and missing is the script's.",
)
@click.option(
    "--entry",
    default="",
    metavar="[MODULE:]FUNCTION",
    help="Function of the script that is called with the folder; without it, the script is run.",
)
@click.option(
    "--revision",
    default="",
    help="Of your code or configuration, such as a Git commit; kept with the run (shoal run show).",
)
@_wait
@timeout_option
@click.pass_obj
def train(
    session: Session,
    /,
    name: str,
    dataset: str,
    params: tuple[str, ...],
    script: Path | None,
    entry: str,
    wait: bool,
    timeout: float,
    **more: Any,
) -> None:
    """Train the next release of a model: fit, validate, export, quantize per profile, gate, pack.

    \b
    Examples:
      shoal model train defects --dataset parts
      shoal model train defects --dataset parts --estimator logistic --param strength=0.1
      shoal model train defects --dataset parts --site north --param hidden=32,16
      shoal model train defects --dataset parts --script train.py --param depth=4
      shoal model train defects --dataset parts --revision 8c1f2ab
    """
    body = {"dataset": dataset, "params": estimators.typed(pairs(params, "--param"))}
    body |= {name: value for name, value in more.items() if value}
    if script is not None:
        _finish(session, _train_with(session, script, entry, name, body), wait, timeout)
        return
    if entry:
        raise SettingError("--entry is of a script", "add --script FILE, or leave --entry out")
    _finish(session, session.api.post(at("models", name, "train"), body), wait, timeout)


def _train_with(session: Session, script: Path, entry: str, name: str, body: dict[str, Any]) -> Any:
    """Send a script, and what a training is given besides."""
    if "estimator" in body:
        raise SettingError("--script is trained instead of an estimator", "leave --estimator out")
    fields = {
        "dataset": body["dataset"],
        "entry": entry,
        "task": body.get("task", ""),
        "params": msgspec.json.encode(body["params"]).decode(),
        "sites": ",".join(body.get("sites", ())),
        "revision": body.get("revision", ""),
    }
    with ExitStack() as opened:
        files = {"script": _upload(opened, script)}
        return session.api.upload(at("models", name, "script"), files, fields)


@model.command("import")
@click.argument("name")
@click.argument("file", type=_FILE)
@click.option("--dataset", default="", metavar="NAME[@N]", help="Dataset to measure it on.")
@click.option(
    "--task",
    type=click.Choice(list(KINDS)),
    help="What its outputs mean. With --dataset: classification or regression, where the label's "
    "column leaves that open. tensors: any ONNX model; nothing is claimed about it.",
)
@click.option(
    "--sample",
    type=_FILE,
    help="Without --dataset: .npz of inputs to run it with, one array for each input, items "
    'stacked along a new first axis; it is measured on the array "label". Without it, shapes are '
    "tried, and nothing is measured. By 8 real items or more, smaller and faster variants are "
    "made, measured, and kept where they agree with FILE.",
)
@click.option(
    "--task-settings",
    "settings",
    type=_FILE,
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
    type=_FILE,
    help="JSON: units, ranges, scaling, missing values; docs/sources-and-sinks.md.",
)
@_wait
@timeout_option
@click.pass_obj
def import_(
    session: Session,
    name: str,
    file: Path,
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
    """Make the next release of a model from your own ONNX FILE.

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
      shoal model import lot-codes mine.onnx --dataset stamps@1
      shoal model import digits cnn.onnx --task classification --sample d.npz --labels names.txt
      shoal model import faces embed.onnx --task embedding --sample faces.npz
      shoal model import ocr-lines lines.onnx --task tensors
      shoal model import ocr-lines lines.onnx --task tensors --sample lines.npz
      shoal model import ocr-lines lines.onnx --task tensors --steps steps.toml
      shoal model import ocr-lines lines.onnx --task tensors --sample lines.npz --input-kind x=image
      shoal model import ocr-lines lines.onnx --task tensors --data /srv/lines.onnx.data
    """
    if not dataset and not task:
        raise SettingError(
            f"nothing to measure {file.name} on",
            "add --dataset NAME for a model of rows; for any other --task TASK with --sample "
            "FILE.npz, or --task tensors: nothing is claimed about it",
        )
    fields = {"dataset": dataset, "labels": _labels(labels), "task": task or ""}
    fields["kinds"] = ",".join(kinds)
    if settings is not None:
        fields["settings"] = settings.read_bytes().decode(errors="replace")
    if pipeline is not None:
        fields["pipeline"] = pipeline.read_bytes().decode(errors="replace")
    with ExitStack() as opened:
        files = _model(session, opened, file, data)
        for variant, path in pairs(variants, "--variant").items():
            files[f"variant:{variant}"] = _upload(opened, Path(path))
        if sample is not None:
            files["sample"] = _upload(opened, sample)
        if steps is not None:
            files["steps"] = open_steps(steps)
        started = session.api.upload(at("models", name, "import"), files, fields, _READING_S)
    _finish(session, started, wait, timeout)


@model.command("inspect")
@click.argument("file", type=_FILE)
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


@model.command("policy")
@click.argument("name")
@click.option(
    "--retrain-on-drift/--no-retrain-on-drift",
    default=None,
    help="Retrain automatically when a drift alert is open and newer data has arrived.",
)
@click.option("--dataset", default=None, metavar="NAME", help="Dataset that gets newer data.")
@click.option(
    "--task", default=None, help='A federated task whose rounds run when it drifts; "" for none.'
)
@click.option("--rounds", type=click.IntRange(1, 10_000), help="Of that task.  [default: 10]")
@click.option(
    "--cooldown",
    "cooldown_s",
    type=DURATION,
    help="Minimum time between two of them.  [default: 1d]",
)
@click.pass_obj
def policy(session: Session, /, name: str, **changes: Any) -> None:
    """Show or change the retraining policy of a model.

    \b
    Examples:
      shoal model policy lot-codes
      shoal model policy lot-codes --retrain-on-drift --dataset stamps
      shoal model policy lot-codes --task scratches --rounds 20 --cooldown 12h
    """
    now = session.api.get(at("models", name))
    if any(value is not None for value in changes.values()):
        body = {name: now[name] if value is None else value for name, value in changes.items()}
        now = session.api.put(at("models", name, "policy"), body)
    session.show(now, lambda: _policy_line(now, session.now()))


def _policy_line(model: JsonObject, now_s: float) -> str:
    name, lines = model["name"], []
    if model["retrain_on_drift"]:
        lines += [f"{name} is retrained when it drifts and {model['dataset']} has newer data"]
    if model["task"]:
        rounds = f"{model['rounds']} rounds of {model['task']}"
        often = (
            f"every {duration(model['cooldown_s'])} at most; last {ago(model['asked_at'], now_s)}"
        )
        lines += [f"{rounds} are run when {name} drifts, {often}"]
    return "\n".join(lines) or f"{name} is trained manually only"


@model.command("retire")
@click.argument("name")
@click.option("--reason", default="", help="For the audit log.")
@click.pass_obj
def retire(session: Session, name: str, reason: str) -> None:
    """Retire a model with all of its releases: no training, import or rollout any more.

    Devices that serve it go on; "shoal model undeploy" removes it from them.

    \b
    Example:
      shoal model retire lot-codes --reason "the line was taken down"
    """
    after = session.api.post(at("models", name, "retire"), {"reason": reason})
    back = f"take it back with: shoal model unretire {plain(name)}"
    session.show(after, lambda: Group(f"{plain(name)} is retired", back))


@model.command("unretire")
@click.argument("name")
@click.pass_obj
def unretire(session: Session, name: str) -> None:
    """Take a retired model back.

    \b
    Example:
      shoal model unretire lot-codes
    """
    after = session.api.post(at("models", name, "unretire"))
    session.show(after, lambda: f"{plain(name)} can be trained and rolled out again")


model.add_command(
    deletion_of(
        "models",
        "a model with all of its releases",
        "shoal model delete lot-codes",
        alone=True,
    )
)


for _command in (list_estimators, undeploy, undeployments, undeployment):
    model.add_command(_command)


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Options of the form NAME=VALUE as a dictionary.

    >>> pairs(("a=1", "b=x=y"), "--param")
    {'a': '1', 'b': 'x=y'}
    """
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise SettingError(f"{option} {text!r}", f"write it as {option} NAME=VALUE")
        found[name] = value
    return found


def _model(
    session: Session, opened: ExitStack, file: Path, given: tuple[Path, ...]
) -> dict[str, tuple[str, Any]]:
    """The upload of an ONNX file and its data files; says which of these were found."""
    found = data_files(file, given)
    for name, path in found.items():
        if path not in given:
            session.print_line(f"with {plain(name)} ({size(path.stat().st_size)}) from beside it")
    uploads = {f"data:{name}": _upload(opened, path) for name, path in found.items()}
    return {"onnx": _upload(opened, file), **uploads}


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


def _upload(opened: ExitStack, path: Path) -> tuple[str, Any]:
    try:
        return path.name, opened.enter_context(path.open("rb"))
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from error


def _finish(session: Session, started: dict[str, Any], wait: bool, timeout: float) -> None:
    """Wait if requested, and show the resulting release."""
    if not wait:
        session.show(started, lambda: operation_card(started))
        session.print_line(f"watch it with: shoal operation watch {started['id']}")
        return
    ended = follow(session, started, timeout)
    release = session.api.get(at("releases", ended["result"]["release"]))
    session.show(ended | {"release": release}, lambda: release_card(release))
