"""Duplicate devices: two agents that run with one device name, from a copied folder or disk.

Both have the same key, so the broker admits one at a time and disconnects the other. Both number
their messages from the same outbox, so the second message under a number is mistaken for a
redelivery of the first and is lost. Two signs show it:

    a process reconnects after another process had taken over its session
    two different messages have one sequence number
"""

import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection

from shoal.controller.alerts import alerts
from shoal.controller.alerts.records import Draft
from shoal.controller.host.context import Context
from shoal.controller.store.tables import alert

#: So many returns within so many seconds mean a duplicate; one alone may follow an outage.
RETURNS, WITHIN_S = 2, 3_600.0
#: The alert closes after so many seconds without another sign.
CALM_S = 3_600.0
_KEY = "copies/"
_SESSION = re.compile(r"([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")


class Session(NamedTuple):
    """Parsed session name: the agent's process, and how often it was connected before."""

    process: str
    connections_before: int


def parse_session(text: str) -> Session | None:
    """Parse a session name; None for the format of older agents.

    >>> parse_session("00c0ffee-3-12345678"), parse_session("0123456789abcdef")
    (Session(process='00c0ffee', connections_before=3), None)
    """
    found = _SESSION.fullmatch(text)
    return Session(found[1], int(found[2])) if found else None


def is_return(session: str, previous: str) -> bool:
    """Whether a process reconnects after another process had taken over its session.

    >>> is_return("aaaaaaaa-1-00000000", "bbbbbbbb-0-00000000")      # was connected before
    True
    >>> is_return("bbbbbbbb-0-00000000", "aaaaaaaa-7-00000000")      # a restarted agent
    False
    >>> is_return("aaaaaaaa-8-00000000", "aaaaaaaa-7-00000000")      # a network interruption
    False
    """
    now, before = parse_session(session), parse_session(previous)
    return bool(now and before and now.process != before.process and now.connections_before)


class ReturnCounter:
    """Counts returns per device; a session counts once, however often its message is delivered.

    monotonic   seconds
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, dict[str, float]] = {}

    def is_duplicate(self, device: str, session: str, previous: str) -> bool:
        """Count `session`, which followed `previous`; whether two agents share the name."""
        if not is_return(session, previous):
            return False
        now = self._monotonic()
        seen = self._seen.setdefault(device, {})
        seen[session] = now
        for old in [name for name, at in seen.items() if now - at > WITHIN_S]:
            del seen[old]
        return len(seen) >= RETURNS


def raise_alert(db: Connection, ctx: Context, device: str, site: str, sign: str) -> None:
    """Alert on a duplicate device. sign: what showed it, one sentence."""
    alerts.raise_alert(db, ctx, alert_draft(device, site, sign))


def alert_draft(device: str, site: str, sign: str) -> Draft:
    """Alert of a device that runs twice; the next step is written to work as it is printed."""
    return Draft(
        key=f"{_KEY}{device}",
        kind="device",
        severity="critical",
        title=f"{device} runs twice",
        detail=(
            f"{sign} Two agents run with this name and key, from copies of one folder or disk: "
            "they disconnect each other from the broker, and part of their reports is lost."
        ),
        next_step=(
            "Stop one of them and enrol it under a name of its own, in an empty folder; the "
            f"command for it: shoal device token --site {shlex.quote(site)}. If it cannot be "
            f"found: shoal device decommission {device}; then enrol the one at hand. If there is "
            "only one, restored from a copy: stop it and delete its outbox.db"
        ),
        site=site,
    )


def close_alerts(ctx: Context) -> None:
    """Close alerts of duplicate devices without a sign in the last CALM_S seconds."""
    calm = alert.c.key.startswith(_KEY) & (alert.c.updated_at < ctx.clock() - CALM_S)
    why = f"no sign of a second agent for {CALM_S / 60:.0f} minutes"
    alerts.close_resolved(ctx, calm, lambda *_: why)
