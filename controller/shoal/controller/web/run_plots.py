"""Geometry of the plots of runs: numbers in, SVG paths out, in a box of 1000 by 100."""

from collections.abc import Sequence
from typing import NamedTuple

from shoal.controller.runs.records import Run

#: Parameters that get an axis, lines with a colour of their own, and points of a curve, at most.
_AXES, COLOURS, _POINTS = 6, 3, 200


class Line(NamedTuple):
    """A run's line: its label, and SVG path data."""

    label: str
    path: str


class Axis(NamedTuple):
    """An axis at `x` percent of the width; low and high: its ends, below and above."""

    name: str
    x: float
    low: float
    high: float


class Parallel(NamedTuple):
    """Parallel coordinates: a line for each run over parameters that differ, and a metric."""

    axes: list[Axis]
    lines: list[Line]


class Curves(NamedTuple):
    """A metric over the passes of a training, for several runs."""

    name: str
    low: float
    high: float
    passes: int
    lines: list[Line]


def parallel(runs: Sequence[Run], metric: str = "") -> Parallel | None:
    """Parallel coordinates of the runs that have `metric`, "" for what they are judged by.

    None where less than two have it, or no number among their parameters differs.
    """
    metric = metric or next((run.main for run in runs if run.main), "")
    shown = [run for run in runs if metric in run.metrics]
    values = {name: [run.params[name] for run in shown] for name in _numbers(shown)}
    differing = [name for name, given in values.items() if len(set(given)) > 1][:_AXES]
    if len(shown) < 2 or not differing:
        return None
    columns: dict[str, list[float]] = {n: [float(v) for v in values[n]] for n in differing}
    columns[metric] = [run.metrics[metric] for run in shown]
    step = 100 / (len(columns) - 1)
    axes = [Axis(n, i * step, min(v), max(v)) for i, (n, v) in enumerate(columns.items())]
    heights = [[_height(v, axis.low, axis.high) for v in columns[axis.name]] for axis in axes]
    return Parallel(
        axes,
        [
            Line(run.id, _path([(10 * a.x, heights[i][row]) for i, a in enumerate(axes)]))
            for row, run in enumerate(shown)
        ],
    )


def curves(runs: Sequence[Run]) -> list[Curves]:
    """Learning curves, one plot for each metric that a run has a curve of."""
    names = dict.fromkeys(name for run in runs for name in run.curves)
    return [_curves(name, [run for run in runs if run.curves.get(name)]) for name in names]


def _curves(name: str, runs: Sequence[Run]) -> Curves:
    points = [value for run in runs for value in run.curves[name]]
    low, high = min(points, default=0.0), max(points, default=0.0)
    most = max((len(run.curves[name]) for run in runs), default=1)
    lines = []
    for run in runs:
        values = run.curves[name]
        every = max(1, len(values) // _POINTS)
        placed = [
            (1000 * i / max(1, most - 1), _height(values[i], low, high))
            for i in range(0, len(values), every)
        ]
        lines.append(Line(run.id, _path(placed)))
    return Curves(name, low, high, most, lines)


def _numbers(runs: Sequence[Run]) -> list[str]:
    """Parameters that are a number in all of the runs."""
    known = [{n for n, v in run.params.items() if not isinstance(v, str)} for run in runs]
    return sorted(set.intersection(*known)) if known else []


def _height(value: float, low: float, high: float) -> float:
    """Distance from the top in percent."""
    return 50.0 if high == low else 100 - 100 * (value - low) / (high - low)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """
    >>> _path([(0, 100), (1000, 2.5)])
    'M0.0 100.0L1000.0 2.5'
    """
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
