"""Texts of the alerts of devices: what is the matter at a site, and the next step, a command."""

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, select

from shoal.controller.alerts.members import Group
from shoal.controller.alerts.records import Draft, listed
from shoal.controller.conditions import clocks
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device

#: A site is offline when so large a share of its devices is silent, and at least so many.
SITE_SHARE, SITE_DEVICES = 0.9, 3


class Words(NamedTuple):
    """Words for one kind of condition.

    one, many   title for one device, for several: {device}, {count}, {site}, {part}
    next_step   {device} and {site} are quoted for a shell
    """

    one: str
    many: str
    next_step: str


WORDS = {
    "certificate": Words(
        "The certificate of {device} ends soon",
        "Certificates of {count} devices at {site} end soon",
        "A device renews by itself at two thirds of its certificate's life: see why it could not: "
        "shoal device show {device}. Ended already: enrol it again: shoal device token "
        "--site {site}",
    ),
    "offline": Words(
        "{device} is offline",
        "{count} devices at {site} are offline",
        "Check its power and network; what it last reported: shoal device show {device}",
    ),
    "disk": Words(
        "The disk of {device} is full or nearly",
        "Disks of {count} devices at {site} are full or nearly",
        "Free space on it (logs, old images): without any it cannot update. See: shoal device show "
        "{device}",
    ),
    "temperature": Words(
        "{device} is too hot",
        "{count} devices at {site} are too hot",
        "Check fan, dust and sun; it serves slower until it cools. See: shoal device show {device}",
    ),
    "pressure": Words(
        "{device} is under pressure, and serves less",
        "{count} devices at {site} are under pressure, and serve less",
        "Stop what else runs on it, or give it a smaller variant. See: shoal device show {device}",
    ),
    "memory": Words(
        "{device} is short of memory",
        "{count} devices at {site} are short of memory",
        "Stop what else runs on it, or give it a smaller variant: without memory its system ends "
        "programs. See: shoal device show {device}",
    ),
    "outbox": Words(
        "The outbox of {device} grows or overflows",
        "Outboxes of {count} devices at {site} grow or overflow",
        "It makes more than its link carries: check the link, or raise [fleet] window_s in "
        "controller.toml. See: shoal device show {device}",
    ),
    "errors": Words(
        "{part} fails on {device}",
        "{part} fails on {count} devices at {site}",
        "See what is asked of it: shoal device show {device}. If a release brought it: shoal "
        "rollout list",
    ),
    "latency": Words(
        "{part} has become slow on {device}",
        "{part} has become slow on {count} devices at {site}",
        "Look for heat, load and the release it serves: shoal device show {device}",
    ),
    "accuracy": Words(
        "{part} is wrong more often on {device}",
        "{part} is wrong more often on {count} devices at {site}",
        "See whether its inputs moved: shoal alert list --kind drift. What it was trained on: "
        "shoal release list",
    ),
    "source": Words(
        "A source of {device} is down or has bad tags",
        "Sources of {count} devices at {site} are down or have bad tags",
        "Check the machine that it reads from, and its tags: shoal device show {device}",
    ),
    "refused-rows": Words(
        "{device} refuses rows",
        "{count} devices at {site} refuse rows",
        "What it is given does not fit its model: shoal device show {device}",
    ),
    "refused-messages": Words(
        "Messages of {device} are refused",
        "Messages of {count} devices at {site} are refused",
        "Its agent may be older or newer than the controller: shoal device show {device}",
    ),
    "failing": Words(
        "{device} is failing",
        "{count} devices at {site} are failing",
        "What it reported, in order: shoal device show {device}",
    ),
    "attack": Words(
        "{device} was given something that is not signed as it must be",
        "{count} devices at {site} were given something that is not signed as it must be",
        "Find out who sent it: shoal device show {device}. It was refused, nothing was changed",
    ),
}
OTHER = Words(
    "{device}: {part}", "{count} devices at {site}: {part}", "See: shoal device show {device}"
)


def draft(db: Connection, ctx: Context, group: Group) -> Draft:
    """The alert of a group of devices."""
    if group.kind == "offline":
        return _offline(db, ctx, group)
    if group.kind == clocks.KIND:
        return clocks.alert_draft(db, ctx, group)
    return _draft(group, WORDS.get(group.kind, OTHER))


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (42, 600, 5400, 86400 * 3)]
    ['42 s', '10 min', '90 min', '3 d']
    """
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _draft(group: Group, words: Words, **more: Any) -> Draft:
    first = group.first[0]
    plain = {"device": first.device, "site": group.site or "no site", "part": group.part}
    quoted = {"device": shlex.quote(first.device), "site": shlex.quote(group.site)}
    title = words.one if group.devices == 1 else words.many
    made = Draft(
        key=group.key, kind=group.kind, severity=group.severity,
        title=title.format(count=group.devices, **plain),
        detail=_detail(group.first, group.devices),
        next_step=words.next_step.format(**plain | quoted),
        site=group.site, model=group.part if group.kind in _OF_MODELS else "",
    )  # fmt: skip
    return made._replace(**more)


#: Kinds whose part is a model.
_OF_MODELS = frozenset({"errors", "latency", "accuracy"})


def _detail(rows: Sequence[Row[Any]], count: int) -> str:
    """What the devices show that stand longest.

    Each with its own words; beyond a few, how many more.
    """
    text = listed([f"{row.device}: {row.detail}" if row.detail else row.device for row in rows])
    if count > len(rows):
        text = listed([f"{row.device} ({row.detail})" for row in rows[:4]])
        text += f" and {count - 4} more"
    return text + "."


def _offline(db: Connection, ctx: Context, group: Group) -> Draft:
    enrolled = (device.c.site == group.site) & (device.c.state == "enrolled")
    query = select(func.count(), func.max(device.c.seen_at)).where(enrolled)
    total, newest = db.execute(query).one()
    silent_for = ctx.settings.fleet.offline_s
    silent = db.scalar(
        select(func.count()).where(enrolled, device.c.seen_at < ctx.clock() - silent_for)
    )
    site, quoted = group.site or "no site", shlex.quote(group.site)
    if total >= SITE_DEVICES and (silent or 0) >= SITE_SHARE * total:
        return _draft(
            group, WORDS["offline"], severity="critical", title=f"Site {site} is offline",
            detail=(
                f"{silent} of its {total} devices are silent, the last one for "
                f"{duration(ctx.clock() - newest)}: its link or its power is down."
            ),
            next_step=(
                "Check the site's power and uplink; its devices: shoal device list "
                f"--site {quoted} --state offline"
            ),
        )  # fmt: skip
    if group.devices == 1:
        return _draft(group, WORDS["offline"])
    return _draft(
        group, WORDS["offline"], title=f"{group.devices} of {total} devices at {site} are offline",
        next_step=(
            f"Check their power and network: shoal device list --site {quoted} --state offline"
        ),
    )  # fmt: skip
