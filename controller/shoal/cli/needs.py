"""`shoal needs`: what needs a person, the worst first, each with the command to begin with."""

import click

from shoal.cli.api import at
from shoal.cli.command import Command, Session
from shoal.cli.render import Columns, plain, state, table, when


@click.command("needs", cls=Command)
@click.option("--kind", default="", help="Only this kind: rollout_paused, devices_failing, ...")
@click.option("--limit", default=50, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def needs(session: Session, kind: str, limit: int) -> None:
    """What needs a person now, the worst first, and the command to begin with.

    Rollouts that are paused or wait for approval, releases to review, critical alerts folded by
    site and kind, failing devices folded by cause, devices offline for more than a day,
    certificates that end soon.

    \b
    Examples:
      shoal needs
      shoal needs --kind devices_failing --json
    """
    found = list(session.api.items(at("needs"), most=limit, kind=kind))
    columns: Columns = {
        "severity": state("severity"),
        "what": "sentence",
        "details": lambda one: plain(one["facts"]),
        "since": when("since", session.now),
        "begin with": lambda one: plain(one["action"]["command"]),
    }
    session.show(found, lambda: table(found, columns, empty="nothing needs you"))
