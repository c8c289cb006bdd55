"""Devices that changed: a queue of those whose desired state is to be looked at.

Whoever changes a device (its enrolment, a message of it, a person) adds it in the same transaction;
rollouts.convergence looks at it and takes it off.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from shoal.controller.store.chunks import chunks
from shoal.controller.store.group_tables import changed_device
from shoal.controller.store.tables import device

#: Why: it enrolled; it came online; what it is or can run changed; it reported on an update; a
#: person decided about it; or what it is to run changed.
ENROLLED, ONLINE, CHANGED = "enrolled", "online", "changed"
REPORTED, DECIDED, SWEPT = "reported", "decided", "swept"
#: The device has just been heard of.
HEARD = frozenset({ENROLLED, ONLINE, CHANGED, REPORTED})
#: Worth another attempt at what has failed.
FRESH = frozenset({ENROLLED, ONLINE, CHANGED, DECIDED})
#: Columns, and facts, that decide what a device is to run or can run; and what it serves.
_DECIDING = ("ring", "profile", "line", "labels", "agent", "releases")
_DECIDING_FACTS = ("removes", "schemas")


def add(db: Connection, names: Iterable[str], why: str) -> None:
    """Add devices to the queue, in one statement."""
    rows = [{"device": name, "why": why} for name in names]
    if rows:
        db.execute(changed_device.insert(), rows)


def before(db: Connection, names: Iterable[str]) -> dict[str, Any]:
    """Device -> what `differs` compares, as it is now."""
    columns = [device.c[name] for name in ("name", "facts", *_DECIDING)]
    found: dict[str, Any] = {}
    for some in chunks(sorted(names)):
        rows = db.execute(select(*columns).where(device.c.name.in_(some)))
        found |= {row.name: row for row in rows}
    return found


def differs(old: Any, new: dict[str, Any]) -> bool:
    """Whether anything changed that decides what a device is to run, or can run.

    old   as `before` returned it; new: the columns by name
    """
    facts = old.facts or {}
    return any(new[name] != getattr(old, name) for name in _DECIDING) or any(
        facts.get(name) != new["facts"].get(name) for name in _DECIDING_FACTS
    )
