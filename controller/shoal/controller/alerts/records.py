"""Alerts as stored, and as drafted by the domain that raises one."""

from collections.abc import Sequence
from typing import NamedTuple

from shoal.controller.store.records import Record

_NAMED = 4
#: From the worst on.
SEVERITIES = ("critical", "warning", "info")
#: States of a member: it has to last, or it stands.
PENDING, STANDING = "pending", "standing"


class Alert(Record, frozen=True, kw_only=True):
    """Findings or failures that need a person's attention, grouped by cause.

    kind      "drift", "rollout", "task" (federated: its rounds, or a quarantine), "device"
              (duplicates), or what devices show: see docs/alerts.md
    state     open, acknowledged, snoozed (until snoozed_until, by a person or a silence), closed
    next_step what to do, one sentence
    members   devices that it stands for, where it is about devices: GET /alerts/ID/members
    reopened  times that its cause returned soon after it was gone
    silence   id of the silence that snoozed it
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
    assigned_to: str = ""
    members: int = 0
    reopened: int = 0
    snoozed_until: float = 0.0
    silence: str = ""
    escalated_at: float = 0.0


class AlertEvent(Record, frozen=True, kw_only=True):
    """One line of an alert's history.

    what    opened, silenced, grew, reopened, escalated, ended, resolved, acknowledged, assigned,
            snoozed, woken
    actor   the person, "" where it was the cause or the clock
    """

    id: int
    alert: int
    at: float
    what: str
    actor: str
    note: str


class Member(Record, frozen=True, kw_only=True):
    """One device that an alert stands for.

    part      model or cause that it is about, "" for neither
    since_at  when it was first seen; seen_at: its last sign
    """

    device: str
    kind: str
    part: str
    site: str
    severity: str
    detail: str
    since_at: float
    seen_at: float


class Silence(Record, frozen=True, kw_only=True):
    """Maintenance: alerts that match every given field begin snoozed while it lasts.

    device   signs of this device wait until it ends; the other fields are those of alerts
    """

    id: str
    begins_at: float
    ends_at: float
    reason: str
    created_at: float
    created_by: str
    site: str = ""
    kind: str = ""
    model: str = ""
    severity: str = ""
    device: str = ""


class Counts(Record, frozen=True, kw_only=True):
    """Numbers of alerts that are not closed, by what one can filter by."""

    state: dict[str, int]
    severity: dict[str, int]
    kind: dict[str, int]


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
