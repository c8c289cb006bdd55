"""Messages between agent and controller: DESIGN section 4.

Every message is a frozen msgspec struct, MessagePack on the wire, tagged by ``type``. Fields may be
added with a default (old peers ignore unknown ones); a field is never removed, renamed or retyped
within ``v1``. tests/golden holds the bytes of every version.

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
    """Base of all messages."""


class Upward(Message, frozen=True, kw_only=True):
    """Base of messages from a device; (device, boot, seq) identifies one.

    device   name in the certificate's CN; the same as in the topic
    boot     random id of the outbox: a lost outbox gets a new one, with seq from 1
    seq      1, 2, 3, ... within a boot; 0 for messages outside of the outbox (Status)
    sent_s   creation time by the device's clock
    """

    device: str
    boot: str
    seq: Count
    sent_s: Seconds


class Status(Upward, frozen=True, kw_only=True, tag="status"):
    """Online or offline; the broker publishes the last will for a lost connection.

    since_s  start of this state
    asks_time  requests the controller's Time; unknown to older peers
    session  new for every connection: a late will of an old session is ignored. PROCESS-N-RANDOM,
             where N counts the earlier connections of this process (hex, decimal, hex)
    """

    online: bool
    since_s: Seconds
    session: str
    asks_time: bool | msgspec.UnsetType = msgspec.UNSET


class Skew(msgspec.Struct, frozen=True, kw_only=True):
    """How far a device's clock is ahead of the controller's (behind: negative).

    error_s  uncertainty of `skew_s`, seconds
    """

    skew_s: Difference
    error_s: Seconds


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device.

    release    "model@version"
    variant    serving file, e.g. "int8-u8s8-pc"
    sha256     of the serving model file, hex
    slot       "a" or "b"
    role       "release" or "candidate"
    timings_us variant -> p50 of its timed runs, where several were timed
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
    """State of a device. Retained, and sent again after every change.

    facts   arch, cpu, flags, ram_mb, python, ort, os ..., matched by profiles; and, once known,
            clock_skew_s and clock_error_s, as in Skew
    floors  minimum values that the device accepts: assignment version, release counter per model,
            time
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
    """Health of the machine over one window; -1 where unknown.

    clock_synced  False when the clock is known to be wrong: behind signed times, or skewed
    clock         skew at the end of the window, where known
    memory_free_mb  memory that may still be used: of the machine, or of the service where it is
                  limited, whichever is less
    outbox        messages that waited to be acknowledged when the window ended
    """

    rss_mb: float = -1
    cpu_pct: float = -1
    temp_c: float = -1
    disk_free_mb: float = -1
    throttled: bool = False
    clock_synced: bool = True
    clock: Skew | msgspec.UnsetType = msgspec.UNSET
    memory_free_mb: float | msgspec.UnsetType = msgspec.UNSET
    outbox: Count | msgspec.UnsetType = msgspec.UNSET


class WindowReport(Upward, frozen=True, kw_only=True, tag="window"):
    """Telemetry of one model on one device in one window of time.

    release         "model@version" that served; a swap closes the window
    reference       id of the reference of the sketches
    window_start_s  of the first row
    window_s        length in seconds
    rows            input rows
    errors          failed requests, by the model's or the caller's fault
    slow            requests over the profile's p99 budget
    latency         counts of shoal.sketch.Latency, trailing zeros cut
    inputs, outputs shoal.sketch.Sketch bytes; empty when rows is 0, and for a model of tensors
    labelled        rows with a known label
    correct         correctly predicted rows of these
    merged          windows merged into this one: more than 1 after the outbox was full
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
    """One state change of an update on a device.

    state    of shoal.agent.installed.record.State, by name
    cause    slug of the failure, by which failures are grouped; "" without one
    detail   one sentence for people
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
    """Fault on a device outside of an update: bad input, source lost, disk full, attack.

    severity   "info", "warning" or "critical"
    count      occurrences since the last such event: faults are aggregated
    facts      "ended": the detail of an earlier fault of this cause, which is over; severity "info"
    """

    cause: str
    detail: str
    severity: str = "warning"
    count: Count = 1
    facts: dict[str, Any] = {}


class RoundAnswer(Upward, frozen=True, kw_only=True, tag="round-answer"):
    """Message of a device in a federated round. Not in the outbox: a round has deadlines.

    attempt   id of the round's attempt
    """

    attempt: RoundId
    said: messages.DeviceMessage


class Assignment(Message, frozen=True, kw_only=True, tag="assignment"):
    """Desired state of one device. Retained.

    signed   TUF Metadata[Targets] of the director, JSON bytes: the only trusted part
    urls     sha256 -> URL; a wrong one costs a retry, never safety. "OLD>NEW" (hashes) -> URL of
             the delta from OLD to NEW (shoal.delta)
    peers    device of the same site -> host:port of its file sharing; a wrong one costs a retry
    generations   peer -> enrolments of its name so far, for names enrolled more than once: its
                  certificate is of this enrolment or a later one
    """

    signed: bytes
    urls: dict[str, str]
    peers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    generations: dict[str, Count] | msgspec.UnsetType = msgspec.UNSET


class Ack(Message, frozen=True, kw_only=True, tag="ack"):
    """Sequence numbers that are durable in the controller's database."""

    boot: str
    seqs: list[Count]


class Time(Message, frozen=True, kw_only=True, tag="time"):
    """Controller time, in reply to a Status with `asks_time`.

    asked_s   sent_s of that Status
    """

    asked_s: Seconds
    now_s: Seconds


class Command(Message, frozen=True, kw_only=True, tag="command"):
    """Command to a device; dropped after `expires_at_s`.

    verb   "report" (send the inventory again), "log-level", "restart"
    """

    id: str
    verb: str
    expires_at_s: Seconds
    args: dict[str, Any] = {}


class Budget(Message, frozen=True, kw_only=True, tag="budget"):
    """Fleet-wide telemetry settings. Retained.

    window_s     length of a window
    jitter_s     largest random delay of a window's end, per device
    """

    window_s: Seconds
    jitter_s: Seconds = 0.0


class RoundCall(Message, frozen=True, kw_only=True, tag="round"):
    """Message of the controller to a device in a federated round.

    attempt   id of the round's attempt
    """

    attempt: RoundId
    said: messages.ControllerMessage


class Timestamp(Message, frozen=True, kw_only=True, tag="timestamp"):
    """The newest TUF timestamp.json. Retained: a hint to refresh, verified as usual."""

    signed: bytes


AnyUp = Status | Inventory | WindowReport | UpdateEvent | FaultEvent | RoundAnswer
AnyDown = Assignment | Ack | Time | Command | Budget | Timestamp | RoundCall

#: Topic kind of each upward message.
UP_KIND: dict[type, str] = {
    Status: "status",
    Inventory: "inventory",
    WindowReport: "window",
    UpdateEvent: "event",
    FaultEvent: "event",
    RoundAnswer: "round",
}
#: Topic kind of each downward and fleet message.
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
    """Decode an upward message from a topic of `kind`; WireError if invalid."""
    message = _read(_up, kind, payload)
    if UP_KIND[type(message)] != kind:
        raise WireError(f"a {type(message).__name__} on a topic for {kind}")
    return message


def decode_down(kind: str, payload: bytes) -> AnyDown:
    """Decode a downward or fleet message from a topic of `kind`; WireError if invalid."""
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
