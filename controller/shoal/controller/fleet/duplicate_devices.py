"""One device name that two agents use: a folder or an image of a disk was copied.

They have one key, so the broker lets one of them in at a time and throws the other off; they have
one outbox, so both number their messages alike, and of two messages with one number the second is
taken for the first come again. Two things give them away:

    a process that was connected, and that another process took the place of, is back
    a message has come under the number of another one
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from shoal.controller.alerts.text import Draft

#: So many returns within so many seconds are no chance: one may follow an outage of the controller.
TWICE, WITHIN_S = 2, 3_600.0
#: Seconds without a sign of the other one until the alert closes.
CALM_S = 3_600.0
KEY = "copies/"
_SESSION = re.compile(r"([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")


class Session(NamedTuple):
    """Of a connection: process it belongs to, how often that was connected before."""

    process: str
    before: int


def session(text: str) -> Session | None:
    """Take a session's name apart; None for one of an older agent, which does not say.

    >>> session("00c0ffee-3-12345678"), session("0123456789abcdef")
    (Session(process='00c0ffee', before=3), None)
    """
    found = _SESSION.fullmatch(text)
    return Session(found[1], int(found[2])) if found else None


def is_back(now: str, before: str) -> bool:
    """Whether a process is back that another one had taken the place of: names of two sessions.

    >>> is_back("aaaaaaaa-1-00000000", "bbbbbbbb-0-00000000")      # it was there before, and left
    True
    >>> is_back("bbbbbbbb-0-00000000", "aaaaaaaa-7-00000000")      # an agent that was started anew
    False
    >>> is_back("aaaaaaaa-8-00000000", "aaaaaaaa-7-00000000")      # a network that breaks off
    False
    """
    here, there = session(now), session(before)
    return bool(here and there and here.process != there.process and here.before)


class Returns:
    """Counts returns, device by device. A message that comes twice is one return.

    monotonic   seconds
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, dict[str, float]] = {}

    def note(self, device: str, now: str, before: str) -> bool:
        """The session `now` followed `before`: whether these are two agents by now."""
        if not is_back(now, before):
            return False
        at = self._monotonic()
        seen = self._seen.setdefault(device, {})
        seen[now] = at
        for old in [name for name, when in seen.items() if at - when > WITHIN_S]:
            del seen[old]
        return len(seen) >= TWICE


def key(device: str) -> str:
    """Key of the alert of a device."""
    return f"{KEY}{device}"


def draft(device: str, site: str, sign: str) -> Draft:
    """Alert of a device that is there twice. sign: what gave it away, one sentence."""
    return Draft(
        key=key(device),
        kind="device",
        severity="critical",
        title=f"{device} is there twice",
        detail=(
            f"{sign} Two agents run with this name and key, from copies of one folder or disk: "
            "they throw each other off the broker, and part of what they report is lost."
        ),
        next_step=(
            "Stop one of them and enrol it under a name of its own, in an empty folder: "
            "shoal-agent enroll --name NEW. Nobody knows where it is? shoal device decommission "
            f"{device}, then enrol the one that you have. There is only one, put back from a copy? "
            "Stop it and delete its outbox.db"
        ),
        site=site,
    )
