"""`shoal doctor`: check the CLI's account, the controller and the fleet."""

import email.utils
from collections.abc import Iterator
from typing import NamedTuple

import click

from shoal.cli import account
from shoal.cli.account import SIGN_IN, Account
from shoal.cli.api import Api, at
from shoal.cli.command import Command, Session
from shoal.cli.exit_codes import FailedError
from shoal.cli.render import Columns, plain, table
from shoal.errors import ShoalError, hint_fields

_SKEW_S = 30


class Finding(NamedTuple):
    """Result of one check. hint: what to do when it failed."""

    what: str
    ok: bool
    detail: str
    hint: str = ""


@click.command(cls=Command)
@click.pass_obj
def doctor(session: Session) -> None:
    """Check everything between this terminal and the fleet, and print what to fix.

    Exit code 1 when a check fails.

    \b
    Example:
      shoal doctor
    """
    found = list(_checks(session))
    columns: Columns = {
        "": lambda f: "[green]ok[/green]" if f["ok"] else "[red]failed[/red]",
        "what": "what",
        "seen": "detail",
        "hint": "hint",
    }
    items = [finding._asdict() | hint_fields(finding.hint) for finding in found]
    session.show(items, lambda: table(items, columns, empty=""))
    bad = [finding.what for finding in found if not finding.ok]
    if bad:
        raise FailedError(f"failed: {', '.join(bad)}")


def _checks(session: Session) -> Iterator[Finding]:
    """Findings in order; checks that depend on a failed one are skipped."""
    try:
        kept = account.load(session.environment)
        account.trust(kept)
    except ShoalError as error:
        yield Finding("account", False, error.message, error.hint)
        return
    who = f"{kept.user or 'a token'} at {kept.url}"
    yield Finding("account", bool(kept.token), who, "" if kept.token else SIGN_IN)
    with Api(kept) as api:
        yield from _controller(session, api, kept)


def _controller(session: Session, api: Api, kept: Account) -> Iterator[Finding]:
    try:
        ready = api.response("/readyz")
    except ShoalError as error:
        yield Finding("controller", False, error.message, error.hint)
        return
    serve = "see log/ in the controller's folder, or run: shoal-controller doctor --folder DIR"
    detail = "ready" if ready.is_success else plain(ready.text[:200])
    yield Finding("controller", ready.is_success, detail, "" if ready.is_success else serve)
    yield from _clock(session, ready.headers.get("date", ""))
    yield from _signed_in(api)


def _clock(session: Session, date: str) -> Iterator[Finding]:
    """Clock skew between this machine and the controller, from HTTP's Date header."""
    date_ = email.utils.parsedate_tz(date)
    if date_ is None:
        return
    skew = session.now() - email.utils.mktime_tz(date_)
    ok = abs(skew) < _SKEW_S
    hint = "" if ok else "set the clock on both machines (NTP)"
    yield Finding("clock", ok, f"{skew:+.0f} s to the controller", hint)


def _signed_in(api: Api) -> Iterator[Finding]:
    try:
        me = api.get(at("me"))
        fleet = api.get(at("fleet"))
        alerts = list(api.items(at("alerts"), state="open"))
    except ShoalError as error:
        yield Finding("token", False, error.message, error.hint or SIGN_IN)
        return
    yield Finding("token", True, f"{me.get('user', me.get('name', ''))} ({me.get('role', '')})")
    away = fleet["devices"] - fleet["online"]
    yield Finding(
        "fleet",
        not away and not fleet["failing"],
        f"{fleet['devices']} devices, {away} offline, {fleet['failing']} failing",
        "shoal device list --problem" if away or fleet["failing"] else "",
    )
    titles = "; ".join(alert["title"] for alert in alerts) or "none open"
    hint = "shoal alert list --state open" if alerts else ""
    yield Finding("alerts", not alerts, plain(titles), hint)
