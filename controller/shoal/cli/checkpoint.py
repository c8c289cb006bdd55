"""`shoal round evaluate`, `release`, `quarantine`, `lift`: commands on checkpoints."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import Command, Session
from shoal.cli.exit_codes import FailedError
from shoal.cli.options import confirm, timeout_option, yes_option
from shoal.cli.release import release_card
from shoal.cli.render import Columns, JsonObject, card, plain, state, table
from shoal.cli.waiting import follow, poll


@click.command("release", cls=Command)
@click.argument("task", metavar="TASK")
@click.option("--round", type=click.IntRange(1), help="Of this round instead of the newest.")
@click.option(
    "--dataset",
    default="",
    metavar="NAME[@N]",
    help="Dataset with held-back rows for its gates; default: that of the task's first release.",
)
@click.option("--candidate", is_flag=True, help="Sign it for canaries when no gate refuses it.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it is built.")
@timeout_option
@click.pass_obj
def release_checkpoint(
    session: Session, /, task: str, wait: bool, timeout: float, **body: Any
) -> None:
    """Make a release of a checkpoint: variants, golden vectors, gates on held-back rows.

    \b
    Examples:
      shoal round release scratches
      shoal round release scratches --round 12 --candidate
    """
    started = session.api.post(at("tasks", task, "release"), body)
    if not wait:
        hint = f"watch it with: shoal operation watch {started['id']}"
        session.show(started, lambda: hint)
        return
    ended = follow(session, started, timeout)
    made = session.api.get(at("releases", ended["result"]["release"]))
    session.show(ended | {"release": made}, lambda: release_card(made))


@click.command("quarantine", cls=Command)
@click.argument("task", metavar="TASK")
@click.argument("number", metavar="N", type=click.IntRange(1))
@click.option("--why", required=True, help="The reason: it is stored, shown and audited.")
@yes_option
@click.pass_obj
def quarantine(session: Session, task: str, number: int, why: str, yes: bool) -> None:
    """Mark a round as poisoned, with every checkpoint and release derived from it.

    The task continues from its newest clean checkpoint. Rollouts of such releases pause, and
    assignments not yet installed are withdrawn. Devices that serve one keep it; the command to roll
    them back is printed.

    \b
    Example:
      shoal round quarantine scratches 7 --why "press-3 was found to be tampered with"
    """
    if not yes:
        confirm(f"Quarantine round {number} of {task}?")
    after = session.api.post(at("tasks", task, "quarantine"), {"round": number, "why": why})
    session.show(after, lambda: _quarantine_summary(after))


def _quarantine_summary(after: JsonObject) -> Group:
    """A task after a quarantine: affected releases, rollouts and devices, and the next step."""
    about: Columns = {
        "task": "name",
        "state": state(),
        "continues from round": "parent",
        "releases": lambda t: plain(", ".join(t["releases"]) or "none"),
        "rollouts": "rollouts",
        "assignments withdrawn": lambda t: plain(", ".join(t["withdrawn"])),
    }
    serving = [{"release": r, "devices": ", ".join(on)} for r, on in after["serving"].items()]
    columns: Columns = {"still served": "release", "devices": "devices"}
    return Group(
        card(after, about),
        "", table(serving, columns, empty="no device serves a release of it"),
        *(["", plain(after["next_step"])] if after["next_step"] else []),
    )  # fmt: skip


@click.command("lift", cls=Command)
@click.argument("task", metavar="TASK")
@click.argument("number", metavar="N", type=click.IntRange(1))
@click.option("--why", required=True, help="The reason: it is audited.")
@yes_option
@click.pass_obj
def lift(session: Session, task: str, number: int, why: str, yes: bool) -> None:
    """Lift the quarantine of a round, as an admin.

    Everything derived from the round is clean again, unless it also derives from another round in
    quarantine, and the task continues from its newest clean checkpoint. Nothing is rolled out
    automatically: paused rollouts wait, and devices keep their releases.

    \b
    Example:
      shoal round lift scratches 7 --why "it was press-4 that was tampered with"
    """
    if not yes:
        confirm(f"Lift the quarantine of round {number} of {task}?")
    body = {"round": number, "why": why}
    after = session.api.post(at("tasks", task, "quarantine", "lift"), body)
    session.show(after, lambda: _lift_summary(after))


def _lift_summary(after: JsonObject) -> Group:
    """A task after a quarantine was lifted, and the releases that may be rolled out again."""
    about: Columns = {
        "task": "name",
        "state": state(),
        "continues from round": "parent",
        "rounds cleared": lambda t: plain(", ".join(t["cleared"])),
        "still in quarantine": lambda t: plain(", ".join(map(str, t["rounds_left"])) or "no round"),
        "releases": lambda t: plain(", ".join(t["releases"]) or "none"),
        "rollouts": "rollouts",
    }
    return Group(
        card(after, about), *(["", plain(after["next_step"])] if after["next_step"] else [])
    )


@click.command("evaluate", cls=Command)
@click.argument("task", metavar="TASK")
@click.option("--round", "number", type=click.IntRange(0),
              help="Of this round instead of the newest; 0: the task's start.")  # fmt: skip
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Until all devices have evaluated it."
)
@timeout_option
@click.pass_obj
def evaluate(session: Session, task: str, number: int | None, wait: bool, timeout: float) -> None:
    """Evaluate a checkpoint on the rows of every eligible device. Nothing is trained.

    \b
    Examples:
      shoal round evaluate scratches
      shoal round evaluate scratches --round 12
    """
    started: JsonObject = session.api.post(at("tasks", task, "evaluate"), {"round": number})
    if not wait:
        session.show(started, lambda: f"see the results: shoal round show {started['id']}")
        return
    ended = poll(
        session,
        lambda: session.api.get(at("rounds", started["id"])),
        lambda seen: bool(seen["ended_at"]),
        again=f"shoal round show {started['id']}",
        timeout_s=timeout,
    )
    if ended["state"] != "DONE":
        raise FailedError(f"round {ended['id']}: {ended['reason']}")
    slices = [{"slice": "all rows", **ended["measured"]}]
    slices += [{"slice": name, **one} for name, one in ended["slices"].items()]
    columns: Columns = {
        one: one for one in ("slice", "rows", "devices", "loss", "accuracy", "low", "high")
    }
    session.show(ended, lambda: table(slices, columns, empty="no device evaluated it"))


#: Commands of the group `shoal round`.
COMMANDS = (evaluate, release_checkpoint, quarantine, lift)
