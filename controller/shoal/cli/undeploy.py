"""`shoal model undeploy`: devices remove a model, and how far they are."""

from typing import Any

import click
from rich.console import Group

from shoal.cli.api import JsonObject, at
from shoal.cli.command import Command, Session
from shoal.cli.exit_codes import FailedError
from shoal.cli.options import confirm, timeout_option, yes_option
from shoal.cli.render import Columns, card, instant, plain, state, table, when
from shoal.cli.waiting import poll
from shoal.errors import SettingError


@click.command("undeploy", cls=Command)
@click.argument("name")
@click.option("--device", "devices", multiple=True, help="This device; may be repeated.")
@click.option("--site", default="", help="Devices of this site.")
@click.option("--ring", default="", help="Devices of this ring.")
@click.option("--profile", default="", help="Devices of this firmware profile.")
@click.option("--label", default="", metavar="KEY[=VALUE]", help="Devices with this label.")
@click.option("--all", "all_", is_flag=True, help="Every device that has the model.")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Watch until it is done.")
@timeout_option
@yes_option
@click.pass_obj
def undeploy(
    session: Session,
    /,
    name: str,
    devices: tuple[str, ...],
    all_: bool,
    wait: bool,
    timeout: float,
    yes: bool,
    **select: str,
) -> None:
    """Have devices remove a model: they then serve no release of it.

    Devices that are offline remove it when they are back. A device whose agent does not know the
    order is named, and removes the model once its agent is updated.

    \b
    Examples:
      shoal model undeploy lot-codes --device north-1
      shoal model undeploy lot-codes --site north --label line=3 --wait
      shoal model undeploy lot-codes --all
    """
    chosen = {key: value for key, value in select.items() if value}
    if [bool(devices), bool(chosen), all_].count(True) != 1:
        raise SettingError(
            "which devices?", "use --device, or --site, --ring, --profile and --label, or --all"
        )
    if not yes:
        confirm(f"Remove {name} from {_which(devices, chosen)}?")
    body = {"devices": list(devices), "select": chosen, "all": all_}
    started = session.api.post(at("models", name, "undeploy"), body)
    if wait:
        _watch(session, started["id"], timeout)
        return
    hint = f"see how far it is with: shoal model undeployment {started['id']}"
    session.show(started, lambda: Group(_view(started), "", hint))


@click.command("undeployments", cls=Command)
@click.argument("name", default="")
@click.pass_obj
def undeployments(session: Session, name: str) -> None:
    """List undeployments of a model, or of all, newest first.

    \b
    Example:
      shoal model undeployments lot-codes
    """
    found = list(session.api.items(at("undeployments"), model=name))
    columns: Columns = {
        "undeployment": "id",
        "model": "model",
        "state": state(),
        "reason": "reason",
        "devices": "devices",
        "removed": "removed",
        "waiting": "waiting",
        "cannot": "cannot",
        "failed": "failed",
        "started": when("created_at", session.now),
        "by": "created_by",
    }
    none = "none; start one with: shoal model undeploy NAME --device DEVICE"
    session.show(found, lambda: table(found, columns, empty=none))


@click.command("undeployment", cls=Command)
@click.argument("id_", metavar="ID")
@click.option("--cancel", is_flag=True, help="Order no further device.")
@yes_option
@click.pass_obj
def undeployment(session: Session, id_: str, cancel: bool, yes: bool) -> None:
    """Show which devices have removed the model, which not yet, and which cannot and why.

    \b
    Examples:
      shoal model undeployment u-01h9
      shoal model undeployment u-01h9 --cancel
    """
    if cancel:
        if not yes:
            confirm(f"Cancel undeployment {id_}?")
        session.api.post(at("undeployments", id_, "cancel"))
    found = session.api.get(at("undeployments", id_))
    devices = list(session.api.items(at("undeployments", id_, "devices")))
    columns: Columns = {
        "device": "device",
        "site": "site",
        "state": state(),
        "since": when("updated_at", session.now),
        "detail": "detail",
    }
    session.show(
        found | {"members": devices},
        lambda: Group(_view(found), "", table(devices, columns, empty="no device")),
    )


def _view(found: JsonObject) -> Group:
    about: Columns = {
        "undeployment": "id",
        "model": "model",
        "state": state(),
        "reason": "reason",
        "started": lambda one: instant(one["created_at"]),
        "by": "created_by",
    }
    return Group(card(found, about), "", plain(_progress(found)))


def _progress(found: JsonObject) -> str:
    """
    >>> counts = {"waiting": 1, "cannot": 1, "failed": 0, "out": 0}
    >>> _progress({"state": "RUNNING", "devices": 4, "removed": 2, **counts})
    'RUNNING; 2 of 4 devices have removed it, 1 waiting, 1 cannot, 0 failed, 0 left out'
    """
    return (
        f"{found['state']}; {found['removed']} of {found['devices']} devices have removed it, "
        f"{found['waiting']} waiting, {found['cannot']} cannot, {found['failed']} failed, "
        f"{found['out']} left out"
    )


def _which(devices: tuple[str, ...], select: dict[str, str]) -> str:
    if devices:
        return ", ".join(devices)
    if select:
        return "devices with " + ", ".join(f"{key} {value}" for key, value in select.items())
    return "every device that has it"


def _watch(session: Session, id_: str, timeout_s: float) -> None:
    """Wait until no device is left to wait for; FailedError unless all have removed it."""

    def look() -> JsonObject:
        found: JsonObject = session.api.get(at("undeployments", id_))
        return found

    def done(found: dict[str, Any]) -> bool:
        return found["state"] != "SELECTING" and not found["waiting"]

    ended = poll(
        session, look, done, again=f"shoal model undeployment {id_}", timeout_s=timeout_s,
        why=_progress,
    )  # fmt: skip
    session.show(ended, lambda: _view(ended))
    if ended["removed"] < ended["devices"]:
        raise FailedError(
            f"undeployment {id_}: {_progress(ended)}",
            f"shoal model undeployment {id_} lists every device and why",
        )
