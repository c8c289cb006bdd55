"""`shoal device`: list and show devices, make join tokens, decommission."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import DURATION, confirm, yes_option
from shoal.cli.render import (
    Columns,
    JsonObject,
    ago,
    card,
    cell,
    instant,
    plain,
    state,
    table,
    when,
)

_NONE = "no device; enrol one with: shoal device token --site SITE"


@click.group(cls=CommandGroup)
def device() -> None:
    """Devices: list, show, enrol, decommission."""


@device.command("list")
@click.option("--search", "-q", default="", help="Part of a name.")
@click.option("--site", default="", help="Only this site.")
@click.option("--profile", default="", help="Only this firmware profile.")
@click.option(
    "--ring", default="", type=click.Choice(["", "stable", "canary"]), help="Only this ring."
)
@click.option("--state", "state_", default="", help="enrolled or decommissioned.")
@click.option(
    "--release", default="", metavar="MODEL@N", help="Only those that serve this release."
)
@click.option("--problem", is_flag=True, help="Only those with an error.")
@click.option(
    "--expiring",
    type=DURATION,
    is_flag=False,
    flag_value="21d",
    default="0",
    metavar="[TIME]",
    help="Only those whose certificate ends within TIME (21d), or has ended.",
)
@click.option(
    "--silent", type=DURATION, default="0", help="Only those that have sent nothing for so long."
)
@click.option("--limit", default=100, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_devices(
    session: Session,
    /,
    search: str,
    state_: str,
    problem: bool,
    expiring: float,
    silent: float,
    limit: int,
    **exact: str,
) -> None:
    """List devices.

    \b
    Examples:
      shoal device list --site north --problem
      shoal device list --release lot-codes@2 --json
      shoal device list --expiring 30d
      shoal device list --silent 24h
    """
    query = exact | {"q": search, "state": state_, "problem": "true" if problem else ""}
    query["expiring_s"] = str(expiring) if expiring else ""
    query["silent_s"] = str(silent) if silent else ""
    devices = list(session.api.items(at("devices"), most=limit, **query))
    columns: Columns = {
        "device": "name",
        "site": "site",
        "ring": "ring",
        "profile": "profile",
        "link": _link,
        "serves": _serves,
        "seen": when("seen_at", session.now),
        **({"certificate": lambda d: _validity(d, session.now())} if expiring else {}),
        "error": "error",
    }
    session.show(devices, lambda: table(devices, columns, empty=_NONE))


@device.command("show")
@click.argument("name")
@click.option("--events", default=20, show_default=True, help="Number of timeline entries.")
@click.pass_obj
def show_device(session: Session, name: str, events: int) -> None:
    """Show one device: the releases it serves, its timeline, and the ledger of its outbox.

    \b
    Example:
      shoal device show north-1
    """
    found: dict[str, Any] = session.api.get(at("devices", name))
    timeline = list(session.api.items(at("devices", name, "timeline"), most=events, limit=events))
    ledger = list(session.api.items(at("devices", name, "ledger")))
    whole = {"device": found, "timeline": timeline, "ledger": ledger}
    session.show(whole, lambda: _view(session, found, timeline, ledger))


@device.command("token")
@click.option("--site", required=True, help="Site of its devices.")
@click.option(
    "--ring",
    "rings",
    multiple=True,
    default=("stable",),
    show_default=True,
    type=click.Choice(["stable", "canary"]),
    help="A ring it allows; may be repeated.",
)
@click.option("--uses", default=1, show_default=True, help="How many devices may use it.")
@click.option(
    "--ttl", type=DURATION, default="24h", show_default=True, help="How long it is valid."
)
@click.pass_obj
def make_token(session: Session, site: str, rings: tuple[str, ...], uses: int, ttl: float) -> None:
    """Make a join token, and print the command to run on the device. It is shown only once.

    \b
    Examples:
      shoal device token --site north
      shoal device token --site north --ring canary --uses 10 --ttl 7d
    """
    body = {"site": site, "rings": list(rings), "uses": uses, "ttl_s": ttl}
    made = session.api.post(at("join-tokens"), body)
    line = (
        f"shoal-agent enroll --controller {session.api.url} "
        f"--name NAME{' --ring canary' if rings == ('canary',) else ''} --token {made['secret']}"
    )
    valid = f"for {uses} device(s) of site {plain(site)}, until {instant(made['expires_at'])}"
    session.show(made | {"command": line}, lambda: f"{valid}:\n\n  {line}\n")


@device.command("decommission")
@click.argument("name")
@yes_option
@click.pass_obj
def decommission(session: Session, name: str, yes: bool) -> None:
    """Remove a device permanently: its certificate is refused and it gets no more releases.

    \b
    Example:
      shoal device decommission north-1
    """
    if not yes:
        confirm(f"Decommission {name} permanently?")
    after = session.api.post(at("devices", name, "decommission"))
    session.show(after, lambda: f"{plain(name)} is decommissioned")


def _subject(event: JsonObject) -> str:
    """The release of an event, or the model that was removed.

    >>> _subject({"kind": "update", "release": "", "model": "lot-codes"})
    'removal of lot-codes'
    """
    removed = event["kind"] == "update" and not event["release"]
    return plain(f"removal of {event['model']}" if removed else event["release"])


def _link(device: JsonObject) -> str:
    if device["state"] != "enrolled":
        return cell(device, state())
    return "[green]online[/green]" if device["online"] else "[red]offline[/red]"


def _serves(device: JsonObject) -> str:
    variants = device.get("variants", {})
    served = device["releases"].items()
    return plain([f"{ref} {variants.get(model, '')}".strip() for model, ref in served])


def _view(session: Session, found: JsonObject, timeline: list[Any], ledger: list[Any]) -> Group:
    about: Columns = {
        "device": "name",
        "link": _link,
        "seen": when("seen_at", session.now),
        "site": "site",
        "line": "line",
        "labels": "labels",
        "ring": "ring",
        "profile": "profile",
        "serves": _serves,
        "agent": "agent",
        "endpoint": "endpoint",
        "clock": lambda d: _clock(d["clock_skew_s"], d["clock_error_s"]),
        "certificate": lambda d: _validity(d, session.now()),
        "error": "error",
    }
    events: Columns = {
        "when": lambda e: instant(e["at"]),
        "what": state(),
        "release": _subject,
        "cause": "cause",
        "detail": "detail",
    }
    arrived: Columns = {
        "outbox": "boot",
        "received": "received",
        "highest": "highest",
        "missing": "missing",
        "windows": "windows",
        "rows": "rows",
    }
    return Group(
        card(found, about),
        "\n[bold]timeline[/bold]",
        table(timeline, events, empty="none yet"),
        "\n[bold]ledger[/bold]",
        table(ledger, arrived, empty="none yet"),
    )


def _validity(device: JsonObject, now: float) -> str:
    """
    >>> _validity({"certificate_expires_at": 86_400.0 * 30}, now=86_400.0)
    'ends in 29 d'
    >>> _validity({"certificate_expires_at": 0.0}, now=86_400.0)
    ''
    >>> _validity({"certificate_expires_at": 86_400.0}, now=86_400.0 * 11)
    '[red]ended 10 d ago[/red]'
    """
    ends = device["certificate_expires_at"]
    if not ends:
        return ""
    return f"ends {ago(ends, now)}" if ends > now else f"[red]ended {ago(ends, now)}[/red]"


def _clock(skew_s: float, error_s: float) -> str:
    """
    >>> _clock(-93.0, 0.25), _clock(0.0, -1.0)
    ('-93 s from the controller, ±0.2 s', '')
    """
    text = f"{skew_s:+.0f} s from the controller, ±{error_s:.1g} s"
    return text if error_s >= 0 else ""
