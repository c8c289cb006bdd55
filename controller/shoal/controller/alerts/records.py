"""Alerts as stored, and as drafted by the domain that raises one."""

from collections.abc import Sequence
from typing import NamedTuple

from shoal.controller.store.records import Record

_NAMED = 4


class Alert(Record, frozen=True, kw_only=True):
    """Findings or failures that need a person's attention, grouped by cause.

    kind      "drift", "rollout", "device", "task" (federated: its rounds, or a quarantine)
    state     open, acknowledged, closed
    next_step what to do, one sentence
    """

    id: int
    kind: str
    severity: str
    state: str
    title: str
    detail: str
    next_step: str
    site: str
    model: str
    release: str
    features: list[str]
    findings: int
    opened_at: float
    updated_at: float
    acknowledged_by: str = ""
    closed_at: float = 0.0


class Draft(NamedTuple):
    """An alert to open or to update. key: identifies the cause; one open alert per key.

    site, model, release, features   affected, where known
    """

    key: str
    kind: str
    severity: str
    title: str
    detail: str
    next_step: str
    site: str = ""
    model: str = ""
    release: str = ""
    features: Sequence[str] = ()


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of the rest.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
