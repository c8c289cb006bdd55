"""MQTT topics: build and parse them (DESIGN section 4)."""

import re
from typing import NamedTuple

from shoal.errors import SettingError, WireError

ROOT = "shoal/v1"
BUDGET = f"{ROOT}/fleet/budget"
TIMESTAMP = f"{ROOT}/fleet/timestamp"
ALL_UP = f"{ROOT}/+/up/+"

UP_KINDS = ("status", "inventory", "window", "event", "round")

#: No dot, slash, ``+`` or ``#``: the name is one topic level on MQTT, one subject token on NATS,
#: one file name and one certificate CN.
_DEVICE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_RESERVED = frozenset({"fleet", "controller"})


class Upward(NamedTuple):
    """Parts of a topic that a device publishes on."""

    device: str
    kind: str


def check_device(name: str) -> str:
    """Return `name` if it may name a device, else raise SettingError."""
    if not _DEVICE.fullmatch(name) or name in _RESERVED:
        raise SettingError(
            f"device name {name!r}",
            "use 1 to 63 lower-case letters, digits and inner hyphens, "
            "and neither 'fleet' nor 'controller'",
        )
    return name


def up(device: str, kind: str) -> str:
    """Topic on which `device` publishes its `kind` messages."""
    return f"{ROOT}/{device}/up/{kind}"


def down(device: str, kind: str) -> str:
    """Topic on which the controller publishes messages of `kind` for `device`."""
    return f"{ROOT}/{device}/down/{kind}"


def all_down(device: str) -> str:
    """Subscription filter for every message to `device`."""
    return f"{ROOT}/{device}/down/+"


def parse_up(topic: str) -> Upward:
    """Parse an upward topic; WireError if it is invalid."""
    parts = topic.split("/")
    if len(parts) != 5 or f"{parts[0]}/{parts[1]}" != ROOT or parts[3] != "up":
        raise WireError(f"topic {topic[:120]!r} is not {ROOT}/<device>/up/<kind>")
    if not _DEVICE.fullmatch(parts[2]) or parts[4] not in UP_KINDS:
        raise WireError(f"topic {topic[:120]!r} names no device or an unknown kind")
    return Upward(parts[2], parts[4])
