"""The console's words: what a state or a cause is called, how it looks, and what to do about it.

A tone is one of "ok", "warn", "bad", "info", "idle"; with an icon and a label, never colour alone.
"""

from typing import Any, NamedTuple

from shoal.controller.fleet.clock_skew import describe_clock
from shoal.controller.fleet.records import Device
from shoal.controller.rollouts.machine import TRANSITIONS, Event, State
from shoal.controller.web.causes import cause, hint

__all__ = ["cause", "describe_clock", "hint"]  # so that templates find every word in one place


class Sign(NamedTuple):
    """How a state is shown."""

    tone: str
    icon: str
    label: str


SIGNS: dict[str, Sign] = {
    # devices
    "online": Sign("ok", "check", "Online"),
    "offline": Sign("idle", "off", "Offline"),
    "failing": Sign("bad", "cross", "Failing"),
    "unseen": Sign("info", "wait", "Never heard of"),
    "ENROLLED": Sign("info", "plus", "Enrolled"),
    "DECOMMISSIONED": Sign("idle", "stop", "Decommissioned"),
    "decommissioned": Sign("idle", "stop", "Decommissioned"),
    # an update on a device
    "IDLE": Sign("idle", "wait", "Idle"),
    "WAITING": Sign("idle", "wait", "Waiting"),
    "ASSIGNED": Sign("info", "wait", "Assigned"),
    "QUEUED": Sign("info", "run", "Queued"),
    "DOWNLOADING": Sign("info", "run", "Downloading"),
    "DOWNLOADED": Sign("info", "run", "Downloaded"),
    "INSTALLING": Sign("info", "run", "Installing"),
    "PROBING": Sign("info", "run", "Probing"),
    "ACTIVATING": Sign("info", "run", "Activating"),
    "OBSERVING": Sign("info", "run", "Observing"),
    "COMMITTING": Sign("info", "run", "Committing"),
    "SUCCEEDED": Sign("ok", "check", "Succeeded"),
    "ALREADY_INSTALLED": Sign("ok", "check", "Already installed"),
    "ROLLING_BACK": Sign("warn", "back", "Rolling back"),
    "FAILED": Sign("bad", "cross", "Failed"),
    "REJECTED": Sign("bad", "cross", "Rejected"),
    "TIMED_OUT": Sign("bad", "wait", "Timed out"),
    "CANCELED": Sign("idle", "stop", "Canceled"),
    "SKIPPED": Sign("idle", "skip", "Skipped"),
    # rollouts and stages
    "CREATING": Sign("info", "run", "Creating"),
    "WAITING_FOR_APPROVAL": Sign("warn", "key", "Waiting for approval"),
    "READY": Sign("info", "wait", "Ready"),
    "SCHEDULED": Sign("idle", "wait", "Scheduled"),
    "RUNNING": Sign("info", "run", "Running"),
    "ANALYSING": Sign("info", "run", "Analysing"),
    "SUCCESSFUL": Sign("ok", "check", "Successful"),
    "INCONCLUSIVE": Sign("warn", "warn", "Inconclusive"),
    "PAUSED": Sign("warn", "pause", "Paused"),
    "FINISHED": Sign("ok", "check", "Finished"),
    "STOPPING": Sign("warn", "stop", "Stopping"),
    "STOPPED": Sign("idle", "stop", "Stopped"),
    "ROLLED_BACK": Sign("warn", "back", "Rolled back"),
    # releases
    "validated": Sign("info", "check", "Validated, not signed"),
    "refused": Sign("bad", "cross", "Refused by a gate"),
    "candidate": Sign("warn", "key", "Candidate: canary ring only"),
    "released": Sign("ok", "key", "Released"),
    # operations
    "queued": Sign("idle", "wait", "Queued"),
    "running": Sign("info", "run", "Running"),
    "succeeded": Sign("ok", "check", "Succeeded"),
    "failed": Sign("bad", "cross", "Failed"),
    "canceled": Sign("idle", "stop", "Canceled"),
    # alerts
    "open": Sign("bad", "bell", "Open"),
    "acknowledged": Sign("warn", "check", "Acknowledged"),
    "closed": Sign("idle", "check", "Closed"),
    "critical": Sign("bad", "cross", "Critical"),
    "warning": Sign("warn", "warn", "Warning"),
    "info": Sign("info", "info", "Info"),
    "fault": Sign("warn", "warn", "Fault"),
    # federated tasks and rounds
    "preparing": Sign("info", "run", "Being prepared"),
    "ready": Sign("ok", "check", "Ready"),
    "stopped": Sign("warn", "stop", "Stopped"),
    "PLANNED": Sign("idle", "wait", "Planned"),
    "RECRUITING": Sign("info", "run", "Recruiting"),
    "TRAINING": Sign("info", "run", "Training"),
    "UNMASKING": Sign("info", "run", "Unmasking"),
    "AGGREGATING": Sign("info", "run", "Aggregating"),
    "EVALUATING": Sign("info", "run", "Evaluating"),
    "DONE": Sign("ok", "check", "Done"),
    "poisoned": Sign("bad", "stop", "In quarantine"),
    # a device's part in a round
    "INVITED": Sign("idle", "wait", "Invited"),
    "JOINED": Sign("info", "run", "Joined"),
    "UPDATED": Sign("ok", "check", "Update in"),
    "REVEALED": Sign("ok", "check", "Update in"),
    "MEASURED": Sign("ok", "check", "Update in, and measured"),
    "REFUSED": Sign("idle", "skip", "Refused"),
    "LOST": Sign("bad", "off", "Lost"),
    "still-training": Sign("info", "wait", "Still trains: counts later"),
}

#: Rollout action -> (its button, what it does, icon).
ACTIONS: dict[str, tuple[str, str, str]] = {
    "approve": ("Approve", "You say yes to what somebody else has started: it begins.", "check"),
    "pause": ("Pause", "No further device is told to update until you resume.", "pause"),
    "resume": (
        "Resume",
        "The rollout goes on where it stopped; devices that failed try again.",
        "play",
    ),
    "abort": ("Abort", "The rollout ends for good, also for devices in the middle of it.", "stop"),
}

#: Rollout action -> the event it stands for.
_EVENTS = {
    "approve": Event.APPROVED,
    "pause": Event.HELD,
    "resume": Event.RESUMED,
    "abort": Event.ABORTED,
}


def sign(state: str) -> Sign:
    """How to show a state; one this console does not know is shown by its own name."""
    return SIGNS.get(state) or Sign("idle", "info", state.replace("_", " ").capitalize())


def actions(state: str) -> list[str]:
    """What a person may do to a rollout in this state.

    >>> actions("RUNNING"), actions("FINISHED")
    (['pause', 'abort'], [])
    """
    return [name for name, event in _EVENTS.items() if (State(state), event) in TRANSITIONS]


def device_sign(device: Device) -> Sign:
    """How a device is shown: the worst that is true of it."""
    if device.state == "decommissioned":
        return SIGNS["decommissioned"]
    if device.error:
        return SIGNS["failing"]
    if not device.seen_at:
        return SIGNS["unseen"]
    return SIGNS["online" if device.online else "offline"]


def count(value: float) -> str:
    """Groups of three: 12 345 (a narrow space that does not break)."""
    return f"{value:,.0f}".replace(",", "\u202f")


def plural(number: int, one: str, many: str = "") -> str:
    """
    >>> plural(1, "device"), plural(3, "device")
    ('1 device', '3 devices')
    """
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def short(value: Any) -> str:
    """A detail in one line; of a long hash its beginning.

    >>> short("ab" * 32), short(["stable", "canary"]), short(0.5)
    ('abababababab…', 'stable, canary', '0.5')
    >>> short({"max_iter": 20, "sites": ["north"]}), short(True)
    ('max_iter=20, sites=north', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={short(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(short, value))
    text = str(value)
    return f"{text[:12]}…" if len(text) >= 32 and set(text) <= set("0123456789abcdef") else text


def pct(share: float | None, digits: int = 1) -> str:
    """A share of 1 as percent; a dash for none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def micros(us: float | None) -> str:
    """
    >>> micros(43.21), micros(1234), micros(2.5e6)
    ('43.2 µs', '1.23 ms', '2.5 s')
    """
    if us is None or us != us or us <= 0:
        return "–"
    if us < 1e3:
        return f"{us:.3g} µs"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def size(octets: float) -> str:
    """
    >>> size(512), size(53_248)
    ('512 B', '52 kB')
    """
    if octets < 1024:
        return f"{octets:.0f} B"
    return f"{octets / 1024:.3g} kB" if octets < 1024**2 else f"{octets / 1024**2:.3g} MB"


_STEPS = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (float("inf"), 86_400, "d"))


def ago(age_s: float) -> str:
    """
    >>> ago(3), ago(130), ago(-90)
    ('just now', '2 min ago', 'in 1 min')
    """
    if -5 < age_s < 5:
        return "just now"
    unit, name = next((u, n) for until, u, n in _STEPS if abs(age_s) < until)
    said = f"{abs(age_s) // unit:.0f} {name}"
    return f"{said} ago" if age_s > 0 else f"in {said}"


def verdict_of_psi(psi: float) -> str:
    """An effect size in plain words, by the bounds that the trade has settled on."""
    if psi < 0.1:
        return "much as in training"
    return "noticeably different from training" if psi < 0.25 else "very different from training"
