"""Records of drift findings, accuracy and fleet health."""

from shoal.controller.store.records import Record


class Finding(Record, frozen=True, kw_only=True):
    """One decision that a distribution moved: DESIGN section 8.

    scope      "device" or "site", and `subject` its name
    scale      windows merged: 1, 4 or 16
    log10_p    of the tolerance test against the subject's own baseline; alpha its level
    psi        against training: an effect size, never the alarm
    """

    id: int
    at: float
    kind: str
    scope: str
    subject: str
    model: str
    release: str
    feature: str
    scale: int
    log10_p: float
    log10_alpha: float
    hellinger: float
    psi: float
    rows: int


class Performance(Record, frozen=True, kw_only=True):
    """Accuracy from labels joined on the device, over a span of time."""

    model: str
    scope: str
    subject: str
    release: str
    since: float
    until: float
    rows: int
    labelled: int
    correct: int
    errors: int
    accuracy: float | None
    p50_us: float | None
    p99_us: float | None


class FleetHealth(Record, frozen=True, kw_only=True):
    """The strip on top of the console."""

    devices: int
    online: int
    failing: int
    alerts: int
    rows_per_s: float
    windows_per_min: float
    running_rollouts: int
    releases: dict[str, int]
