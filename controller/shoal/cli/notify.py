"""`shoal notify`: who is told of alerts, and what was delivered."""

import sys

import click

from shoal.cli.api import at
from shoal.cli.command import CommandGroup, Session
from shoal.cli.options import DURATION
from shoal.cli.render import Columns, plain, state, table, when


@click.group(cls=CommandGroup)
def notify() -> None:
    """Notifications of alerts: channels by mail, chat and webhook, and their log."""


@notify.command("add")
@click.argument("name")
@click.option("--webhook", "kind", flag_value="webhook", help="A signed webhook.")
@click.option("--apprise", "kind", flag_value="apprise", default=True, help="Mail or chat.")
@click.option("--severity", default="warning", show_default=True, help="The least that is sent.")
@click.option("--site", "sites", multiple=True, help="Only this site; may be repeated.")
@click.option("--quiet", default="", metavar="HH:MM-HH:MM", help="Only critical ones in it.")
@click.option("--zone", default="UTC", show_default=True, help="Time zone of --quiet.")
@click.option("--escalated", is_flag=True, help="Only alerts that nobody took in time.")
@click.option("--digest", type=DURATION, default="0", help="Wait so long, and send one message.")
@click.pass_obj
def add(
    session: Session, /, name: str, kind: str, sites: tuple[str, ...], escalated: bool,
    digest: float, **more: str,
) -> None:  # fmt: skip
    """Add a channel. Its URL is read from standard input: command lines are seen by others.

    \b
    Examples:
      echo "mailtos://USER:PASSWORD@mail.example?to=ana@example.org" | shoal notify add mail
      echo "https://hooks.example.org/shoal" | shoal notify add hook --webhook --severity info
      echo "$SLACK" | shoal notify add night --quiet 22:00-07:00 --zone Europe/Berlin
    """
    url = sys.stdin.readline().strip()
    body = more | {
        "name": name, "kind": kind, "url": url, "sites": list(sites),
        "escalated_only": escalated, "digest_s": digest,
    }  # fmt: skip
    made = session.api.post(at("channels"), body)
    secret = f"\nits secret, shown once: {plain(made['secret'])}" if made["secret"] else ""
    line = f"channel {plain(name)}: {plain(made['target'])}{secret}"
    session.show(made, lambda: f"{line}\nnow test it: shoal notify test {plain(name)}")


@notify.command("list")
@click.pass_obj
def list_channels(session: Session) -> None:
    """List the channels.

    \b
    Example:
      shoal notify list
    """
    found = list(session.api.items(at("channels")))
    columns: Columns = {
        "channel": "name",
        "kind": "kind",
        "to": "target",
        "from": state("severity"),
        "sites": "sites",
        "quiet": lambda c: plain(f"{c['quiet']} {c['zone']}" if c["quiet"] else ""),
        "only escalated": "escalated_only",
    }
    session.show(found, lambda: table(found, columns, empty="no channel; see: shoal notify add -h"))


@notify.command("test")
@click.argument("name")
@click.pass_obj
def test(session: Session, name: str) -> None:
    """Send a test message to a channel; the log says what became of it.

    \b
    Example:
      shoal notify test mail
    """
    made = session.api.post(at("channels", name, "test"))
    see = f"see: shoal notify log --channel {plain(name)}"
    session.show(made, lambda: f"a test is on its way; {see}")


@notify.command("log")
@click.option("--channel", default="", help="Only this channel.")
@click.option("--state", "state_", default="", help="pending, sent or failed.")
@click.option("--limit", default=50, show_default=True, help="Maximum number.")
@click.pass_obj
def log(session: Session, channel: str, state_: str, limit: int) -> None:
    """List messages to channels, newest first, with attempts and errors.

    \b
    Example:
      shoal notify log --state failed
    """
    query = {"channel": channel, "state": state_, "limit": limit}
    found = list(session.api.items(at("deliveries"), most=limit, **query))
    columns: Columns = {
        "delivery": "id",
        "channel": "channel",
        "state": state(),
        "alerts": lambda d: plain("; ".join(e["title"] for e in d["events"][:3])),
        "attempts": "attempts",
        "created": when("created_at", session.now),
        "error": "error",
    }
    session.show(found, lambda: table(found, columns, empty="no message"))


@notify.command("retry")
@click.argument("delivery")
@click.pass_obj
def retry(session: Session, delivery: str) -> None:
    """Try a failed message again now.

    \b
    Example:
      shoal notify retry 3f2a9c1b3f2a9c1b3f2a9c1b3f2a9c1b
    """
    after = session.api.post(at("deliveries", delivery, "retry"))
    session.show(after, lambda: f"{plain(delivery)} is {after['state']}")


@notify.command("remove")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> None:
    """Remove a channel, its secret and its log.

    \b
    Example:
      shoal notify remove mail
    """
    session.api.delete(at("channels", name))
    session.show({"removed": name}, lambda: f"channel {plain(name)} is removed")
