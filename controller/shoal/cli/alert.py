"""`shoal alert`: list and acknowledge alerts."""

import click

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.render import Columns, plain, state, table, when


@click.group(cls=CommandGroup)
def alert() -> None:
    """Alerts: drift, failed rollouts, failing devices."""


@alert.command("list")
@click.option(
    "--state",
    "state_",
    default="",
    type=click.Choice(["", "open", "acknowledged", "closed"]),
    help="Only these.",
)
@click.pass_obj
def list_alerts(session: Session, state_: str) -> None:
    """List alerts, newest first, each with its next step.

    \b
    Example:
      shoal alert list --state open
    """
    found = list(session.api.items(at("alerts"), state=state_))
    columns: Columns = {
        "alert": "id",
        "state": state(),
        "severity": state("severity"),
        "what": "title",
        "site": "site",
        "opened": when("opened_at", session.now),
        "next step": "next_step",
    }
    session.show(found, lambda: table(found, columns, empty="no alert"))


@alert.command("ack")
@click.argument("id_", metavar="ID", type=int)
@click.pass_obj
def acknowledge(session: Session, id_: int) -> None:
    """Acknowledge an alert: it stays open, but is not reported again.

    \b
    Example:
      shoal alert ack 3
    """
    after = session.api.post(at("alerts", str(id_), "acknowledge"))
    session.show(after, lambda: f"alert {id_} is {after['state']}: {plain(after['title'])}")
