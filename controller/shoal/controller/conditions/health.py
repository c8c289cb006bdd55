"""What a window, a fault or a refused message of a device is a sign of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shoal.controller.alerts.members import Sign
from shoal.controller.host.settings import Alerts
from shoal.controller.host.windows import NewWindow

#: A level has to last so long before it is an alert, and faults are over so long after the last:
#: an agent repeats a fault that lasts after five minutes.
HOLD_S, CALM_S = 120.0, 1_800.0
_COOLER_C, _FREER = 5.0, 2.0
_MERGED = 2


class Level(NamedTuple):
    """One measured level of a device: whether it is bad, and what was measured."""

    kind: str
    bad: bool
    detail: str


#: Causes of faults -> the kind of their alert; others are of the kind "fault".
KIND_OF = {
    "disk-full": "disk", "storage": "disk",
    "pressure": "pressure", "short-memory": "memory", "too-hot": "temperature",
    "feed-down": "source", "bad-tag": "source", "source-unreadable": "source",
    "bad-input": "refused-rows", "bad-image": "refused-rows", "unsigned-image": "refused-rows",
    "rows-damaged": "refused-rows",
    "slot-damaged": "failing", "journal-lost": "failing", "agent-bug": "failing",
    "crash-loop": "failing", "link-died": "failing",
    "bad-signature": "attack", "untrusted": "attack", "stale": "attack", "misdirected": "attack",
    "revoked": "attack", "provenance-mismatch": "attack",
    "peer-untrusted": "attack", "peer-lied": "attack",
    "unreadable-message": "refused-messages", "oversize-message": "refused-messages",
    "sketch-mismatch": "refused-messages",
}  # fmt: skip


def of_window(window: NewWindow, limits: Alerts, is_standing: Callable[[str], bool]) -> list[Level]:
    """Levels of the machine in a window, with hysteresis: what stands ends only when well clear.

    is_standing   whether the device's condition of a kind is stored already
    """
    health, found = window.health, []
    free, temperature = _number(health, "disk_free_mb"), _number(health, "temp_c")
    if free >= 0:
        bound = limits.disk_free_mb * (_FREER if is_standing("disk") else 1)
        found.append(Level("disk", free < bound, f"{free:.0f} MB free"))
    if temperature > 0:
        bound = limits.temperature_c - (_COOLER_C if is_standing("temperature") else 0)
        hot = temperature > bound or bool(health.get("throttled"))
        slowed = ", slowed down by its firmware" if health.get("throttled") else ""
        found.append(Level("temperature", hot, f"{temperature:.0f} °C{slowed}"))
    if (memory := _number(health, "memory_free_mb")) >= 0:
        bound = limits.memory_free_mb * (_FREER if is_standing("memory") else 1)
        found.append(Level("memory", memory < bound, f"{memory:.0f} MB may still be used"))
    return found


def of_merged(window: NewWindow) -> Sign | None:
    """A sign that the device's outbox overflows: it merges windows to keep what it can."""
    if window.merged < _MERGED:
        return None
    detail = f"{window.merged} windows merged into one"
    return Sign(window.device, window.site, "outbox", detail=detail, calm_s=CALM_S)


def of_event(event: Mapping[str, Any], site: str) -> Sign | None:
    """A sign by a stored fault; None for what only informs."""
    if event["kind"] != "fault" or event["state"] == "info":
        return None
    cause = str(event["cause"])[:60]
    kind = KIND_OF.get(cause, "fault")
    severity = "critical" if event["state"] == "critical" else "warning"
    part = cause if kind == "fault" else ""
    detail = str(event["detail"])[:200]
    return Sign(event["device"], site, kind, part, severity, detail, calm_s=CALM_S)


def _number(health: Mapping[str, Any], name: str) -> float:
    value = health.get(name, -1)
    return float(value) if isinstance(value, int | float) else -1.0
