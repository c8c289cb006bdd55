"""Records of devices, their events and windows, and the join tokens that enrol them."""

from typing import Any

from shoal.controller.store.records import Record


class JoinToken(Record, frozen=True, kw_only=True):
    """Lets `uses_left` devices of `site` in `rings` enrol until `expires_at`.

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
    """One device as the controller last heard of it.

    state      "enrolled" or "decommissioned"
    releases   model -> "model@version" that serves
    variants   model -> variant that serves
    error      the last thing that went wrong, "" when nothing is
    clock_skew_s  its clock is so far ahead, give or take clock_error_s (-1: it has not told)
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
