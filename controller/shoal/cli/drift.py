"""`shoal drift`: what is usual for devices and sites, what drifts, and what people make of it."""

import shlex
from collections.abc import Callable, Sequence

import click
from rich.console import Group

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.exit_codes import StillRunningError
from shoal.cli.options import confirm, yes_option
from shoal.cli.render import Columns, JsonObject, card, plain, state, table, when
from shoal.cli.waiting import poll
from shoal.errors import SettingError

STATES = ("", "learning", "watching", "drifting", "frozen")
#: How long a change is waited for.
WAIT_S = 30.0
model_argument = click.argument("model")
device_option = click.option("--device", default="", help="This device alone.")
site_option = click.option("--site", default="", help="This site, with all of its devices.")
all_option = click.option("--all", "whole_model", is_flag=True, help="All that serve the model.")
release_option = click.option("--release", default="", help="Of this release; else what is served.")


@click.group(cls=CommandGroup)
def drift() -> None:
    """Drift: what is usual for each device and site, and what moved away from it.

    Each device, and each site as a whole, is compared with its own past: its baseline, which is
    learnt for each release, and goes on learning slowly.
    """


@drift.command("list")
@model_argument
@click.option("--state", "state_", default="", type=click.Choice(STATES), help="Only these.")
@click.option("--scope", default="", type=click.Choice(("", "device", "site")), help="Only these.")
@site_option
@release_option
@click.option("--limit", default=100, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_baselines(session: Session, /, model: str, state_: str, limit: int, **exact: str) -> None:
    """List the baselines of MODEL: which still learn, which watch, which are frozen, what drifts.

    \b
    Examples:
      shoal drift list lot-codes
      shoal drift list lot-codes --state drifting --site north
    """
    query = exact | {"model": model, "state": state_}
    found = list(session.api.items(at("drift", "baselines"), most=limit, **query))
    columns: Columns = {
        "subject": "subject",
        "scope": "scope",
        "site": "site",
        "release": "release",
        "state": state(),
        "windows": _windows,
        "drifting": "drifting",
        "frozen": lambda one: "frozen" if one["frozen_at"] else "",
        "last change": lambda one: _last_change(session, one),
    }
    empty = "no baseline: one begins with a device's first window of a release"
    session.show(found, lambda: table(found, columns, empty=empty))


@drift.command("show")
@model_argument
@click.argument("subject")
@click.option("--of-site", is_flag=True, help="SUBJECT is a site; else it is a device.")
@release_option
@click.pass_obj
def show(session: Session, model: str, subject: str, of_site: bool, release: str) -> None:
    """Show what is usual for a device, or of a site, and what moved away from it.

    \b
    Examples:
      shoal drift show lot-codes cam-3
      shoal drift show lot-codes north --of-site
    """
    scope = "site" if of_site else "device"
    found = session.api.get(
        at("drift", "baseline"), model=model, subject=subject, scope=scope, release=release
    )
    session.show(found, lambda: _view(session, found))


@drift.command("explain")
@model_argument
@click.option("--feature", default="", help="Alarms of this feature alone.")
@release_option
@click.pass_obj
def explain(session: Session, model: str, feature: str, release: str) -> None:
    """Say what the devices that drift share and the others lack.

    Site, line, ring, profile, agent, release and labels are looked at; a fact is named where chance
    alone would name one in a hundred such searches.

    \b
    Examples:
      shoal drift explain lot-codes
      shoal drift explain lot-codes --feature contrast
    """
    found = session.api.get(
        at("drift", "explanation"), model=model, feature=feature, release=release
    )
    columns: Columns = {
        "fact": lambda f: plain(f"{f['attribute']} {f['value']}"),
        "drift": lambda f: f"{f['affected']} of {f['devices']}",
        "others": lambda f: f"{f['others_affected']} of {f['others']}",
        "by chance": "p",
        "same devices as": "same_as",
    }
    said = plain(found["sentence"]) or f"none of {found['devices']} devices drifts"
    facts = table(found["facts"], columns, empty="")
    session.show(found, lambda: Group(said, *(("", facts) if found["facts"] else ())))


@drift.command("changes")
@click.argument("model", default="")
@click.option("--limit", default=20, show_default=True, help="Maximum number; 0 for all.")
@click.pass_obj
def list_changes(session: Session, model: str, limit: int) -> None:
    """List what people did to baselines, newest first, and how far it is.

    \b
    Example:
      shoal drift changes lot-codes
    """
    path = at("drift", "baselines", "changes")
    found = list(session.api.items(path, most=limit, model=model))
    columns: Columns = {
        "change": "id",
        "what": "action",
        "of": _selected,
        "changed": lambda one: f"{one['changed']} of {one['baselines']}",
        "done": when("done_at", session.now),
        "by": "asked_by",
        "why not all": "why_skipped",
    }
    session.show(found, lambda: table(found, columns, empty="no change"))


def chooses_baselines(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that changes baselines: whose, and whether to ask first."""
    options = (
        model_argument, device_option, site_option, all_option, release_option, yes_option,
        click.pass_obj,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@drift.command("accept")
@model_argument
@device_option
@site_option
@all_option
@release_option
@click.option("--feature", "features", multiple=True, help="This feature; may be repeated.")
@yes_option
@click.pass_obj
def accept(
    session: Session, /, model: str, features: tuple[str, ...], yes: bool, **selection: object
) -> None:
    """Say that what the inputs are now is normal: findings are closed, alarms end.

    Without --feature it is for the features in alarm; the others keep what they have learnt. What
    is accepted is watched like any other normal.

    \b
    Examples:
      shoal drift accept lot-codes --site north
      shoal drift accept lot-codes --device cam-3 --feature contrast
    """
    _change(session, "accept", model, selection | {"features": list(features)}, yes)


@drift.command("reset")
@chooses_baselines
def reset(session: Session, /, model: str, yes: bool, **selection: object) -> None:
    """Forget what is usual and learn it anew from now: nothing alarms meanwhile.

    For a device that was moved, a new camera, another product. A frozen baseline is unfrozen.

    \b
    Examples:
      shoal drift reset lot-codes --device cam-3
      shoal drift reset lot-codes --all --yes
    """
    _change(session, "reset", model, selection, yes)


@drift.command("freeze")
@chooses_baselines
def freeze(session: Session, /, model: str, yes: bool, **selection: object) -> None:
    """Keep what is usual as it is: slow changes are found too, and no alarm becomes normal.

    Freeze when the daily cycle was seen (the drift page says so) and the process is in order.

    \b
    Example:
      shoal drift freeze lot-codes --site north
    """
    _change(session, "freeze", model, selection, yes)


@drift.command("unfreeze")
@chooses_baselines
def unfreeze(session: Session, /, model: str, yes: bool, **selection: object) -> None:
    """Let frozen baselines learn again.

    \b
    Example:
      shoal drift unfreeze lot-codes --site north
    """
    _change(session, "unfreeze", model, selection, yes)


def _change(session: Session, action: str, model: str, selection: JsonObject, yes: bool) -> None:
    """Ask for a change, and wait until the engine has applied it."""
    chosen = [name for name in ("device", "site", "whole_model") if selection[name]]
    if len(chosen) != 1:
        raise SettingError("which baselines?", "use --device, or --site, or --all")
    body = dict(selection) | {"action": action, "model": model}
    if not yes and chosen != ["device"]:
        confirm(f"{action.capitalize()} baselines of {_selected(body)}?")
    path = at("drift", "baselines", "changes")
    asked = session.api.post(path, body)
    try:
        done = poll(
            session,
            lambda: session.api.get(f"{path}/{asked['id']}"),
            lambda seen: seen["done_at"] > 0,
            again=f"shoal drift changes {model}",
            timeout_s=WAIT_S,
            why=lambda seen: f"{seen['changed']} of {seen['baselines']} baselines are changed",
        )
    except StillRunningError:
        session.show(asked, lambda: f"change {asked['id']} of {asked['baselines']} baselines waits")
        raise
    session.show(done, lambda: _done(done))


def _done(change: JsonObject) -> str:
    done = {"reset": "reset", "accept": "accepted", "freeze": "frozen", "unfreeze": "unfrozen"}
    text = f"{change['changed']} of {change['baselines']} baselines of {_selected(change)} "
    text += f"{done[change['action']]}"
    if change["skipped"]:
        text += f"; {change['skipped']} left as they are: {change['why_skipped']}"
    return text


def _selected(change: JsonObject) -> str:
    """
    >>> _selected({"model": "m", "device": "", "site": "north", "features": ["blur"]})
    'm at site north, blur'
    """
    where = ""
    if change["device"]:
        where = f" on {change['device']}"
    elif change["site"]:
        where = f" at site {change['site']}"
    features: Sequence[str] = change.get("features") or ()
    return plain(", ".join([f"{change['model']}{where}", *features]))


def _windows(one: JsonObject) -> str:
    if one["state"] == "learning":
        return f"{one['windows']} of {one['needed']}"
    return str(one["windows"])


def _last_change(session: Session, one: JsonObject) -> str:
    if not one["change"]:
        return ""
    return f"{one['change']} {when('changed_at', session.now)(one)} by {plain(one['changed_by'])}"


def _view(session: Session, found: JsonObject) -> Group:
    one = found["baseline"]
    about: Columns = {
        "subject": lambda b: plain(f"{b['scope']} {b['subject']}"),
        "site": "site",
        "release": "release",
        "state": state(),
        "windows": _windows,
        "hours covered": lambda b: "" if b["covered"] < 0 else f"{b['covered']} of 24",
        "since": when("began_at", session.now),
        "frozen": lambda b: when("frozen_at", session.now)(b) if b["frozen_at"] else "",
        "last change": lambda b: _last_change(session, b),
        "rows a window": lambda _: "" if found["rows"] is None else f"{found['rows']:.0f}",
        "as of": lambda _: when("saved_at", session.now)(found),
    }
    columns: Columns = {
        "feature": "feature",
        "now": lambda f: "[red]drifting[/red]" if f["alarmed"] else "",
        "usual mean": "mean",
        "sd": "sd",
        "swings in a day by": "swing",
        "missing": lambda f: _percent(f["missing"]),
        "rare": lambda f: _percent(f["rare"]),
    }
    parts = [card(one, about), "", table(found["features"], columns, empty="nothing is compared")]
    if found["findings"]:
        what: Columns = {
            "finding": when("at", session.now),
            "feature": "feature",
            "what": "what",
            "moved": "moved",
        }
        parts += ["", table(found["findings"], what, empty="")]
    if one["drifting"]:
        where = f"--{one['scope']} {shlex.quote(one['subject'])}"
        parts += [
            "",
            f"if that is normal now: shoal drift accept {plain(one['model'])} {plain(where)}",
        ]
    return Group(*parts)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"
