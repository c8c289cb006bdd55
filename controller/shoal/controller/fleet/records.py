"""Records of devices, their events, windows and ledgers, and of join tokens."""

from typing import Any

from shoal.controller.store.records import Record


class JoinToken(Record, frozen=True, kw_only=True):
    """Allows `uses_left` devices of `site` in `rings` to enrol until `expires_at`.

    secret   the whole token, shown once: "sj1.<id>.<secret>.<sha256 of the CA>"
    """

    id: str
    site: str
    rings: list[str]
    uses_left: int
    created_at: float
    expires_at: float
    secret: str = ""


class Device(Record, frozen=True, kw_only=True):
    """One device, from its last messages.

    state      "enrolled" or "decommissioned"
    releases   model -> "model@version" that is served
    variants   model -> variant that is served
    error      the last error, "" when there is none
    clock_skew_s  seconds its clock is ahead, give or take clock_error_s (-1: not reported)
    """

    name: str
    site: str
    line: str
    labels: dict[str, str]
    ring: str
    profile: str
    state: str
    online: bool
    enrolled_at: float
    seen_at: float
    certificate_expires_at: float
    agent: str = ""
    endpoint: str = ""
    releases: dict[str, str] = {}
    variants: dict[str, str] = {}
    facts: dict[str, Any] = {}
    error: str = ""
    error_at: float = 0.0
    clock_skew_s: float = 0.0
    clock_error_s: float = -1.0


class DeviceEvent(Record, frozen=True, kw_only=True):
    """One line of a device's timeline: an update step or a fault.

    kind   "update", "fault", or "device" for its enrolment and decommissioning
    """

    device: str
    at: float
    kind: str
    state: str
    cause: str
    detail: str
    model: str = ""
    release: str = ""
    rollout: str = ""
    attempt: int = 0
    facts: dict[str, Any] = {}


class Window(Record, frozen=True, kw_only=True):
    """One window of one model on one device, without its sketches."""

    device: str
    model: str
    release: str
    start_at: float
    window_s: float
    rows: int
    errors: int
    slow: int
    p50_us: float
    p99_us: float
    labelled: int
    correct: int
    merged: int


class Ledger(Record, frozen=True, kw_only=True):
    """What arrived of one device's outbox in one boot: missing is 0 when nothing is on its way.

    received   distinct sequence numbers that have arrived; highest the largest of them
    missing    numbers between them, and below them where nothing has passed its retention yet
    jumps      gaps wider than any outbox can leave: not missing messages, but a fault of the
               device or a forgery
    """

    device: str
    boot: str
    received: int
    highest: int
    missing: int
    windows: int
    rows: int
    first_at: float
    last_at: float
    jumps: int = 0
