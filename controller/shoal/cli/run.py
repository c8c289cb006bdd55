"""`shoal run`: trainings and imports, what went in and what came out."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.render import Columns, JsonObject, card, duration, instant, plain, size, state, table
from shoal.errors import SettingError


@click.group(cls=CommandGroup)
def run() -> None:
    """Runs: trainings and imports with their parameters, metrics and releases."""


@run.command("list")
@click.option("--model", default="", help="Only runs of this model.")
@click.option(
    "--state",
    "state_",
    type=click.Choice(["queued", "running", "succeeded", "failed", "canceled"]),
    help="Only runs in this state.",
)
@click.option(
    "--kind", type=click.Choice(["train", "import", "checkpoint"]), help="Only runs of this kind."
)
@click.option("--dataset", default="", metavar="NAME[@N]", help="Only runs on this dataset.")
@click.option(
    "--where",
    "wheres",
    multiple=True,
    metavar="CONDITION",
    help="Such as 'accuracy > 0.96', 'params.hidden = 64,32' or 'tags.team = vision'; joined by "
    "and; may be repeated.",
)
@click.option(
    "--sort",
    default="",
    metavar="NAME|best",
    help="A metric or parameter (params.NAME) to sort by, the better values first; best, with "
    "--model: the metric that its releases are judged by.  [default: the newest first]",
)
@click.option("--order", type=click.Choice(["asc", "desc"]), help="Of --sort.")
@click.option("--limit", default=20, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_runs(
    session: Session, /, state_: str | None, wheres: tuple[str, ...], limit: int, **more: Any
) -> None:
    """List runs.

    \b
    Examples:
      shoal run list --model defects --sort best
      shoal run list --where 'accuracy > 0.9 and params.alpha < 0.01' --sort rmse
      shoal run list --dataset parts@3 --state failed
    """
    query = {name: value for name, value in more.items() if value}
    query["q"] = " and ".join(wheres)
    found = list(session.api.items(at("runs"), most=limit, state=state_ or "", **query))
    sort = "" if more["sort"] == "best" else more["sort"]
    none = "no such run; train with: shoal model train MODEL --dataset NAME"
    session.show(found, lambda: table(found, _columns(sort), empty=none))


def _columns(sort: str) -> Columns:
    return {
        "run": "id",
        "model": "model",
        "kind": "kind",
        "state": state(),
        "data": "dataset",
        "estimator": "estimator",
        "metric": lambda r: _metric(r, sort),
        "took": lambda r: duration(r["duration_s"]) if r["duration_s"] else "",
        "started": lambda r: instant(r["started_at"] or r["created_at"]),
        "release": "release",
        "tags": "tags",
    }


def _metric(one: JsonObject, sort: str) -> str:
    """The metric or parameter that is sorted by, else the main one."""
    name = sort.removeprefix("metrics.").removeprefix("params.").strip("`") or one["main"]
    value = one["params" if sort.startswith("params.") else "metrics"].get(name)
    return "" if value is None else f"{plain(name)} {plain(value)}"


@run.command("show")
@click.argument("id_", metavar="RUN")
@click.pass_obj
def show_run(session: Session, id_: str) -> None:
    """Show one run, by its id or by the release that it made.

    \b
    Examples:
      shoal run show op-4f1d08ac2b9e
      shoal run show defects@3
    """
    found = session.api.get(at("runs", id_))
    session.show(found, lambda: _run_card(found))


@run.command("compare")
@click.argument("ids", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Also what is the same in all of them.")
@click.pass_obj
def compare(session: Session, ids: tuple[str, ...], everything: bool) -> None:
    """Compare runs: parameters, metrics and versions that differ. * marks the best value.

    \b
    Examples:
      shoal run compare op-4f1d08ac2b9e op-77ab01fe9d20
      shoal run compare defects@2 defects@3 --all
    """
    found = session.api.get(at("runs", "compare"), runs=",".join(ids))
    session.show(found, lambda: _comparison(found, everything))


@run.command("tag")
@click.argument("id_", metavar="RUN")
@click.argument("tags", metavar="NAME=VALUE...", nargs=-1)
@click.option("--remove", multiple=True, metavar="NAME", help="Remove a tag; may be repeated.")
@click.option("--note", default=None, help='Replace the note; "" removes it.')
@click.pass_obj
def tag(
    session: Session, id_: str, tags: tuple[str, ...], remove: tuple[str, ...], note: str | None
) -> None:
    """Set tags and the note of a run. Search them with: shoal run list --where 'tags.NAME = VALUE'

    \b
    Examples:
      shoal run tag op-4f1d08ac2b9e team=vision stage=pilot
      shoal run tag defects@3 --note "the camera was out of focus until Tuesday"
      shoal run tag defects@3 --remove stage
    """
    given: dict[str, str | None] = dict.fromkeys(remove)
    for text in tags:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise SettingError(f"tag {text!r}", "write it as NAME=VALUE, or give --remove NAME")
        given[name] = value
    if not given and note is None:
        raise SettingError("nothing to set", "give NAME=VALUE, --remove NAME or --note TEXT")
    found = session.api.post(at("runs", id_, "annotate"), {"tags": given, "note": note})
    session.show(found, lambda: _run_card(found))


def _run_card(found: JsonObject) -> Any:
    facts = card(
        found,
        {
            "run": "id",
            "model": "model",
            "kind": "kind",
            "state": state(),
            "release": lambda r: " ".join(filter(None, (r["release"], r["release_state"]))),
            "dataset": "dataset",
            "estimator": "estimator",
            "from": lambda r: _source(r["source"]),
            "revision": "revision",
            "trigger": "trigger",
            "requested": lambda r: f"{instant(r['created_at'])} by {plain(r['created_by'])}",
            "took": lambda r: f"{r['duration_s']:.1f} s" if r["started_at"] else "",
            "parameters": "params",
            "metrics": "metrics",
            "curves": lambda r: plain({k: f"{len(v)} values" for k, v in r["curves"].items()}),
            "tags": "tags",
            "note": "note",
            "environment": "environment",
            "error": "error",
        },
    )
    columns: Columns = {
        "file": "name",
        "size": lambda f: size(f["size"]) if f["size"] else "",
        "sha256": "sha256",
    }
    files = table(found["artifacts"], columns, empty="")
    return Group(facts, "", files) if found["artifacts"] else facts


def _source(one: JsonObject | None) -> str:
    """Where an imported model is from."""
    if one is None:
        return ""
    facts = [f"{one['system']}:{one['name']}", one["url"], one["run"] and f"run {one['run']}"]
    facts += [one["code"], *(f"{name}={text}" for name, text in one["tags"].items())]
    return plain(", ".join(filter(None, facts)))


def _comparison(found: JsonObject, everything: bool) -> Any:
    rows = []
    facts = [{"name": k, "values": [r[k] for r in found["runs"]]} for k in ("release", "dataset")]
    parts = {name: found[name] for name in ("metrics", "params", "environment")}
    for part, items in ({"": facts} | parts).items():
        shown = [i for i in items if everything or i.get("differs", True)]
        rows += [{"part": part, "best": -1} | item for item in shown]
    columns: dict[str, Any] = {"of": "part", "name": "name"}
    for place, one in enumerate(found["runs"]):
        columns[one["id"]] = lambda row, place=place: (
            plain(row["values"][place]) + (" *" if row["best"] == place else "")
        )
    return table(rows, columns, empty="they do not differ")
