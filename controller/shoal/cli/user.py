"""`shoal user`: accounts, roles, passwords and sessions."""

from typing import Any

import click

from shoal.cli import account
from shoal.cli.account import Account
from shoal.cli.api import Api, at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import confirm, yes_option
from shoal.cli.render import Columns, ago, plain, table, when

ROLES = click.Choice(("viewer", "operator", "approver", "admin"))
reason_option = click.option("--reason", default="", help="For the audit log.")


@click.group(cls=CommandGroup)
def user() -> None:
    """Users: roles, passwords, sessions. Most need the role admin."""


@user.command("list")
@click.pass_obj
def list_users(session: Session) -> None:
    """List users with their roles, valid sessions and tokens.

    \b
    Example:
      shoal user list
    """
    found = list(session.api.items(at("users")))
    columns: Columns = {
        "user": "name",
        "role": "role",
        "state": lambda u: _state(u, session.now()),
        "sessions": "sessions",
        "tokens": "tokens",
        "last seen": when("seen_at", session.now),
    }
    session.show(found, lambda: table(found, columns, empty="no user"))


@user.command("add")
@click.argument("name")
@click.option("--role", type=ROLES, default="viewer", show_default=True, help="What they may do.")
@click.pass_obj
def add(session: Session, name: str, role: str) -> None:
    """Add a user with a one-time password, to be replaced at the first sign-in within a day.

    \b
    Example:
      shoal user add ana --role operator
    """
    made = session.api.post(at("users"), {"name": name, "role": role})
    session.show(made, lambda: _one_time(session, made, f"{plain(name)} is added as {role}"))


@user.command("role")
@click.argument("name")
@click.argument("role", type=ROLES)
@reason_option
@click.pass_obj
def role_(session: Session, name: str, role: str, reason: str) -> None:
    """Give a user another role, from the next request on, tokens included.

    \b
    Example:
      shoal user role ana approver --reason "signs releases of the north"
    """
    after = session.api.post(at("users", name, "role"), {"role": role, "reason": reason})
    session.show(after, lambda: f"{plain(name)} is {after['role']}")


@user.command("reset")
@click.argument("name")
@reason_option
@yes_option
@click.pass_obj
def reset(session: Session, name: str, reason: str, yes: bool) -> None:
    """Give a user a one-time password; every session and token of theirs ends.

    \b
    Example:
      shoal user reset ana
    """
    if not yes:
        confirm(f"End every session and token of {name}, and make a one-time password?")
    after = session.api.post(at("users", name, "reset"), {"reason": reason})
    session.show(
        after, lambda: _one_time(session, after, f"the password of {plain(name)} is reset")
    )


@user.command("disable")
@click.argument("name")
@reason_option
@click.pass_obj
def disable(session: Session, name: str, reason: str) -> None:
    """Refuse a user's sign-in and tokens until enabled again; sessions end.

    \b
    Example:
      shoal user disable ana --reason "on leave until May"
    """
    after = session.api.post(at("users", name, "disable"), {"reason": reason})
    line = f"{plain(name)} is disabled; take it back with: shoal user enable {plain(name)}"
    session.show(after, lambda: line)


@user.command("enable")
@click.argument("name")
@reason_option
@click.pass_obj
def enable(session: Session, name: str, reason: str) -> None:
    """Take back that a user is disabled: password and tokens are valid again.

    \b
    Example:
      shoal user enable ana
    """
    after = session.api.post(at("users", name, "enable"), {"reason": reason})
    session.show(after, lambda: f"{plain(name)} is enabled")


@user.command("revoke")
@click.argument("name")
@reason_option
@click.pass_obj
def revoke(session: Session, name: str, reason: str) -> None:
    """End every session and token of a user; the password stays.

    \b
    Example:
      shoal user revoke ana --reason "laptop stolen"
    """
    ended = session.api.post(at("users", name, "revoke"), {"reason": reason})
    session.show(ended, lambda: _ended(ended))


@user.command("remove")
@click.argument("name")
@yes_option
@click.pass_obj
def remove(session: Session, name: str, yes: bool) -> None:
    """Remove a user with all sessions and tokens. What they did stays in the audit log.

    \b
    Example:
      shoal user remove ana
    """
    if not yes:
        confirm(f"Remove {name}, with every session and token?")
    session.api.delete(at("users", name))
    session.show({"removed": name}, lambda: f"{plain(name)} is removed")


@user.command("sessions")
@click.option("--end", "ended", default="", metavar="ID", help="End this one.")
@click.pass_obj
def sessions(session: Session, ended: str) -> None:
    """List console sessions: your own, for an admin everybody's; or end one.

    \b
    Examples:
      shoal user sessions
      shoal user sessions --end 3f2a9c1b3f2a9c1b
    """
    if ended:
        session.api.delete(at("sessions", ended))
        session.show({"ended": ended}, lambda: f"session {plain(ended)} is ended")
        return
    found = list(session.api.items(at("sessions")))
    columns: Columns = {
        "session": "id",
        "user": "user",
        "from": "address",
        "since": when("created_at", session.now),
        "last seen": when("seen_at", session.now),
        "browser": "agent",
    }
    session.show(found, lambda: table(found, columns, empty="no session"))


@user.command("password")
@click.option("--user", "name", default="", help="Default: the signed-in user.")
@click.option("--keep-tokens", is_flag=True, help="Your tokens stay valid.")
@click.pass_obj
def password(session: Session, name: str, keep_tokens: bool) -> None:
    """Change your own password, or replace a one-time password. Both are prompted for.

    Your other sessions end, and your other tokens too unless kept. Before a first login use
    `shoal login`, which asks for a password of your own where you have a one-time password.

    \b
    Examples:
      shoal user password
      shoal user password --keep-tokens
    """
    kept = account.load(session.environment)
    old, new = ask_passwords(name or kept.user or "the signed-in user")
    body = {"old": old, "new": new, "keep_tokens": keep_tokens, "user": name}
    ended = session.api.post(at("me", "password"), body)
    session.show(ended, lambda: f"the password is changed; {_ended(ended)}")


def ask_passwords(name: str) -> tuple[str, str]:
    """Old and new password, from the terminal."""
    old = click.prompt(f"Password of {name}", hide_input=True, err=True)
    new = click.prompt("New password", hide_input=True, err=True, confirmation_prompt=True)
    return old, new


def replace_one_time(anonymous: Account, name: str, old: str) -> str:
    """Ask for a password of one's own in place of a one-time password; returns it."""
    click.echo("This is a one-time password: choose your own.", err=True)
    new: str = click.prompt("New password", hide_input=True, err=True, confirmation_prompt=True)
    with Api(anonymous) as api:
        api.post(at("me", "password"), {"old": old, "new": new, "user": name})
    return new


def _one_time(session: Session, made: dict[str, Any], line: str) -> str:
    valid = ago(made["password_expires_at"], session.now())
    return (
        f"{line}\none-time password, shown once: {plain(made['one_time_password'])}\n"
        f"it ends {valid}; with it: shoal login {session.api.url} --user {plain(made['name'])}"
    )


def _state(found: Any, now: float) -> str:
    if found["disabled_at"]:
        return "disabled"
    ends = found["password_expires_at"]
    return "" if not ends else "one-time password" + (" expired" if ends <= now else "")


def _ended(ended: dict[str, int]) -> str:
    return f"ended: {ended['sessions']} sessions, {ended['tokens']} tokens"
