"""`shoal operation`: long-running jobs of the controller, such as training."""

import click

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import listed, timeout_option
from shoal.cli.render import Columns, JsonObject, card, instant, plain, state, table
from shoal.cli.waiting import follow, ordinal

STATES = ("", "queued", "running", "succeeded", "failed", "canceled")


def step_of(operation: JsonObject) -> str:
    place = operation.get("position", 0)
    return f"{ordinal(place)} in the queue" if place else plain(operation["step"])


_PROGRESS: Columns = {
    "operation": "id",
    "what": "kind",
    "of": "subject",
    "state": state(),
    "done": lambda o: f"{100 * o['progress']:.0f} %",
    "step": step_of,
}


@click.group(cls=CommandGroup)
def operation() -> None:
    """Operations: training and import jobs."""


@operation.command("list")
@click.option("--state", "state_", default="", type=click.Choice(STATES), help="Only these.")
@click.option("--kind", default="", help="Only this kind: train, import, ...")
@listed
@click.pass_obj
def list_operations(session: Session, state_: str, kind: str, search: str, limit: int) -> None:
    """List operations, newest first.

    \b
    Examples:
      shoal operation list
      shoal operation list --state failed --search lot-codes
    """
    query = {"state": state_, "kind": kind, "q": search}
    found = list(session.api.items(at("operations"), most=limit, **query))
    columns: Columns = {
        **_PROGRESS,
        "started": lambda o: instant(o["started_at"]),
        "result": "result",
        "error": "error",
    }
    none = "no such operation; train with: shoal model train MODEL --dataset NAME"
    session.show(found, lambda: table(found, columns, empty=none))


@operation.command("show")
@click.argument("id_", metavar="ID")
@click.pass_obj
def show_operation(session: Session, id_: str) -> None:
    """Show one operation.

    \b
    Example:
      shoal operation show 0190c5
    """
    found = session.api.get(at("operations", id_))
    session.show(found, lambda: operation_card(found))


@operation.command("watch")
@click.argument("id_", metavar="ID")
@timeout_option
@click.pass_obj
def watch(session: Session, id_: str, timeout: float) -> None:
    """Follow an operation to its end. Exit code 1 when it failed, 7 when --timeout expired.

    \b
    Example:
      shoal operation watch 0190c5 --timeout 10m
    """
    ended = follow(session, session.api.get(at("operations", id_)), timeout)
    session.show(ended, lambda: operation_card(ended))


@operation.command("log")
@click.argument("id_", metavar="ID")
@click.pass_obj
def show_log(session: Session, id_: str) -> None:
    """Print the last 64 kB of what an operation has printed, such as your own training script.

    \b
    Example:
      shoal operation log 0190c5
    """
    found = session.api.get(at("operations", id_, "log"))
    session.show(found, lambda: plain(found["text"].rstrip()) or "it printed nothing")


@operation.command("cancel")
@click.argument("id_", metavar="ID")
@click.pass_obj
def cancel_operation(session: Session, id_: str) -> None:
    """Cancel an operation: a queued one is dropped, a running one is killed within a second.

    \b
    Example:
      shoal operation cancel 0190c5
    """
    found = session.api.post(at("operations", id_, "cancel"))
    session.show(found, lambda: operation_card(found))


def operation_card(found: JsonObject) -> object:
    return card(
        found,
        {
            **_PROGRESS,
            "requested": lambda o: instant(o["created_at"]),
            "by": "created_by",
            "started": lambda o: instant(o["started_at"]),
            "ended": lambda o: instant(o["finished_at"]),
            "canceled by": "canceled_by",
            "result": lambda o: plain(o["result"]),
            "error": "error",
        },
    )
