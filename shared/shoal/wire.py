"""Messages between agent and controller: DESIGN section 4.

Every message is a frozen msgspec struct, MessagePack on the wire, told apart by its ``type`` tag.
Fields may be added with a default (old peers ignore what they do not know); a field is never
removed, renamed or retyped within ``v1``. tests/golden holds the bytes of every version.

Units are in the names: ``_s`` seconds (Unix time, UTC, where it is an instant), ``_us``
microseconds, ``_mb`` 2**20 bytes.
"""

from typing import Annotated, Any, TypeVar

import msgspec

from shoal.errors import OversizeError, WireError
from shoal.federated import messages
from shoal.validation_errors import decode_errors_as

#: Largest message in bytes, checked before parsing.
LIMIT = {
    "status": 4_096,
    "inventory": 65_536,
    "window": 262_144,
    "event": 65_536,
    "round": 1_048_576,
    "assignment": 131_072,
    "ack": 65_536,
    "time": 1_024,
    "command": 16_384,
    "budget": 4_096,
    "timestamp": 65_536,
}


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=2**33)]
Difference = Annotated[float, msgspec.Meta(ge=-(2**33), le=2**33)]
RoundId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of everything on the wire."""


class Upward(Message, frozen=True, kw_only=True):
    """What a device says. (device, boot, seq) names it once and for all.

    device   name in the certificate's CN; the topic must say the same
    boot     random name of the outbox's life: a lost outbox starts a new one, seq from 1
    seq      1, 2, 3, ... within a boot; 0 for what is never in the outbox (Status)
    sent_s   the device's clock when the message was made
    """

    device: str
    boot: str
    seq: Count
    sent_s: Seconds


class Status(Upward, frozen=True, kw_only=True, tag="status"):
    """Online or gone; the broker publishes the last will for a device that vanished.

    since_s  when this state began
    asks_time  set to have the controller's Time; older peers know nothing of it
    session  new for every connection: a late will of an old session is ignored. PROCESS-N-RANDOM,
             with N the times that this process was connected before (hex, decimal, hex)
    """

    online: bool
    since_s: Seconds
    session: str
    asks_time: bool | msgspec.UnsetType = msgspec.UNSET


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """How far a device's clock is ahead of the controller's (behind: negative).

    error_s  it is within so many seconds of `skew_s`
    """

    skew_s: Difference
    error_s: Seconds


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device.

    release    "model@version"
    variant    file that serves, e.g. "int8-u8s8-pc"
    sha256     of the serving model file, hex
    slot       "a" or "b"
    role       "release" or "candidate"
    timings_us variant -> p50 of its timed runs, where the device timed several
    """

    model: str
    release: str
    variant: str
    sha256: str
    slot: str
    role: str
    since_s: Seconds
    timings_us: dict[str, float] = {}


class Inventory(Upward, frozen=True, kw_only=True, tag="inventory"):
    """What is on the device. Retained, and sent again after every change.

    facts   arch, cpu, flags, ram_mb, python, ort, os ...: what profiles match on; and, once it
            is known, clock_skew_s and clock_error_s, as in Skew
    floors  what the device will not go below: assignment version, release counter per model, time
    """

    agent: str
    profile: str
    ring: str
    site: str
    line: str
    labels: dict[str, str]
    facts: dict[str, Any]
    installed: list[Installed]
    floors: dict[str, float]
    endpoint: str = ""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The machine under the agent, over one window; -1 where the machine does not tell.

    clock_synced  False when the clock is known to be wrong: behind what was signed, or off
    clock         when the window ended, where it is known
    """

    rss_mb: float = -1
    cpu_pct: float = -1
    temp_c: float = -1
    disk_free_mb: float = -1
    throttled: bool = False
    clock_synced: bool = True
    clock: Skew | msgspec.UnsetType = msgspec.UNSET


class WindowReport(Upward, frozen=True, kw_only=True, tag="window"):
    """What one device saw of one model in one window of time.

    release         "model@version" that served; a swap closes the window
    reference       id of the reference whose bins the sketches use
    window_start_s  of the first row
    window_s        length in seconds
    rows            rows the model was given
    errors          requests that failed, by the model's or the caller's fault
    slow            requests over the profile's p99 budget
    latency         counts of shoal.sketch.Latency, trailing zeros cut
    inputs, outputs shoal.sketch.Sketch bytes; empty when rows is 0
    labelled        rows whose true label is known by now
    correct         of these, predicted right
    merged          how many windows this one stands for: more than 1 after the outbox was full
    """

    model: str
    release: str
    reference: str
    window_start_s: Seconds
    window_s: Seconds
    rows: Count
    errors: Count = 0
    slow: Count = 0
    latency: list[Count] = []
    inputs: bytes = b""
    outputs: bytes = b""
    labelled: Count = 0
    correct: Count = 0
    merged: Count = 1
    health: Health = Health()


class UpdateEvent(Upward, frozen=True, kw_only=True, tag="update"):
    """One step of an update, as it happened on the device.

    state    of shoal.agent.installed.record.State, by name
    cause    slug of what failed, "" while all is well; what failures are grouped by
    detail   one sentence for a person
    facts    numbers: bytes, seconds, worst golden error, latency against budget ...
    """

    model: str
    release: str
    rollout: str
    attempt: Count
    state: str
    cause: str = ""
    detail: str = ""
    facts: dict[str, Any] = {}


class FaultEvent(Upward, frozen=True, kw_only=True, tag="fault"):
    """Something wrong on the device outside an update: bad input, source gone, disk full, attack.

    severity   "info", "warning" or "critical"
    count      how often since the last such event: faults are collapsed, not streamed
    """

    cause: str
    detail: str
    severity: str = "warning"
    count: Count = 1
    facts: dict[str, Any] = {}


class RoundAnswer(Upward, frozen=True, kw_only=True, tag="round-answer"):
    """What a device says in a federated round. Not in the outbox: a round does not wait.

    attempt   round_id of the try that it belongs to
    """

    attempt: RoundId
    said: messages.DeviceMessage


class Assignment(Message, frozen=True, kw_only=True, tag="assignment"):
    """Desired state of one device. Retained.

    signed   TUF Metadata[Targets] of the director, JSON bytes: the only part that is trusted
    urls     sha256 -> where to fetch it; a wrong one costs a retry, never safety. "OLD>NEW", two
             of them, -> where to fetch what NEW differs by from OLD (shoal.delta)
    peers    device of the same site -> host:port where it shares files; a wrong one costs a try
    generations   of these, device -> how often its name was given away: its certificate is of this
                  enrolment or a later one. Those that never were are not in it
    """

    signed: bytes
    urls: dict[str, str]
    peers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    generations: dict[str, Count] | msgspec.UnsetType = msgspec.UNSET


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """Sequence numbers now durable in the controller's database."""

    boot: str
    seqs: list[Count]


class Time(Message, frozen=True, kw_only=True, tag="time"):
    """What the controller's clock showed when it read a Status that asked for it.

    asked_s   sent_s of that Status
    """

    asked_s: Seconds
    now_s: Seconds


class Command(Message, frozen=True, kw_only=True, tag="command"):
    """Something to do now, or never: what is past `expires_at_s` is dropped.

    verb   "report" (send the inventory again), "log-level", "restart"
    """

    id: str
    verb: str
    expires_at_s: Seconds
    args: dict[str, Any] = {}


class Budget(Message, frozen=True, kw_only=True, tag="budget"):
    """Fleet-wide pace of telemetry. Retained.

    window_s     length of a window
    jitter_s     windows end up to this much later, each device its own
    """

    window_s: Seconds
    jitter_s: Seconds = 0.0


class RoundCall(Message, frozen=True, kw_only=True, tag="round"):
    """What the controller says to one device in a federated round.

    attempt   round_id of the try
    """

    attempt: RoundId
    said: messages.ControllerMessage


class Timestamp(Message, frozen=True, kw_only=True, tag="timestamp"):
    """The newest TUF timestamp.json. Retained: a hint to refresh, verified like any other."""

    signed: bytes


AnyUp = Status | Inventory | WindowReport | UpdateEvent | FaultEvent | RoundAnswer
AnyDown = Assignment | Ack | Time | Command | Budget | Timestamp | RoundCall

#: Kind of topic that each upward message travels on.
UP_KIND: dict[type, str] = {
    Status: "status",
    Inventory: "inventory",
    WindowReport: "window",
    UpdateEvent: "event",
    FaultEvent: "event",
    RoundAnswer: "round",
}
#: Kind of topic that each downward and fleet message travels on.
DOWN_KIND: dict[type, str] = {
    Assignment: "assignment",
    Ack: "ack",
    Time: "time",
    Command: "command",
    Budget: "budget",
    Timestamp: "timestamp",
    RoundCall: "round",
}

_encoder = msgspec.msgpack.Encoder()
_up = msgspec.msgpack.Decoder(AnyUp)
_down = msgspec.msgpack.Decoder(AnyDown)
_T = TypeVar("_T")


def encode(message: Message) -> bytes:
    """MessagePack bytes of any message."""
    return _encoder.encode(message)


def decode_up(kind: str, payload: bytes) -> AnyUp:
    """Read an upward message that came on a topic of `kind`; WireError if it is not one."""
    message = _read(_up, kind, payload)
    if UP_KIND[type(message)] != kind:
        raise WireError(f"a {type(message).__name__} on a topic for {kind}")
    return message


def decode_down(kind: str, payload: bytes) -> AnyDown:
    """Read a downward or fleet message that came on a topic of `kind`; WireError if not one."""
    message = _read(_down, kind, payload)
    if DOWN_KIND[type(message)] != kind:
        raise WireError(f"a {type(message).__name__} on a topic for {kind}")
    return message


def _read(decoder: "msgspec.msgpack.Decoder[_T]", kind: str, payload: bytes) -> _T:
    limit = LIMIT.get(kind)
    if limit is None:
        raise WireError(f"unknown kind of message {kind[:40]!r}")
    if len(payload) > limit:
        raise OversizeError(kind, len(payload), limit)
    hint = "is the peer a newer or a foreign version?"
    with decode_errors_as(lambda cause: WireError(f"{kind}: {cause}", hint)):
        return decoder.decode(payload)
