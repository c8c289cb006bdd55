"""`shoal group`: what each group of devices runs, and which devices deviate."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import JsonObject, at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import confirm, yes_option
from shoal.cli.render import Columns, card, plain, state, table, when

_STATES = (
    "CONVERGING", "PAUSED", "ROLLOUT", "AWAY", "FAILED", "CANNOT", "HELD", "PINNED", "EXCLUDED",
    "KEPT",
)  # fmt: skip


@click.group(cls=CommandGroup)
def group() -> None:
    """Groups: what devices are to run, and which do not.

    A rollout moves the groups that it targets; devices that were away, join later or replace
    others get what their group runs. The whole fleet is the group "fleet".
    """


@group.command("list")
@click.pass_obj
def list_groups(session: Session) -> None:
    """List groups and what each runs, the whole fleet first.

    \b
    Example:
      shoal group list
    """
    found = list(session.api.items(at("groups")))
    columns: Columns = {
        "group": "name",
        "devices of": "selector",
        "devices": "devices",
        "runs": lambda g: plain([one["release"] or f"no {one['model']}" for one in g["releases"]]),
        "deviating": lambda g: plain(str(sum(one["deviating"] for one in g["releases"]))),
    }
    session.show(found, lambda: table(found, columns, empty="no group"))


@group.command("show")
@click.argument("name")
@click.option(
    "--state", "state_", default="", type=click.Choice(["", *_STATES]), help="Only these."
)
@click.option("--limit", default=100, show_default=True, help="Deviating devices; 0 for all.")
@click.pass_obj
def show_group(session: Session, name: str, state_: str, limit: int) -> None:
    """Show what a group runs and since when, and which of its devices do not, with the reason.

    \b
    Examples:
      shoal group show fleet
      shoal group show site=north --state FAILED
    """
    found: JsonObject = session.api.get(at("groups", name))
    query = {"group": name, "state": state_}
    deviating = list(session.api.items(at("deviations"), most=limit, **query))
    whole = {"group": found, "deviations": deviating}
    session.show(whole, lambda: _view(session, found, deviating))


@group.command("create")
@click.argument("name")
@click.option("--site", default="", help="Devices of this site.")
@click.option("--line", default="", help="Devices of this line.")
@click.option("--ring", default="", help="Devices of this ring.")
@click.option("--profile", default="", help="Devices of this firmware profile.")
@click.option("--label", default="", metavar="KEY[=VALUE]", help="Devices with this label.")
@click.pass_obj
def create_group(session: Session, /, name: str, **select: str) -> None:
    """Name the devices of a selection. It runs nothing of its own until a rollout targets it.

    \b
    Examples:
      shoal group create north --site north
      shoal group create north-gpu --site north --label gpu
    """
    chosen = {key: value for key, value in select.items() if value}
    made = session.api.post(at("groups"), {"name": name, "select": chosen})
    session.show(made, lambda: f"group {plain(name)}: {made['devices']} devices")


@group.command("delete")
@click.argument("name")
@yes_option
@click.pass_obj
def delete_group(session: Session, name: str, yes: bool) -> None:
    """Delete a group: its devices run what the wider group that is left runs.

    \b
    Example:
      shoal group delete north
    """
    if not yes:
        confirm(f"Delete group {name}? Its devices then run what the wider group runs.")
    session.api.delete(at("groups", name))
    session.show({"name": name, "deleted": True}, lambda: f"group {plain(name)} is deleted")


def _view(session: Session, found: JsonObject, deviating: list[Any]) -> Group:
    about: Columns = {"group": "name", "devices of": "selector", "devices": "devices"}
    runs: Columns = {
        "model": "model",
        "runs": lambda one: plain(one["release"] or "none"),
        "since": when("since", session.now),
        "by": "rollout",
        "reason": "reason",
        "deviating": "deviating",
    }
    columns: Columns = {
        "device": "device",
        "is to run": lambda one: plain(one["want"] or "none"),
        "serves": lambda one: plain(one["serves"] or "nothing"),
        "state": state(),
        "why": "why",
        "since": when("since", session.now),
    }
    nothing = "nothing yet: a rollout that targets it moves it"
    return Group(
        card(found, about),
        "\n[bold]runs[/bold]",
        table(found["releases"], runs, empty=nothing),
        "\n[bold]deviating devices[/bold]",
        table(deviating, columns, empty="none: all devices run it"),
    )
