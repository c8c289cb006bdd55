"""`shoal lineage`: what a thing was made from, and what came of it."""

import click

from shoal.cli.api import at
from shoal.cli.command import Command, Session
from shoal.cli.render import Columns, JsonObject, instant, plain, state, table


@click.command("lineage", cls=Command)
@click.argument("thing", metavar="THING")
@click.pass_obj
def lineage(session: Session, thing: str) -> None:
    """Show what a THING was made from (up), and what came of it (down).

    From dataset versions to runs, releases with their gates, rollouts, devices, alerts, and the
    releases that were retrained because of them. THING is a release, dataset version, run, rollout,
    device or alert; where several have the name, write its kind: dataset:parts@3.

    \b
    Examples:
      shoal lineage defects@2
      shoal lineage dataset:parts@3
      shoal lineage mlflow:press/3
      shoal lineage device:cam-17 --json
    """
    found = session.api.get(at("lineage"), thing=thing)
    session.show(found, lambda: _drawn(found))


def _drawn(found: JsonObject) -> object:
    because: dict[str, list[str]] = {}
    for one in found["links"]:
        because.setdefault(one["to"], []).append(
            f"{one['source'].partition(':')[2]} ({one['why']})"
        )
    columns: Columns = {
        "side": lambda t: t["side"] or "this",
        "what": "kind",
        "name": "name",
        "state": lambda t: "deleted" if t["gone"] else state()(t),
        "from": lambda t: plain(", ".join(because.get(f"{t['kind']}:{t['name']}", []))),
        "when": lambda t: instant(t["at"]),
        "detail": lambda t: _detail(t, found),
    }
    return table(found["things"], columns, empty="nothing")


def _detail(thing: JsonObject, found: JsonObject) -> str:
    serving = found["devices"].get(thing["name"], 0) if thing["kind"] == "release" else 0
    on = f"{serving} devices serve it" if serving != 1 else "1 device serves it"
    return "; ".join(filter(None, (plain(thing["detail"]), on if serving else "")))
