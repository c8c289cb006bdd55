"""Records of drift (findings, heatmap, histograms), accuracy and fleet health."""

from shoal.controller.fleet.shared_facts import SharedFact
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


class Baseline(Record, frozen=True, kw_only=True):
    """What is usual for a device or a site with a release, as it is listed.

    site       of the device, or the site itself
    state      learning: its first windows, nothing alarms; watching
    drifting   names of the features in alarm
    began_at   its first window, or when it was last reset
    frozen_at  when it was frozen: it learns nothing more; 0 if it is not
    change     the last that a person made, by whom and when; "" for none
    windows    seen, of the `needed` first ones without an alarm
    covered    hours of the day that were seen; -1: no daily cycle is forecast
    """

    scope: str
    subject: str
    model: str
    release: str
    site: str
    state: str
    drifting: list[str]
    began_at: float
    frozen_at: float
    change: str
    changed_by: str
    changed_at: float
    windows: int
    needed: int
    covered: int


class UsualFeature(Record, frozen=True, kw_only=True):
    """What is usual for one feature; null where nothing is known, as for a site.

    mean, sd   of its rows; swing: how far the mean moves up and down over a day
    missing    share of rows without a value; rare: with values that were never seen at first
    """

    feature: str
    alarmed: bool
    mean: float | None
    sd: float | None
    swing: float | None
    missing: float | None
    rare: float | None


class BaselineDetail(Record, frozen=True, kw_only=True):
    """A baseline and what is usual for each of its features.

    saved_at   when the engine wrote what it knew: at most 15 windows ago
    rows       a window, as usual; null for a site, or while it is not known
    findings   of the subject with this release, newest first, 20 at most
    """

    baseline: Baseline
    saved_at: float
    rows: float | None
    features: list[UsualFeature]
    findings: list[Finding]


class DriftExplanation(Record, frozen=True, kw_only=True):
    """What the devices of a model that drift share, and the others lack.

    feature    "" for alarms of any
    devices    of which it is decided: their baseline is learnt; drifting: those in alarm
    sentence   "" where none is in alarm
    facts      that explain it, corrected for the search, the surest first; none: nothing does
    """

    model: str
    feature: str
    devices: int
    drifting: int
    sentence: str
    facts: list[SharedFact]


class BaselineChange(Record, frozen=True, kw_only=True):
    """What a person asked for; the engine applies it within seconds.

    action     reset, accept, freeze, unfreeze
    device     one device; site: a site and its devices; both empty: the whole model
    features   that are accepted; empty: those in alarm
    baselines  that were selected when it was asked for; changed and skipped: until now
    done_at    0 while it is being applied
    """

    id: int
    action: str
    model: str
    release: str
    device: str
    site: str
    features: list[str]
    asked_by: str
    asked_at: float
    baselines: int
    changed: int
    skipped: int
    why_skipped: str
    done_at: float


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
