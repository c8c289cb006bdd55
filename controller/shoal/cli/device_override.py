"""`shoal device pin, hold, exclude`, and their ends: what a person decides about one device."""

import click
from rich.console import Group

from shoal.cli.api import JsonObject, at
from shoal.cli.command import Command, Session
from shoal.cli.render import Columns, card, plain, state, table, when

_reason = click.option("--reason", default="", help="Why; shown wherever the device deviates.")


@click.command("desired", cls=Command)
@click.argument("name")
@click.pass_obj
def desired(session: Session, name: str) -> None:
    """Show what a device is to run, by which group or pin, and what it runs.

    \b
    Example:
      shoal device desired north-1
    """
    found: JsonObject = session.api.get(at("devices", name, "desired"))
    session.show(found, lambda: _view(session, found))


@click.command("pin", cls=Command)
@click.argument("name")
@click.argument("release", metavar="MODEL@N")
@_reason
@click.pass_obj
def pin(session: Session, name: str, release: str, reason: str) -> None:
    """Pin a device to a release, whatever its group runs; rollouts leave it out.

    \b
    Example:
      shoal device pin north-1 lot-codes@2 --reason "validated for this press"
    """
    made = session.api.post(at("devices", name, "pin"), {"release": release, "reason": reason})
    session.show(made, lambda: f"{plain(name)} is pinned to {plain(release)}")


@click.command("unpin", cls=Command)
@click.argument("name")
@click.argument("model")
@click.pass_obj
def unpin(session: Session, name: str, model: str) -> None:
    """End a pin: the device gets what its group runs.

    \b
    Example:
      shoal device unpin north-1 lot-codes
    """
    session.api.post(at("devices", name, "unpin"), {"model": model})
    _done(session, name, f"runs what its group runs of {model}")


@click.command("hold", cls=Command)
@click.argument("name")
@_reason
@click.pass_obj
def hold(session: Session, name: str, reason: str) -> None:
    """Order nothing to a device until it is released; what it runs it keeps.

    \b
    Example:
      shoal device hold north-1 --reason "audit until Friday"
    """
    made = session.api.post(at("devices", name, "hold"), {"reason": reason})
    session.show(made, lambda: f"{plain(name)} is held; end it: shoal device release {plain(name)}")


@click.command("release", cls=Command)
@click.argument("name")
@click.pass_obj
def release(session: Session, name: str) -> None:
    """End a hold: the device gets what it is to run.

    \b
    Example:
      shoal device release north-1
    """
    session.api.post(at("devices", name, "release"))
    _done(session, name, "is released")


@click.command("exclude", cls=Command)
@click.argument("name")
@click.argument("model")
@_reason
@click.pass_obj
def exclude(session: Session, name: str, model: str, reason: str) -> None:
    """Have a device take no release of a model by a group or a rollout; what it runs it keeps.

    \b
    Example:
      shoal device exclude north-1 lot-codes --reason "no camera"
    """
    made = session.api.post(at("devices", name, "exclude"), {"model": model, "reason": reason})
    session.show(made, lambda: f"{plain(name)} takes no release of {plain(model)}")


@click.command("include", cls=Command)
@click.argument("name")
@click.argument("model")
@click.pass_obj
def include(session: Session, name: str, model: str) -> None:
    """Take an exclusion back: the device gets what its group runs.

    \b
    Example:
      shoal device include north-1 lot-codes
    """
    session.api.post(at("devices", name, "include"), {"model": model})
    _done(session, name, f"takes releases of {model} again")


COMMANDS = (desired, pin, unpin, hold, release, exclude, include)


def _done(session: Session, name: str, what: str) -> None:
    session.show({"device": name, "done": True}, lambda: plain(f"{name} {what}"))


def _view(session: Session, found: JsonObject) -> Group:
    about: Columns = {"device": "device", "groups": lambda d: plain(d["groups"])}
    releases: Columns = {
        "model": "model",
        "is to run": lambda one: plain(one["want"] or "none"),
        "by": "by",
        "serves": lambda one: plain(one["serves"] or "nothing"),
        "state": state(),
        "why": "why",
    }
    decided: Columns = {
        "decided": "kind",
        "what": lambda one: plain(one["release"] or one["model"]),
        "by": "created_by",
        "when": when("created_at", session.now),
        "reason": "reason",
    }
    return Group(
        card(found, about),
        "",
        table(found["releases"], releases, empty="no group that it is in runs anything"),
        table(found["overrides"], decided, empty="not pinned, held or excluded"),
    )
