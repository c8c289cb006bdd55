"""Display texts of the console: labels and badges of states, numbers, sizes and times.

A tone is one of "ok", "warn", "bad", "info", "idle"; with an icon and a label, never colour alone.
"""

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from shoal.controller.fleet.clock_skew import describe_clock
from shoal.controller.fleet.records import Device
from shoal.controller.needs.records import Need
from shoal.controller.releases.records import OutputAgreement, TensorsReport
from shoal.controller.rollouts.machine import ENDED, TRANSITIONS, Event, State
from shoal.controller.web.causes import cause_name, hint
from shoal.tasks import Task

__all__ = ["cause_name", "describe_clock", "hint"]  # templates use them as text.cause_name, ...


#: Labels of a task that are named.
_NAMED = 20


class Badge(NamedTuple):
    """Tone, icon and label of a state."""

    tone: str
    icon: str
    label: str


BADGES: dict[str, Badge] = {
    # devices
    "online": Badge("ok", "check", "Online"),
    "offline": Badge("idle", "off", "Offline"),
    "failing": Badge("bad", "cross", "Failing"),
    "unseen": Badge("info", "wait", "Never connected"),
    "ENROLLED": Badge("info", "plus", "Enrolled"),
    "DECOMMISSIONED": Badge("idle", "stop", "Decommissioned"),
    "decommissioned": Badge("idle", "stop", "Decommissioned"),
    # an update on a device
    "IDLE": Badge("idle", "wait", "Idle"),
    "WAITING": Badge("idle", "wait", "Waiting"),
    "ASSIGNED": Badge("info", "wait", "Assigned"),
    "QUEUED": Badge("info", "run", "Queued"),
    "DOWNLOADING": Badge("info", "run", "Downloading"),
    "DOWNLOADED": Badge("info", "run", "Downloaded"),
    "INSTALLING": Badge("info", "run", "Installing"),
    "PROBING": Badge("info", "run", "Probing"),
    "ACTIVATING": Badge("info", "run", "Activating"),
    "OBSERVING": Badge("info", "run", "Observing"),
    "COMMITTING": Badge("info", "run", "Committing"),
    "SUCCEEDED": Badge("ok", "check", "Succeeded"),
    "ALREADY_INSTALLED": Badge("ok", "check", "Already installed"),
    "ROLLING_BACK": Badge("warn", "back", "Rolling back"),
    "FAILED": Badge("bad", "cross", "Failed"),
    "REJECTED": Badge("bad", "cross", "Rejected"),
    "TIMED_OUT": Badge("bad", "wait", "Timed out"),
    "CANCELED": Badge("idle", "stop", "Canceled"),
    "SKIPPED": Badge("idle", "skip", "Skipped"),
    "REMOVING": Badge("info", "run", "Removing"),
    "retired": Badge("idle", "stop", "Retired"),
    "deleting": Badge("idle", "run", "Being deleted"),
    # an undeployment and its devices
    "SELECTING": Badge("info", "run", "Selecting devices"),
    "ORDERED": Badge("info", "wait", "Ordered"),
    "REMOVED": Badge("ok", "check", "Removed"),
    "CANNOT": Badge("warn", "warn", "Cannot yet"),
    "GONE": Badge("idle", "stop", "Decommissioned"),
    # a device and its group
    "CONVERGING": Badge("info", "run", "Converging"),
    "ROLLOUT": Badge("info", "rollout", "In a rollout"),
    "AWAY": Badge("idle", "off", "Away"),
    "HELD": Badge("warn", "pause", "Held"),
    "PINNED": Badge("idle", "key", "Pinned"),
    "EXCLUDED": Badge("idle", "skip", "Excluded"),
    "KEPT": Badge("warn", "stop", "Keeps what it has"),
    # rollouts and stages
    "CREATING": Badge("info", "run", "Creating"),
    "WAITING_FOR_APPROVAL": Badge("warn", "key", "Waiting for approval"),
    "READY": Badge("info", "wait", "Ready"),
    "SCHEDULED": Badge("idle", "wait", "Scheduled"),
    "RUNNING": Badge("info", "run", "Running"),
    "ANALYSING": Badge("info", "run", "Analysing"),
    "SUCCESSFUL": Badge("ok", "check", "Successful"),
    "INCONCLUSIVE": Badge("warn", "warn", "Inconclusive"),
    "PAUSED": Badge("warn", "pause", "Paused"),
    "WORSE": Badge("bad", "cross", "Worse"),
    "SAFE": Badge("ok", "check", "No worse"),
    "OPEN": Badge("info", "run", "Not decided"),
    "MISSING": Badge("warn", "warn", "Data missing"),
    "FINISHED": Badge("ok", "check", "Finished"),
    "STOPPING": Badge("warn", "stop", "Stopping"),
    "STOPPED": Badge("idle", "stop", "Stopped"),
    "ROLLED_BACK": Badge("warn", "back", "Rolled back"),
    # releases
    "validated": Badge("info", "check", "Validated, not signed"),
    "refused": Badge("bad", "cross", "Refused by a gate"),
    "candidate": Badge("warn", "key", "Candidate: canary ring only"),
    "released": Badge("ok", "key", "Released"),
    # operations
    "queued": Badge("idle", "wait", "Queued"),
    "running": Badge("info", "run", "Running"),
    "succeeded": Badge("ok", "check", "Succeeded"),
    "failed": Badge("bad", "cross", "Failed"),
    "canceled": Badge("idle", "stop", "Canceled"),
    # alerts
    "open": Badge("bad", "bell", "Open"),
    "acknowledged": Badge("warn", "check", "Acknowledged"),
    "closed": Badge("idle", "check", "Closed"),
    "critical": Badge("bad", "cross", "Critical"),
    "warning": Badge("warn", "warn", "Warning"),
    "info": Badge("info", "info", "Info"),
    "fault": Badge("warn", "warn", "Fault"),
    # federated tasks and rounds
    "preparing": Badge("info", "run", "Preparing"),
    "ready": Badge("ok", "check", "Ready"),
    "stopped": Badge("warn", "stop", "Stopped"),
    "PLANNED": Badge("idle", "wait", "Planned"),
    "RECRUITING": Badge("info", "run", "Recruiting"),
    "TRAINING": Badge("info", "run", "Training"),
    "UNMASKING": Badge("info", "run", "Unmasking"),
    "AGGREGATING": Badge("info", "run", "Aggregating"),
    "EVALUATING": Badge("info", "run", "Evaluating"),
    "DONE": Badge("ok", "check", "Done"),
    "revoked": Badge("bad", "stop", "Revoked"),
    "poisoned": Badge("bad", "stop", "In quarantine"),
    # a device's part in a round
    "INVITED": Badge("idle", "wait", "Invited"),
    "JOINED": Badge("info", "run", "Joined"),
    "UPDATED": Badge("ok", "check", "Update received"),
    "REVEALED": Badge("ok", "check", "Update received"),
    "MEASURED": Badge("ok", "check", "Update received, evaluated"),
    "REFUSED": Badge("idle", "skip", "Refused"),
    "LOST": Badge("bad", "off", "Lost"),
    "still-training": Badge("info", "wait", "Still training: counts later"),
}

#: Rollout action -> (button label, description, icon).
#: Metrics of behaviour gates.
METRICS = {"errors": "Errors", "latency": "Slow calls", "accuracy": "Wrong predictions"}
ACTIONS: dict[str, tuple[str, str, str]] = {
    "approve": ("Approve", "You approve a rollout that another user started: it begins.", "check"),
    "pause": ("Pause", "No further device is updated until you resume.", "pause"),
    "resume": (
        "Resume",
        "The rollout continues where it stopped; failed devices try again.",
        "play",
    ),
    "abort": (
        "Abort",
        "The rollout ends permanently, also for devices in the middle of an update.",
        "stop",
    ),
}

#: Rollout action -> event of the rollout machine.
_EVENTS = {
    "approve": Event.APPROVED,
    "pause": Event.HELD,
    "resume": Event.RESUMED,
    "abort": Event.ABORTED,
}


def badge(state: str) -> Badge:
    """Badge of a state; an unknown state is shown by its own name."""
    return BADGES.get(state) or Badge("idle", "info", state.replace("_", " ").capitalize())


def actions(state: str, trailing: str = "") -> list[str]:
    """Actions that a rollout in this state allows; trailing: state of its trailing stage.

    >>> actions("RUNNING"), actions("FINISHED"), actions("FINISHED", "PAUSED")
    (['pause', 'abort'], [], ['resume'])
    """
    if trailing and State(state) in ENDED:
        return ["resume"] if trailing == "PAUSED" else ["pause", "resume"]
    return [name for name, event in _EVENTS.items() if (State(state), event) in TRANSITIONS]


def device_badge(device: Device) -> Badge:
    """Badge of a device: the most severe of its states."""
    if device.state == "decommissioned":
        return BADGES["decommissioned"]
    if device.error:
        return BADGES["failing"]
    if not device.seen_at:
        return BADGES["unseen"]
    return BADGES["online" if device.online else "offline"]


def count(value: float) -> str:
    """Integer in groups of three digits: 12 345 (narrow no-break space)."""
    return f"{value:,.0f}".replace(",", "\u202f")


def plural(number: int, one: str, many: str = "") -> str:
    """
    >>> plural(1, "device"), plural(3, "device")
    ('1 device', '3 devices')
    """
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def task_facts(task: Task) -> list[tuple[str, str]]:
    """Fields of a task that were said, and their values; of a long list the first.

    >>> from shoal.tasks import Embedding
    >>> task_facts(Embedding(output="v", compare="l2"))
    [('output', 'v'), ('compare', 'l2')]
    """
    fields = msgspec.to_builtins(task)
    return [(name, _listing(value)) for name, value in fields.items() if name != "task"]


def _listing(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    more = f" and {len(value) - _NAMED} more" if len(value) > _NAMED else ""
    return ", ".join(map(str, value[:_NAMED])) + more


def agreement(one: OutputAgreement) -> str:
    """How far an output of a variant is from fp32's.

    >>> agreement(OutputAgreement(output="y", max_error=0.0612, cosine=0.9949, same=1.0))
    'y: error 0.061 of the largest value, worst cosine 0.9949, the same largest element on 100.0%'
    """
    words = [f"{one.output}: error {one.max_error:.3f} of the largest value"]
    words += [] if one.cosine is None else [f"worst cosine {one.cosine:.4f}"]
    words += [] if one.same is None else [f"the same largest element on {one.same:.1%}"]
    return ", ".join(words)


def states_of(report: TensorsReport) -> dict[str, str]:
    """Tensor -> what it is in a sequence of requests, of those that are state."""
    taken = {state.taken: f"is {state.given} of the step before" for state in report.states}
    return taken | {state.given: f"is {state.taken} of the next step" for state in report.states}


def short(value: Any) -> str:
    """A value on one line; a long hash is shortened.

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
    """A fraction as percent; a dash for None."""
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


def instant(at: float) -> str:
    """Date and time in UTC, to the second.

    >>> instant(1_800_000_000)
    '2027-01-15 08:00:00'
    """
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(age_s: float) -> str:
    """
    >>> ago(3), ago(130), ago(-90)
    ('just now', '2 min ago', 'in 1 min')
    """
    if -5 < age_s < 5:
        return "just now"
    unit, name = next((u, n) for until, u, n in _STEPS if abs(age_s) < until)
    amount = f"{abs(age_s) // unit:.0f} {name}"
    return f"{amount} ago" if age_s > 0 else f"in {amount}"


def verdict_of_psi(psi: float) -> str:
    """Label of a population stability index, by its usual bounds 0.1 and 0.25."""
    if psi < 0.1:
        return "similar to training"
    return "noticeably different from training" if psi < 0.25 else "very different from training"


def need_id(need: Need) -> str:
    """Id of an element for a need: the same while it lasts.

    >>> from shoal.controller.needs.records import Action, Need
    >>> act = Action(label="", href="", command="", role="viewer")
    >>> need_id(Need(kind="candidate", severity="info", subject="a@1", sentence="", facts=[],
    ...     count=1, since=0.0, action=act))
    'candidate-a-1'
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{need.kind}-{need.subject}").strip("-")
