"""The device's status: what serves, since when, what is wrong and what to do. One screen."""

import datetime
import re
from typing import Any

import msgspec

from shoal.agent.feeds.frames import FeedHealth
from shoal.agent.host.clock_skew import describe
from shoal.agent.installed.record import Record, Slot
from shoal.wire import Skew

#: Cause -> what a technician on site can do.
ADVICE = {
    "golden-mismatch": "nothing on site: this CPU computes it differently; tell the operator",
    "too-slow": "check for heat and other load here; else it needs a lighter variant",
    "too-big": "close other programs or choose a smaller model",
    "bad-signature": "a release without a trusted signature was offered: tell security",
    "revoked": "a release that was revoked was ordered: tell security",
    "provenance-mismatch": "a release was offered that is not what it says: tell security",
    "stale": "check the date and that the controller is running",
    "misdirected": "sign the release, or make this a test device: enrol it with --ring canary",
    "download": "check the network to the artifact server: shoal-agent doctor",
    "unreachable": "check the network: shoal-agent doctor",
    "disk-full": "free space on this disk, then let the operator start a new attempt",
    "storage": "mount the disk for writing, or replace it: the storage card may be failing",
    "unusable-model": "nothing on site: export the model for this device's onnxruntime",
    "unsupported-profile": "nothing on site: this board's profile is not built for this release",
    "unhealthy": "look at the inputs (sensor, camera); the old release serves",
    "crash-loop": "see the log; the old release serves",
    "clock": "set the date or enable time synchronisation (timedatectl set-ntp true)",
    "deadline": "check the network, then let the operator start a new attempt",
    "slot-damaged": "the storage card may be failing: replace it",
}
_COMMAND = re.compile(r"\bshoal-agent (?:run|doctor)\b")
_NO_SOCKET = (
    "its folder is read-only, so there is no agent.sock to ask it by: mount the disk writable; "
    "until then its log says what is wrong, and a fixed [endpoint] port in agent.toml is asked"
)
FEED_ADVICE = "it goes on trying; check its cable, server and settings in agent.toml"
TAG_ADVICE = "the other tags are read; check these in agent.toml: they are tried again"

#: What is wanted of a model that was ordered to be removed.
REMOVAL = "removal"


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model: the serving release ("" for none) and the state of the latest update attempt.

    timings_us   variant -> median of its timed runs here; the fastest that passed serves
    """

    model: str
    release: str
    variant: str
    since_s: float
    state: str
    wanted: str = ""
    cause: str = ""
    detail: str = ""
    requests: int = 0
    errors: int = 0
    timings_us: dict[str, float] = {}


def model_status(
    record: Record, slot: Slot | None, *, requests: int = 0, errors: int = 0
) -> ModelStatus:
    """The status of one model from its record and the `slot` that serves, or would."""
    return ModelStatus(
        model=record.model,
        release=slot.release if slot else "",
        variant=slot.variant if slot else "",
        since_s=slot.since_s if slot else 0.0,
        state=record.state.name,
        wanted=(record.order.release or REMOVAL) if record.order else "",
        cause=record.cause,
        detail=record.detail,
        requests=requests,
        errors=errors,
        timings_us=slot.timings_us if slot else {},
    )


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of the device.

    running   True from the running agent, False when read from its files
    pid       process of an agent that runs and does not respond; 0 for none
    read_only whether this user may not write to the folder, or its disk takes no writes
    connection_fault   why the broker is not connected
    folder    for --folder in hints; "" for the default folder
    """

    device: str
    site: str
    profile: str
    ring: str
    agent: str
    now_s: float
    running: bool
    pid: int = 0
    read_only: bool = False
    connected: bool = False
    connection_since_s: float = 0.0
    connection_fault: str = ""
    clock_synced: bool = True
    clock: Skew | None = None
    endpoint: str = ""
    waiting: int = 0
    models: list[ModelStatus] = []
    faults: list[str] = []
    health: dict[str, Any] = {}
    feeds: list[FeedHealth] = []
    level: str = "full"
    folder: str = ""
    learning: str = ""
    sharing: str = ""

    @property
    def problems(self) -> list[tuple[str, str]]:
        """(what is wrong, what to do), the most severe first."""
        return [(what, self._with_folder(hint)) for what, hint in self._found]

    def _with_folder(self, hint: str) -> str:
        """The hint with --folder in its commands where needed."""
        where = f" --folder {self.folder}" if self.folder else ""
        return _COMMAND.sub(lambda found: found[0] + where, hint)

    @property
    def _removed(self) -> bool:
        """Whether it serves nothing because every model was ordered to be removed."""
        return bool(self.models) and all(m.wanted == REMOVAL for m in self.models)

    @property
    def _found(self) -> list[tuple[str, str]]:
        found = []
        if self.pid:
            what = f"the agent runs as process {self.pid}, and does not respond here"
            found.append(
                (what, _NO_SOCKET if self.read_only else "it starts, or hangs: see its log")
            )
        elif not self.running:
            found.append(("the agent is not running", "start it: shoal-agent run"))
        elif not self.connected:
            why = f": {self.connection_fault}" if self.connection_fault else ""
            what = f"no connection to the broker{why}"
            found.append((what, "it goes on serving; see shoal-agent doctor"))
        if not self.clock_synced:
            how = f"{describe(self.clock)} the controller's" if self.clock else "behind"
            found.append((f"the clock is {how}", "set the date or enable time synchronisation"))
        if not any(m.release for m in self.models) and not self._removed:
            found.append(("no release serves", "ask the operator to roll one out to this device"))
        for m in self.models:
            if m.cause and m.state != "CANCELED":
                hint = ADVICE.get(m.cause, "tell the operator")
                found.append((f"{m.wanted} {m.state}: {m.detail or m.cause}", hint))
        if self.level != "full":
            found.append(
                (f"under pressure: level {self.level!r}", "look for heat, dust and other programs")
            )
        found += [
            (f"{feed.kind} {feed.name}: {feed.error}", TAG_ADVICE if feed.up else FEED_ADVICE)
            for feed in self.feeds
            if feed.error or not feed.up
        ]
        return found + [(fault, "") for fault in self.faults]


def text(status: DeviceStatus) -> str:
    """The status as text for a terminal."""
    head = [status.device, f"site {status.site or '-'}", status.profile]
    link = "connected" if status.connected else "not connected"
    link = "of unknown connection" if status.pid else link
    run = "running" if status.running or status.pid else "NOT RUNNING"
    lines = [
        "  ".join([*head, f"ring {status.ring}"]),
        f"agent {status.agent}, {run}, {link}, {status.waiting} messages waiting",
    ]
    if status.endpoint:
        lines.append(f"endpoint {status.endpoint}")
    if status.sharing:
        lines.append(status.sharing)
    if status.clock:
        lines.append(f"clock {describe(status.clock)} the controller's")
    lines += ["", *(_model(m, status.now_s) for m in status.models)]
    lines += ["", *map(_feed, status.feeds)] if status.feeds else []
    lines += ["", f"  {status.learning}"] if status.learning else []
    problems = status.problems
    lines += ["", "nothing is wrong"] if not problems else ["", "wrong:"]
    for what, hint in problems:
        lines += [f"  - {what}", *([f"    do: {hint}"] if hint else [])]
    return "\n".join(lines)


def ago(seconds: float) -> str:
    """
    >>> ago(5), ago(600), ago(9000), ago(400000)
    ('5 s', '10 min', '2 h', '4 d')
    """
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(max(0.0, seconds))} s"


def _model(m: ModelStatus, now_s: float) -> str:
    if not m.release:
        return f"  {m.model}: nothing serves; {m.wanted} {m.state}"
    since = datetime.datetime.fromtimestamp(m.since_s, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    line = f"  {m.release} ({m.variant}) serves since {since} UTC, {ago(now_s - m.since_s)}"
    line += f"; {m.requests} requests, {m.errors} errors"
    if m.wanted not in ("", m.release):
        line += f"; {m.wanted} {m.state}"
    return f"{line}\n    {_timings(m)}" if len(m.timings_us) > 1 else line


def _timings(m: ModelStatus) -> str:
    times = ", ".join(f"{name} {us:.3g} µs" for name, us in m.timings_us.items())
    return f"timed here: {times}; {m.variant} was chosen"


def _feed(feed: FeedHealth) -> str:
    line = f"  {feed.kind} {feed.name}: {'up' if feed.up else 'DOWN'}, {feed.count} so far"
    for what, number in (
        ("bad values", feed.bad),
        ("dropped", feed.dropped),
        ("waiting", feed.waiting),
        ("reconnections", feed.reconnects),
    ):
        line += f", {number} {what}" if number else ""
    return f"{line}, {feed.lag_s:.1f} s old on arrival" if feed.lag_s > 1 else line
