"""`shoal model`: list, show, train, retire, and set the retraining policy."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Group

from shoal import estimators
from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.deletion import deletion_of
from shoal.cli.estimators import TrainCommand, list_estimators
from shoal.cli.model_import import import_, inspect
from shoal.cli.model_upload import FILE, finish, open_upload, pairs, wait_option
from shoal.cli.options import DURATION, timeout_option
from shoal.cli.release import quarantined, retired, revoked, trained_by
from shoal.cli.render import Columns, JsonObject, ago, duration, instant, plain, table
from shoal.cli.undeploy import undeploy, undeployment, undeployments
from shoal.errors import SettingError


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
    type=FILE,
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
@wait_option
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
        finish(session, _train_with(session, script, entry, name, body), wait, timeout)
        return
    if entry:
        raise SettingError("--entry is of a script", "add --script FILE, or leave --entry out")
    finish(session, session.api.post(at("models", name, "train"), body), wait, timeout)


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
        files = {"script": open_upload(opened, script)}
        return session.api.upload(at("models", name, "script"), files, fields)


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


for _command in (import_, inspect, list_estimators, undeploy, undeployments, undeployment):
    model.add_command(_command)
