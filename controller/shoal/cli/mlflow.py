"""`shoal mlflow`: the connection to an MLflow server, and the aliases that are followed."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import JsonObject, at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import DURATION, confirm, names_of, yes_option
from shoal.cli.plan_options import DEFAULT_STAGES
from shoal.cli.plan_options import gates as gate_plans
from shoal.cli.plan_options import stages as stage_plans
from shoal.cli.render import Columns, card, plain, state, table, when
from shoal.errors import SettingError
from shoal.tasks import KINDS


@click.group(cls=CommandGroup)
def mlflow() -> None:
    """MLflow: what is mirrored to it, and the aliases whose versions are rolled out.

    The server is named in controller.toml, under [mlflow]; docs/mlflow.md. A version is imported
    once with: shoal model import NAME mlflow:NAME/VERSION
    """


@mlflow.command("status")
@click.pass_obj
def status(session: Session) -> None:
    """Show the connection: runs that are mirrored, aliases that are followed, and the newest
    versions with what became of them.

    \b
    Example:
      shoal mlflow status
    """
    found = session.api.get(at("mlflow"))
    session.show(found, lambda: _status(session, found))


def _status(session: Session, found: JsonObject) -> Any:
    if not found["url"]:
        return plain('no MLflow server; set url = "https://..." under [mlflow] in controller.toml')
    ago = when("sent_at", session.now)
    facts = card(
        found,
        {
            "server": "url",
            "experiment": lambda s: plain(s["runs"]["experiment"]),
            "runs": lambda s: _mirrored(s["runs"]),
            "last sent": lambda s: ago(s["runs"]) if s["runs"]["sent_at"] else "",
            "error": lambda s: plain(s["runs"]["error"]),
        },
    )
    rules: Columns = {
        "alias": "name",
        "to model": "model",
        "names version": "version",
        "policy": lambda f: f["rule"]["policy"],
        "stages": lambda f: plain([one["name"] for one in f["rule"]["plan"]["stages"]]),
        "by": "created_by",
        "looked": when("checked_at", session.now),
        "error": "error",
    }
    versions: Columns = {
        "alias": "follow",
        "version": "version",
        "state": state(),
        "release": "release",
        "rollout": "rollout",
        "seen": when("seen_at", session.now),
        "reason": "reason",
    }
    none = "no alias is followed; see: shoal mlflow follow -h"
    parts = [facts, "", table(found["follows"], rules, empty=none)]
    if found["versions"]:
        parts += ["", table(found["versions"], versions, empty="")]
    return Group(*parts)


def _mirrored(runs: JsonObject) -> str:
    if not runs["enabled"]:
        return "not mirrored"
    return f"{runs['sent']} mirrored, {runs['waiting']} waiting, {runs['failed']} given up"


@mlflow.command("follow")
@click.argument("name", metavar="NAME@ALIAS")
@click.option("--model", default="", help="Model here.  [default: NAME]")
@click.option("--dataset", default="", metavar="NAME[@N]", help="Dataset to measure versions on.")
@click.option("--task", type=click.Choice(list(KINDS)), help="As of: shoal model import.")
@click.option("--labels", default="", metavar="A,B,...", help="Labels by place in the output.")
@click.option("--group", default="", help="Roll out to the devices of this group alone.")
@click.option(
    "--stage", "stages", multiple=True, metavar="NAME:KEY=VALUE,...",
    help="A stage, as of shoal rollout start.  [default: canary:ring=canary, then everyone]",
)  # fmt: skip
@click.option(
    "--gate", "gates", multiple=True, metavar="METRIC[:KEY=VALUE,...]",
    help="A behaviour gate, as of shoal rollout start.",
)  # fmt: skip
@click.option(
    "--on-failure", type=click.Choice(["pause", "stop", "rollback"]), default="pause",
    show_default=True, help="When a gate fails.",
)  # fmt: skip
@click.option("--deadline", type=DURATION, default="24h", show_default=True, help="Of one device.")
@click.option(
    "--policy", type=click.Choice(["release", "candidate"]), default="release", show_default=True,
    help="Sign a version that passes its gates for the whole fleet, or for canary devices alone.",
)  # fmt: skip
@click.option("--now", is_flag=True, help="Also roll out the version that the alias names already.")
@click.pass_obj
def follow(
    session: Session, /, name: str, model: str, group: str, stages: tuple[str, ...],
    gates: tuple[str, ...], on_failure: str, deadline: float, now: bool, labels: str, **given: Any,
) -> None:  # fmt: skip
    """Roll out every version that an alias moves to, in your name: imported, measured, signed if no
    gate refuses it, stage by stage. What becomes of it is written back as tags of the version
    (shoal.state, shoal.release, shoal.rollout, shoal.reason). Each version is dealt with once.

    \b
    Examples:
      shoal mlflow follow lot-codes@champion --dataset stamps
      shoal mlflow follow press@prod --model lot-codes --task tensors --group north
      shoal mlflow follow press@prod --task tensors --stage canary:ring=canary --stage rest \\
          --gate errors --on-failure rollback
    """
    if group and stages:
        raise SettingError("--group and --stage both choose devices", "leave one of them out")
    plan: JsonObject = {
        "stages": stage_plans(stages or DEFAULT_STAGES),
        "on_failure": on_failure,
        "deadline_s": deadline,
    }
    if group:
        selected = session.api.get(at("groups", group))["select"]
        plan["stages"] = [{"name": "group", "select": selected}]
    if gates:
        plan["gates"] = gate_plans(gates)
    body = {name: value for name, value in given.items() if value}
    body |= {"alias": name.removeprefix("mlflow:"), "plan": plan, "now": now}
    body |= {"model": model or body["alias"].partition("@")[0]}
    body |= {"labels": names_of(labels)}
    made = session.api.post(at("mlflow", "follows"), body)
    names = f"version {made['version']}" if made["version"] else "no version yet"
    lines = f"{plain(made['name'])} is followed; it names {names}" + (
        ", which is rolled out" if now else ""
    )
    session.show(made, lambda: f"{lines}\nwatch it with: shoal mlflow status")


@mlflow.command("unfollow")
@click.argument("name", metavar="NAME@ALIAS")
@yes_option
@click.pass_obj
def unfollow(session: Session, name: str, yes: bool) -> None:
    """Follow an alias no more. Rollouts that it has started go on.

    \b
    Example:
      shoal mlflow unfollow lot-codes@champion
    """
    if not yes:
        confirm(f"Follow {name} no more?")
    session.api.delete(at("mlflow", "follows", name))
    session.show({"name": name}, lambda: f"{plain(name)} is not followed any more")
