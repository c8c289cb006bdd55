"""`shoal alert`: what is wrong in the fleet, and who takes it."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import DURATION
from shoal.cli.render import Columns, JsonObject, card, duration, plain, state, table, when

STATES = ("", "unresolved", "open", "acknowledged", "snoozed", "closed")
SEVERITIES = ("", "critical", "warning", "info")
identifier = click.argument("id_", metavar="ID", type=int)


@click.group(cls=CommandGroup)
def alert() -> None:
    """Alerts: devices, drift, failed rollouts; who takes them, and maintenance silences."""


@alert.command("list")
@click.option("--state", "state_", default="", type=click.Choice(STATES), help="Only these.")
@click.option("--severity", default="", type=click.Choice(SEVERITIES), help="Only these.")
@click.option("--kind", default="", help="Only this kind: offline, disk, drift, rollout, ...")
@click.option("--site", default="", help="Only of this site.")
@click.option("--assigned", default="", metavar="USER", help="Only those assigned to USER.")
@click.option("--search", "-q", default="", help="Part of the title or of the detail.")
@click.option("--limit", default=100, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_alerts(session: Session, /, state_: str, search: str, limit: int, **exact: str) -> None:
    """List alerts, newest first, each with its next step.

    \b
    Examples:
      shoal alert list --state open
      shoal alert list --state unresolved --severity critical --site north
    """
    query = exact | {"state": state_, "q": search}
    found = list(session.api.items(at("alerts"), most=limit, **query))
    columns: Columns = {
        "alert": "id",
        "state": state(),
        "severity": state("severity"),
        "what": "title",
        "site": "site",
        "devices": lambda one: str(one["members"] or ""),
        "taken by": _taker,
        "opened": when("opened_at", session.now),
        "next step": "next_step",
    }
    session.show(found, lambda: table(found, columns, empty="no alert"))


@alert.command("show")
@identifier
@click.pass_obj
def show_alert(session: Session, id_: int) -> None:
    """Show an alert: what is the matter, since when, which devices, and what was done.

    \b
    Example:
      shoal alert show 3
    """
    one = session.api.get(at("alerts", str(id_)))
    devices = list(session.api.items(at("alerts", str(id_), "members"), most=20))
    history = list(session.api.items(at("alerts", str(id_), "history")))
    whole = {"alert": one, "members": devices, "history": history}
    session.show(whole, lambda: _view(session, one, devices, history))


@alert.command("members")
@identifier
@click.option("--limit", default=0, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_members(session: Session, id_: int, limit: int) -> None:
    """List the devices that an alert stands for.

    \b
    Example:
      shoal alert members 3 --json
    """
    found = list(session.api.items(at("alerts", str(id_), "members"), most=limit))
    session.show(found, lambda: table(found, _member_columns(session), empty="no device"))


@alert.command("counts")
@click.pass_obj
def count_alerts(session: Session) -> None:
    """Count the alerts that are not closed, by state, severity and kind.

    \b
    Example:
      shoal alert counts
    """
    found = session.api.get(at("alerts", "counts"))
    rows = [
        {"by": by, "value": value, "alerts": number}
        for by, numbers in found.items()
        for value, number in numbers.items()
    ]
    columns: Columns = {"by": "by", "": "value", "alerts": "alerts"}
    session.show(found, lambda: table(rows, columns, empty="no alert"))


@alert.command("ack")
@identifier
@click.pass_obj
def acknowledge(session: Session, id_: int) -> None:
    """Acknowledge an alert: it stays until its cause ends, but is not reported again.

    \b
    Example:
      shoal alert ack 3
    """
    _act(session, id_, "acknowledge")


@alert.command("assign")
@identifier
@click.argument("user", default="")
@click.pass_obj
def assign(session: Session, id_: int, user: str) -> None:
    """Assign an alert to USER; without a USER, take it back.

    \b
    Example:
      shoal alert assign 3 ana
    """
    _act(session, id_, "assign", {"to": user})


@alert.command("snooze")
@identifier
@click.option("--for", "for_s", type=DURATION, default="8h", show_default=True, help="How long.")
@click.pass_obj
def snooze(session: Session, id_: int, for_s: float) -> None:
    """Put an alert aside for a while; if its cause lasts, it is open again then.

    \b
    Example:
      shoal alert snooze 3 --for 2d
    """
    _act(session, id_, "snooze", {"for_s": for_s})


@alert.command("wake")
@identifier
@click.pass_obj
def wake(session: Session, id_: int) -> None:
    """End the snooze of an alert.

    \b
    Example:
      shoal alert wake 3
    """
    _act(session, id_, "wake")


@alert.command("resolve")
@identifier
@click.option("--note", default="", help="What was done, for the alert's history.")
@click.pass_obj
def resolve(session: Session, id_: int, note: str) -> None:
    """Close an alert by hand; a new sign of its cause opens it again.

    \b
    Example:
      shoal alert resolve 3 --note "lens cleaned"
    """
    _act(session, id_, "resolve", {"note": note})


@alert.group("silence", cls=CommandGroup)
def silence() -> None:
    """Maintenance: alerts that begin while a silence lasts are snoozed until it ends."""


@silence.command("create")
@click.option("--for", "lasts_s", type=DURATION, required=True, help="How long it lasts.")
@click.option("--in", "in_s", type=DURATION, default="0", help="When it begins; 0 for now.")
@click.option("--reason", default="", help="Why, for others.")
@click.option("--site", default="", help="Alerts of this site.")
@click.option("--kind", default="", help="Alerts of this kind.")
@click.option("--model", default="", help="Alerts of this model.")
@click.option("--severity", default="", type=click.Choice(SEVERITIES), help="Alerts this severe.")
@click.option("--device", default="", help="What this device shows.")
@click.pass_obj
def create_silence(
    session: Session, /, lasts_s: float, in_s: float, reason: str, **selected: str
) -> None:
    """Silence alerts that match all given options, for maintenance.

    \b
    Examples:
      shoal alert silence create --site north --for 4h --reason "new switch"
      shoal alert silence create --device cam-3 --for 1d
    """
    begins_at = session.now() + in_s if in_s else 0.0
    body = selected | {"lasts_s": lasts_s, "begins_at": begins_at, "reason": reason}
    made = session.api.post(at("silences"), body)
    session.show(made, lambda: f"silence {made['id']} lasts {duration(lasts_s)}")


@silence.command("list")
@click.pass_obj
def list_silences(session: Session) -> None:
    """List the silences that have not ended.

    \b
    Example:
      shoal alert silence list
    """
    found = list(session.api.items(at("silences")))
    columns: Columns = {
        "silence": "id",
        "of": lambda one: plain(", ".join(f"{n} {one[n]}" for n in _SELECTED if one[n])),
        "begins": when("begins_at", session.now),
        "ends": when("ends_at", session.now),
        "by": "created_by",
        "reason": "reason",
    }
    session.show(found, lambda: table(found, columns, empty="no silence"))


@silence.command("end")
@click.argument("id_", metavar="ID")
@click.pass_obj
def end_silence(session: Session, id_: str) -> None:
    """End a silence now: what it snoozed is open again.

    \b
    Example:
      shoal alert silence end 3f2a9c1b
    """
    session.api.delete(at("silences", id_))
    session.show({"ended": id_}, lambda: f"silence {plain(id_)} ended")


_SELECTED = ("site", "kind", "model", "severity", "device")


def _act(session: Session, id_: int, verb: str, body: JsonObject | None = None) -> None:
    after = session.api.post(at("alerts", str(id_), verb), body)
    session.show(after, lambda: f"alert {id_} is {after['state']}: {plain(after['title'])}")


def _taker(one: JsonObject) -> str:
    """
    >>> _taker({"assigned_to": "", "acknowledged_by": "ana"})
    'ana'
    """
    return plain(one["assigned_to"] or one["acknowledged_by"])


def _member_columns(session: Session) -> Columns:
    return {
        "device": "device",
        "severity": state("severity"),
        "what": "detail",
        "since": when("since_at", session.now),
        "last sign": when("seen_at", session.now),
    }


def _view(session: Session, one: JsonObject, devices: list[Any], history: list[Any]) -> Group:
    fields: Columns = {
        "alert": "id",
        "what": "title",
        "state": state(),
        "severity": state("severity"),
        "site": "site",
        "model": "model",
        "devices": lambda a: str(a["members"] or ""),
        "taken by": _taker,
        "opened": when("opened_at", session.now),
        "reopened": lambda a: f"{a['reopened']} times" if a["reopened"] else "",
        "detail": "detail",
        "next step": "next_step",
    }
    events: Columns = {
        "when": when("at", session.now),
        "what": "what",
        "by": "actor",
        "note": "note",
    }
    parts: list[Any] = [card(one, fields)]
    if devices:
        parts.append(table(devices, _member_columns(session), empty=""))
    return Group(*parts, table(history, events, empty="no history"))
