"""What the console shows of drift: a heatmap, and histograms; words as in records.py."""

from shoal.controller.store.records import Record


class DriftCell(Record, frozen=True, kw_only=True):
    """One square of the heatmap: worst log10 p over the bucket, alarmed or not."""

    feature: str
    at: float
    log10_p: float
    psi: float
    alarmed: bool


class DriftMap(Record, frozen=True, kw_only=True):
    """Feature x time for one subject. ready: the baseline is complete, `baseline_windows` of
    `baseline_needed` were seen."""

    model: str
    scope: str
    subject: str
    release: str
    ready: bool
    baseline_windows: int
    baseline_needed: int
    features: list[str]
    cells: list[DriftCell]


class Histograms(Record, frozen=True, kw_only=True):
    """Training, baseline and current shares per bin of one feature; they each sum to 1."""

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
