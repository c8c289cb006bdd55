"""Records of drift (findings, heatmap, histograms), accuracy and fleet health."""

from shoal.controller.store.records import Record


class Finding(Record, frozen=True, kw_only=True):
    """A feature that began to alarm: docs/drift.md.

    scope      "device" or "site", and `subject` its name
    feature    its name, or "(rows)" for the number of rows
    channel    what of it moved: mean, spread, rank1 to rank3, missing, rare, rows; what: in words
    log10_p    evidence against "nothing changed"; below log10_alpha is an alarm
    moved      how far it moved from the subject's own past: 1 is a shift of one standard deviation,
               or what matters as much
    psi        against training: an effect size, never the alarm
    rows       rows in the window
    """

    id: int
    at: float
    kind: str
    scope: str
    subject: str
    model: str
    release: str
    feature: str
    channel: str
    what: str
    log10_p: float
    log10_alpha: float
    moved: float
    psi: float
    rows: int


class DriftCell(Record, frozen=True, kw_only=True):
    """One cell of the heatmap: the strongest evidence and the furthest move in its time."""

    feature: str
    at: float
    log10_p: float
    moved: float
    alarmed: bool


class DriftMap(Record, frozen=True, kw_only=True):
    """Heatmap, feature x time, of one subject.

    ready     `baseline_windows` of the first `baseline_needed` windows were seen: it may alarm
    covered   hours of the day that were seen, of 24, or 48 where days of rest are apart: in others
              a usual level cannot be told from drift; -1: no daily cycle is forecast
    words     of a model of tensors: features in words, by name
    """

    model: str
    scope: str
    subject: str
    release: str
    ready: bool
    baseline_windows: int
    baseline_needed: int
    covered: int
    features: list[str]
    cells: list[DriftCell]
    words: dict[str, str] = {}


class Histograms(Record, frozen=True, kw_only=True):
    """Training, baseline and current shares per bin of one feature; each sums to 1."""

    model: str
    subject: str
    feature: str
    edges: list[float]
    training: list[float]
    baseline: list[float]
    current: list[float]
    rows: int
    psi: float
    hellinger: float


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


class PerformanceMap(Record, frozen=True, kw_only=True):
    """One measure of every device, site or profile over time: a heatmap, subject x time.

    span_s   length of a bucket: an hour or a day; at: begin of each
    values   a list for each subject, one number a bucket; null where nothing is known
    """

    model: str
    scope: str
    measure: str
    span_s: int
    at: list[int]
    subjects: list[str]
    values: list[list[float | None]]


class FleetHealth(Record, frozen=True, kw_only=True):
    """Counts over the whole fleet, as in the console's top strip."""

    devices: int
    online: int
    failing: int
    alerts: int
    rows_per_s: float
    windows_per_min: float
    running_rollouts: int
    releases: dict[str, int]
