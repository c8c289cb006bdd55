"""`shoal round`: federated training: plan tasks, run and show rounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.exit_codes import FailedError
from shoal.cli.options import confirm, timeout_option, yes_option
from shoal.cli.plan_options import override, pairs, read_plan
from shoal.cli.render import Columns, JsonObject, card, duration, plain, size, state, table, when
from shoal.cli.waiting import follow, poll
from shoal.errors import SettingError

#: States in which a task waits for a person or has ended.
AT_REST = frozenset({"ready", "stopped", "failed"})
#: Default of a device: shoal.agent.host.round_limits.Limits.
COHORT = 3


@click.group(cls=CommandGroup, name="round")
def round_() -> None:
    """Federated rounds: devices train on their own rows and send model updates, never rows."""


@round_.command("plan")
@click.argument("name", metavar="TASK")
@click.option("--release", help="MODEL@N to start from.")
@click.option("--dataset", help="Or train a first release on this dataset.")
@click.option("--model", help="The model of --dataset.")
@click.option("--goal", type=int, help="Number of updates that completes a round.")
@click.option("--least", type=int, help="Minimum number of updates, else the round fails.")
@click.option("--over", type=float, help="Devices invited per update of the goal.  [default: 1.3]")
@click.option("--lr", type=float, help="Learning rate on the devices.  [default: 0.05]")
@click.option("--epochs", type=int, help="Epochs over a device's own rows per round.")
@click.option("--batch", type=int, help="Batch size.")
@click.option("--strategy", help="Aggregation strategy: docs/federated/strategies.md.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of the strategy."
)
@click.option(
    "--compression",
    type=click.Choice(["none", "int8", "int4", "top-k"]),
    help="Compression of updates.",
)
@click.option(
    "--secure",
    is_flag=True,
    help="Secure aggregation: the controller sees only the sum of the updates.",
)
@click.option(
    "--privacy",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="where=central|local|distributed, clip, noise, delta: differential privacy.",
)
@click.option("--budget", type=float, help="Maximum epsilon over all rounds.")
@click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A plan in TOML, for all other settings; options override it.",
)
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until it is prepared."
)
@timeout_option
@click.pass_obj
def plan(session: Session, /, name: str, wait: bool, timeout: float, **options: Any) -> None:
    """Plan a federated task, and build its train graph.

    \b
    Examples:
      shoal round plan scratches --release lot-codes@2 --goal 10 --least 5 --lr 0.05
      shoal round plan scratches --release lot-codes@2 --goal 20 --least 15 --lr 0.05 --secure
      shoal round plan scratches --file scratches.toml
    """
    task = session.api.post(at("tasks"), _plan(name, options))
    if wait:
        operation = session.api.get(at("operations", task["operation"]))
        follow(session, operation, timeout)
        task = session.api.get(at("tasks", name))
    hint = f"start it with: shoal round start {name} --rounds 10"
    session.show(task, lambda: Group(_task_card(session, task), "", *_warned(task), hint))


@round_.command("start")
@click.argument("task", metavar="TASK")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=1, show_default=True,
              help="Number of rounds.")  # fmt: skip
@click.option(
    "--wait/--no-wait", default=False, show_default=True, help="Watch until they have run."
)
@timeout_option
@click.pass_obj
def start(session: Session, task: str, rounds: int, wait: bool, timeout: float) -> None:
    """Run rounds of a task, one after the other.

    \b
    Example:
      shoal round start scratches --rounds 20 --wait
    """
    started = session.api.post(at("tasks", task, "start"), {"rounds": rounds})
    if wait:
        _watch(session, task, timeout)
        return
    hint = f"watch it with: shoal round watch {task}"
    session.show(started, lambda: Group(_task_card(session, started), "", hint))


@round_.command("watch")
@click.argument("task", metavar="TASK")
@timeout_option
@click.pass_obj
def watch(session: Session, task: str, timeout: float) -> None:
    """Follow a task until its rounds have run. Exit code 0 when they have, 1 when it stopped.

    \b
    Example:
      shoal round watch scratches
    """
    _watch(session, task, timeout)


@round_.command("list")
@click.argument("task", metavar="[TASK]", default="")
@click.option("--limit", default=100, show_default=True, help="Number of newest rounds.")
@click.pass_obj
def list_rounds(session: Session, task: str, limit: int) -> None:
    """List rounds, newest first.

    \b
    Example:
      shoal round list scratches
    """
    found = list(session.api.items(at("rounds"), most=limit, task=task, limit=limit))
    none = "no round; plan a task with: shoal round plan, then: shoal round start TASK"
    session.show(found, lambda: table(found, _rounds(session), empty=none))


@round_.command("tasks")
@click.pass_obj
def list_tasks(session: Session) -> None:
    """List federated tasks, newest first.

    \b
    Example:
      shoal round tasks
    """
    found = list(session.api.items(at("tasks")))
    columns: Columns = {
        "task": "name",
        "model": "model",
        "starts from": "release",
        "state": state(),
        "rounds": _progress,
        "epsilon": _epsilon,
        "reason": "reason",
    }
    none = "no task; plan one with: shoal round plan TASK --release MODEL@N --goal 10 --least 5"
    session.show(found, lambda: table(found, columns, empty=none))


@round_.command("show")
@click.argument("id_", metavar="TASK|TASK.N")
@click.pass_obj
def show_round(session: Session, id_: str) -> None:
    """Show a task with its newest rounds, or one round with its devices.

    \b
    Examples:
      shoal round show scratches
      shoal round show scratches.7
    """
    if "." in id_:
        found = {
            "round": session.api.get(at("rounds", id_)),
            "devices": list(session.api.items(at("rounds", id_, "devices"))),
        }
        session.show(found, lambda: _round_view(session, found))
        return
    whole = {
        "task": session.api.get(at("tasks", id_)),
        "rounds": list(session.api.items(at("rounds"), most=20, task=id_, limit=20)),
    }
    session.show(whole, lambda: _task_view(session, whole))


@round_.command("abort")
@click.argument("task", metavar="TASK")
@yes_option
@click.pass_obj
def abort(session: Session, task: str, yes: bool) -> None:
    """Abort the running round, and start no further one. Finished rounds stay.

    \b
    Example:
      shoal round abort scratches
    """
    if not yes:
        confirm(f"Abort the rounds of {task}?")
    after = session.api.post(at("tasks", task, "abort"))
    session.show(after, lambda: _task_card(session, after))


def _plan(name: str, options: dict[str, Any]) -> dict[str, Any]:
    plan = read_plan(options["path"]) | {"name": name}
    for one in ("release", "dataset", "model", "strategy"):
        if options[one]:
            plan[one] = options[one]
    override(plan, "learning", {one: options[one] for one in ("lr", "epochs", "batch")})
    override(plan, "pace", {one: options[one] for one in ("goal", "least", "over")})
    override(plan, "settings", pairs("--set", options["settings"]))
    override(plan, "privacy", pairs("--privacy", options["privacy"]))
    override(plan, "compression", {"kind": options["compression"]})
    override(plan, "budget", {"epsilon": options["budget"]})
    if "pace" not in plan and options["path"] is None:
        raise SettingError("how many devices?", "give --goal and --least, or [pace] in --file")
    if options["secure"]:
        plan.setdefault("secure", {})
    return plan


def _warned(task: JsonObject) -> list[str]:
    """Warnings about a plan that may exclude devices."""
    least = task["plan"]["pace"]["least"]
    if least >= COHORT:
        return []
    line = (
        f"least is {least}: a device refuses rounds with fewer than {COHORT}, unless cohort under "
        "[learning] in its agent.toml is lower"
    )
    return [escape(line)]


def _watch(session: Session, name: str, timeout_s: float) -> None:
    """Show progress on stderr until the task ends or waits, in a pipe a line per finished round;
    FailedError unless its rounds have run."""
    printed: set[str] = set()
    with Live(console=session.err, refresh_per_second=4, transient=True) as live:

        def look() -> JsonObject:
            task: JsonObject = session.api.get(at("tasks", name))
            newest = list(session.api.items(at("rounds"), most=5, task=name, limit=5))
            if session.err.is_terminal:
                live.update(_task_view(session, {"task": task, "rounds": newest}))
            else:
                _print_finished(newest, printed)
                _print_reason(task, printed)
            return task

        ended = poll(
            session, look, lambda seen: seen["state"] in AT_REST,
            again=f"shoal round watch {name}", timeout_s=timeout_s, why=lambda t: str(t["reason"]),
        )  # fmt: skip
    session.show(ended, lambda: _task_card(session, ended))
    if ended["state"] != "ready":
        raise FailedError(f"task {name} is {ended['state']}: {ended['reason']}", _next_step(ended))


def _print_finished(newest: Sequence[JsonObject], printed: set[str]) -> None:
    """Print a line on stderr for each newly finished round, oldest first."""
    for one in reversed(newest):
        if one["state"] in ("DONE", "FAILED") and one["id"] not in printed:
            printed.add(one["id"])
            parts = (one["state"], f"loss {_loss(one)}", duration(one["seconds"]), one["reason"])
            click.echo(f"{one['id']}  {'  '.join(part for part in parts if part)}", err=True)


def _print_reason(task: JsonObject, printed: set[str]) -> None:
    """Print on stderr, once, what a running task waits for."""
    reason = task["reason"]
    if task["state"] not in AT_REST and reason and reason not in printed:
        printed.add(reason)
        click.echo(f"{task['name']}  {reason}", err=True)


def _next_step(task: JsonObject) -> str:
    """How to continue a stopped task; with a spent privacy budget it cannot continue."""
    name = task["name"]
    if not task["reason"].startswith("budget-spent"):
        return f"shoal round show {name} has its rounds; continue with: shoal round start {name}"
    return (
        f"its checkpoint stays: shoal round release {name}; more rounds cost more privacy and need "
        "another task with a larger --budget, or with more noise"
    )


def _task_view(session: Session, found: JsonObject) -> Group:
    task = found["task"]
    bar = ProgressBar(total=max(1, task["asked"]), completed=task["rounds"], width=40)
    rounds = table(found["rounds"], _rounds(session), empty="no round yet")
    return Group(_task_card(session, task), bar, "", rounds)


def _task_card(session: Session, task: JsonObject) -> Any:
    about: Columns = {
        "task": "name",
        "state": state(),
        "reason": "reason",
        "model": "model",
        "starts from": "release",
        "strategy": lambda t: plain(t["plan"]["strategy"]),
        "rounds": _progress,
        "epsilon": _epsilon,
        "train graph": lambda t: _graph(t, "graph"),
        "loss graph": lambda t: _graph(t, "loss_graph"),
        "planned": when("created_at", session.now),
    }
    return card(task, about)


def _graph(task: JsonObject, which: str) -> str:
    """SHA-256, as for `learning.graphs` in agent.toml; "" before it is built."""
    return plain((task.get("prepared") or {}).get(which, ""))


def _rounds(session: Session) -> Columns:
    return {
        "round": "id",
        "kind": lambda r: "evaluation" if r["purpose"] == "evaluate" else "training",
        "state": _state,
        "devices": "marks",
        "loss": _loss,
        "accuracy": lambda r: plain((r.get("measured") or {}).get("accuracy")),
        "epsilon": _epsilon,
        "bytes": lambda r: size(r["bytes"]),
        "took": lambda r: duration(r["seconds"]) if r["seconds"] else "",
        "started": when("started_at", session.now),
        "reason": lambda r: plain(r["reason"]) or plain(r["reasons"]),
    }


def _round_view(session: Session, found: JsonObject) -> Group:
    about: Columns = {
        **_rounds(session),
        "detail": "detail",
        "try": "attempt",
        "from round": "parent",
        "ignored messages": "ignored",
        "poisoned": "poisoned",
        "pruned": lambda r: when("pruned_at", session.now)(r) if r["pruned_at"] else "",
    }
    slices = [{"slice": name, **one} for name, one in found["round"]["slices"].items()]
    measured: Columns = {n: n for n in ("slice", "rows", "devices", "loss", "accuracy")}
    devices: Columns = {
        **{n: n for n in ("device", "site", "mark", "reason", "examples", "loss", "norm")},
        **{n: n for n in ("cosine", "suspect", "chosen")},
        "trained": lambda d: duration(d["seconds"]) if d["seconds"] else "",
        "bytes": lambda d: size(d["bytes"]) if d["bytes"] else "",
    }
    return Group(
        card(found["round"], about),
        "", table(slices, measured, empty="no device evaluated it"),
        "", table(found["devices"], devices, empty="no device"),
    )  # fmt: skip


def _progress(task: JsonObject) -> str:
    return f"{task['rounds']} of {task['asked']}" if task["asked"] else str(task["rounds"])


def _epsilon(thing: JsonObject) -> str:
    return plain(thing["epsilon"]) if thing["epsilon"] else ""


def _state(one: JsonObject) -> str:
    """State of a round, with notes when it is in quarantine or its checkpoint is pruned."""
    poisoned = " [red]in quarantine[/red]" if one["poisoned"] else ""
    return state()(one) + poisoned + (" [dim]pruned[/dim]" if one["pruned_at"] else "")


def _loss(one: JsonObject) -> str:
    """Loss of the new checkpoint where it was evaluated, else of the previous one."""
    measured = one.get("measured")
    return plain(measured["loss"] if measured else one.get("loss"))
