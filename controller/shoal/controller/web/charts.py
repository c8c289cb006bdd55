"""Geometry of charts rendered on the server: numbers in, numbers out, no markup."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from shoal.controller.fleet.records import Window
from shoal.controller.monitoring.records import DriftMap, Histograms
from shoal.controller.releases.records import Release
from shoal.controller.rollouts.records import Stage


class Part(NamedTuple):
    """One segment of a stacked bar, in percent of its width."""

    name: str
    devices: int
    x: float
    width: float
    tone: str


def parts(counts: Sequence[tuple[str, int, str]]) -> list[Part]:
    """Segments of a stacked bar from (name, count, tone); empty ones are omitted.

    >>> [p.width for p in parts([("a", 1, "ok"), ("b", 0, "bad"), ("c", 3, "idle")])]
    [25.0, 75.0]
    """
    total = sum(n for _, n, _ in counts) or 1
    ends = [0, *accumulate(n for _, n, _ in counts)]
    return [
        Part(name, n, 100 * start / total, 100 * n / total, tone)
        for (name, n, tone), start in zip(counts, ends, strict=False)
        if n
    ]


def stage_parts(stage: Stage) -> list[Part]:
    """Segments of a stage's devices by outcome."""
    ended = stage.succeeded + stage.failed + stage.skipped
    left = max(0, stage.devices - ended - stage.unseen)
    started = stage.state != "SCHEDULED"
    return parts(
        [
            ("succeeded", stage.succeeded, "ok"),
            ("failed", stage.failed, "bad"),
            ("skipped", stage.skipped, "skip"),
            ("in progress", left if started else 0, "info"),
            ("not started", 0 if started else left, "idle"),
            ("never seen", stage.unseen, "idle"),
        ]
    )


class Outline(NamedTuple):
    """SVG paths of a histogram: a filled one and two stepped lines."""

    width: float
    height: float
    top: float
    training: str
    baseline: str
    current: str
    ticks: list[tuple[float, str]]
    levels: list[tuple[float, str]]


LEFT, FOOT, HEAD = 44.0, 26.0, 8.0


def outline(h: Histograms, width: float = 460.0, height: float = 190.0) -> Outline:
    """Outline of a histogram. Bins are drawn equally wide, since they hold equal shares of the
    training data; their edges are the ticks."""
    bins = max(1, len(h.current))
    top = max([0.01, *h.training, *h.baseline, *h.current]) * 1.06
    step = (width - LEFT) / bins
    floor = height - FOOT

    def y(share: float) -> float:
        return round(floor - (floor - HEAD) * share / top, 1)

    def x(i: float) -> float:
        return round(LEFT + i * step, 1)

    def line(shares: Sequence[float]) -> str:
        corners = [f"{x(i)},{y(s)} {x(i + 1)},{y(s)}" for i, s in enumerate(shares)]
        return f"M{x(0)},{floor} L" + " ".join(corners) if corners else ""

    bars = "".join(
        f"M{x(i) + 0.6:.1f},{floor} V{y(s)} H{x(i + 1) - 0.6:.1f} V{floor} Z"
        for i, s in enumerate(h.training)
    )
    every = max(1, -(-len(h.edges) // 7))
    ticks = [(x(i + 1), f"{e:.4g}") for i, e in enumerate(h.edges) if i % every == 0]
    levels = [(y(top * f), f"{100 * top * f:.0f} %") for f in (0.25, 0.5, 0.75, 1.0)]
    return Outline(width, height, floor, bars, line(h.baseline), line(h.current), ticks, levels)


def bin_names(h: Histograms) -> list[str]:
    """Label of each bin; the last one, beyond the edges, counts missing values."""
    if not h.edges:
        return [f"bin {i + 1}" for i in range(len(h.current))]
    inner = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(h.edges)]
    names = [f"below {h.edges[0]:.4g}", *inner, f"{h.edges[-1]:.4g} and above", "missing"]
    return names[: len(h.current)]


def grid(drift: DriftMap) -> dict[str, list]:
    """Heatmap cells as rows of columns, None where there is no data."""
    times = sorted({cell.at for cell in drift.cells})
    column = {at: i for i, at in enumerate(times)}
    row = {name: i for i, name in enumerate(drift.features)}
    shape: dict[str, list] = {
        key: [[None] * len(times) for _ in drift.features]
        for key in ("log10_p", "moved", "alarmed")
    }
    for cell in drift.cells:
        if cell.feature in row:
            r, c = row[cell.feature], column[cell.at]
            shape["log10_p"][r][c] = round(max(-999.0, cell.log10_p), 1)
            shape["moved"][r][c] = round(cell.moved, 2)
            shape["alarmed"][r][c] = int(cell.alarmed)
    return {"features": list(drift.features), "times": times, **shape}


class FeatureRow(NamedTuple):
    """One feature of a heatmap as a table row: its latest cell, and its number of alarms."""

    name: str
    log10_p: float
    moved: float
    alarms: int
    first_alarm_at: float
    now: bool


def feature_rows(drift: DriftMap) -> list[FeatureRow]:
    """Features of the map: drifting ones first, then by number of alarms and evidence."""
    by_name: dict[str, list] = {name: [] for name in drift.features}
    for cell in sorted(drift.cells, key=lambda cell: cell.at):
        by_name.setdefault(cell.feature, []).append(cell)
    lines = []
    for name, cells in by_name.items():
        alarmed = [cell for cell in cells if cell.alarmed]
        last = cells[-1] if cells else None
        lines.append(
            FeatureRow(
                name,
                last.log10_p if last else 0.0,
                last.moved if last else 0.0,
                len(alarmed),
                alarmed[0].at if alarmed else 0.0,
                bool(last and last.alarmed),
            )
        )
    return sorted(lines, key=lambda line: (not line.now, -line.alarms, line.log10_p))


class Point(NamedTuple):
    """One window as a point of the device's charts; None where it has no value."""

    at: float
    release: str
    rows_per_s: float
    p50_us: float | None
    p99_us: float | None
    accuracy: float | None


def points(windows: Sequence[Window]) -> list[Point]:
    """Chart points of windows, oldest first."""
    return [
        Point(
            w.start_at,
            w.release,
            w.rows / w.window_s / max(1, w.merged) if w.window_s else 0.0,
            w.p50_us or None,
            w.p99_us or None,
            w.correct / w.labelled if w.labelled else None,
        )
        for w in sorted(windows, key=lambda w: w.start_at)
    ]


def site_metric(release: Release) -> str:
    """Metric for comparing sites: each class has equal weight, however rare it is."""
    return "balanced_accuracy" if release.task == "classification" else "r2"


def main_metric(release: Release) -> str:
    """The main metric of a release."""
    for name in ("accuracy", "balanced_accuracy", "r2", "mae", "rmse"):
        if name in release.metrics:
            return name
    return next(iter(release.metrics), "metric")


def metric(metrics: dict[str, float], name: str) -> str:
    """A metric with four digits; a dash when it was not measured."""
    return f"{metrics[name]:.4f}" if name in metrics else "–"


def difference(metrics: dict[str, float], other: dict[str, float], name: str) -> str:
    """Signed difference of a metric from another release's.

    >>> difference({"accuracy": 0.91}, {"accuracy": 0.92}, "accuracy")
    '−0.0100'
    """
    if name not in metrics or name not in other:
        return "–"
    gap = metrics[name] - other[name]
    return "same" if abs(gap) < 5e-5 else f"{gap:+.4f}".replace("-", "−")
