"""Preprocessing by a declared pipeline: the same functions on the controller and on a device.

>>> line = Pipeline(inputs=[Input(name="t", source="TT-101", given="°F", unit="°C", low=-40)])
>>> reading = np.array([[212.0]])
>>> Preparation(line, ["t"]).rows(0.0, ("TT-101",), reading).values.tolist()
[[100.0]]
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.errors import InputError
from shoal.pipeline import Input, Pipeline, Stretch
from shoal.units import conversion

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class Conversion:
    """Stateless steps: unit, range, fill; then scale and offset. Arrays (..., inputs)."""

    def __init__(self, pipeline: Pipeline, features: Sequence[str]) -> None:
        inputs = pipeline.inputs or [
            Input(name=name, scale=pipeline.scale, offset=pipeline.offset) for name in features
        ]
        self.names = tuple(i.source or i.name for i in inputs)
        self.keeps = np.array([(i.missing or pipeline.missing) == "last" for i in inputs])
        units = [conversion(i.given, i.unit) for i in inputs]
        self._gain, self._bias = _column([u[0] for u in units]), _column([u[1] for u in units])
        self._low = _column([-math.inf if i.low is None else i.low for i in inputs])
        self._high = _column([math.inf if i.high is None else i.high for i in inputs])
        self._clips = np.array([i.outside == "clip" for i in inputs])
        self._voids = np.array([i.outside == "missing" for i in inputs])
        filled = [(i.missing or pipeline.missing) in ("mean", "constant") for i in inputs]
        fills = [i.fill if f else None for i, f in zip(inputs, filled, strict=True)]
        self._fill = _column([math.nan if f is None else f for f in fills])
        self._scale = _column([i.scale for i in inputs])
        self._offset = _column([i.offset for i in inputs])
        self.plain = not pipeline.inputs and (pipeline.scale, pipeline.offset) == (1.0, 0.0)
        self._samples = pipeline.stretch.samples if pipeline.stretch else 1

    def in_model_units(self, rows: npt.NDArray) -> F64:
        """Values in the model's units, NaN where missing: float64, the shape of `rows`."""
        values = np.asarray(rows, np.float64)
        if self.plain:
            return np.where(np.isfinite(values), values, np.nan)
        with np.errstate(invalid="ignore", over="ignore"):
            values = values * self._gain + self._bias
        values = np.where(np.isfinite(values), values, np.nan)
        values = np.where(self._clips, np.clip(values, self._low, self._high), values)
        outside = self._voids & ((values < self._low) | (values > self._high))
        values = np.where(outside, np.nan, values)
        return np.where(np.isnan(values), self._fill, values)

    def scaled(self, values: F64) -> F32:
        """Scaled values, as the model reads them: float32."""
        with np.errstate(over="ignore"):
            return (values if self.plain else values * self._scale + self._offset).astype(
                np.float32
            )

    def table(self, rows: npt.NDArray) -> F32:
        """Rows of a table (n, F), in the source's units, as the model reads them: float32 (n, F).

        With a stretch, a row of the table is one whole window, oldest sample first. A missing value
        without a fill stays NaN: "last" does not apply to tables.
        """
        n, wide = np.shape(rows)
        values = self.in_model_units(np.reshape(rows, (n, self._samples, wide // self._samples)))
        return self.scaled(values).reshape(n, wide)


def _column(values: list[float]) -> F64:
    return np.array(values, np.float64)


def convert(pipeline: Pipeline, features: Sequence[str], rows: npt.NDArray) -> F32:
    """Convert a table (n, F) to the model's inputs, float32 (n, F)."""
    return Conversion(pipeline, features).table(rows)


class PreparedRows(NamedTuple):
    """Rows for the model, float32 (m, F), and the frame's row of each."""

    values: F32
    source_rows: list[int]


class Preparation:
    """Stateful preprocessing of the frames of one asset.

    features   of the manifest, in order
    """

    def __init__(self, pipeline: Pipeline, features: Sequence[str]) -> None:
        self._pipeline = pipeline
        self._convert = Conversion(pipeline, features)
        inputs = len(self._convert.names)
        self._last, self._last_at = np.full(inputs, np.nan), np.full(inputs, -np.inf)
        stretch = pipeline.stretch
        self._ring = np.empty((stretch.samples if stretch else 0, inputs))
        self._filled = self._since = 0
        self._slot: int | None = None
        self._asked: tuple[tuple[str, ...], Any] = ((), None)

    def rows(self, time_s: float, names: tuple[str, ...], rows: npt.NDArray) -> PreparedRows:
        """Prepare rows (n, len(names)) for the model.

        names   of the columns; () for the model's columns in the model's order
        time_s  by the source's clock

        A missing value without a fill is NaN: the model then refuses the row. Raises InputError
        when it interrupts a stretch, which then restarts.
        """
        values = self._convert.in_model_units(self._picked(names, rows))
        if self._pipeline.stretch is not None:
            return self._stretches(self._pipeline.stretch, time_s, values)
        if self._convert.keeps.any():
            values = self._kept(time_s, values)
        return PreparedRows(self._convert.scaled(values), list(range(len(values))))

    def _picked(self, names: tuple[str, ...], rows: npt.NDArray) -> npt.NDArray:
        """The model's columns, in order; NaN for columns that the frame lacks."""
        wanted = self._convert.names
        if names in ((), wanted):
            self._check_width(rows)
            return rows
        if self._asked[0] != names:
            place = {name: i for i, name in enumerate(names)}
            self._asked = (names, np.array([place.get(name, len(names)) for name in wanted]))
        wide = np.concatenate([rows, np.full((len(rows), 1), np.nan, rows.dtype)], axis=1)
        found: npt.NDArray = wide[:, self._asked[1]]
        return found

    def _check_width(self, rows: npt.NDArray) -> None:
        inputs = len(self._convert.names)
        if rows.ndim != 2 or rows.shape[1] != inputs:
            raise InputError(
                f"frame of shape {list(rows.shape)}, [rows, {inputs}] is needed",
                f"the pipeline's inputs are: {', '.join(self._convert.names[:20])}",
            )

    def _kept(self, time_s: float, values: F64) -> F64:
        """Repeat the last value of inputs with missing = "last", unless it is stale."""
        keeps, made = self._convert.keeps, values.copy()
        for row in made:
            known = np.isfinite(row)
            self._last[known], self._last_at[known] = row[known], time_s
            fresh = time_s - self._last_at <= self._pipeline.stale_s
            repeat = ~known & keeps & fresh
            row[repeat] = self._last[repeat]
        return made

    def _stretches(self, stretch: Stretch, time_s: float, values: F64) -> PreparedRows:
        """Windows that these samples complete, (m, samples · inputs)."""
        made, stands = [np.empty((0, self._ring.size), np.float32)], list[int]()
        for row, sample in enumerate(values):
            for one in self._in_time(stretch, time_s, sample):
                self._take(stretch, one)
            if self._filled >= stretch.samples and self._since >= stretch.every:
                self._since = 0
                made.append(self._convert.scaled(self._ring).reshape(1, -1))
                stands.append(row)
        return PreparedRows(np.concatenate(made), stands)

    def _take(self, stretch: Stretch, sample: F64) -> None:
        if not np.isfinite(sample).all():
            self._filled = self._since = 0
            missing = self._convert.names[int(np.argwhere(~np.isfinite(sample))[0][0])]
            raise InputError(
                f"{missing!r} is missing: the stretch of {stretch.samples} samples restarts",
                "let the pipeline fill it, or correct the source",
            )
        self._ring[:-1] = self._ring[1:]
        self._ring[-1] = sample
        self._filled, self._since = self._filled + 1, self._since + 1

    def _in_time(self, stretch: Stretch, time_s: float, sample: F64) -> list[F64]:
        """Samples of this reading and of skipped periods; none when its period has one already."""
        gap = 0
        if stretch.rate_hz:
            slot, before = math.floor(time_s * stretch.rate_hz + 1e-6), self._slot
            if before is not None and slot <= before:
                return []
            gap = min(slot - before - 1, stretch.samples) if before is not None else 0
            self._slot = slot
        skipped = [self._missing_sample(time_s) for _ in range(gap)]
        return [*skipped, self._kept(time_s, sample[None])[0]]

    def _missing_sample(self, time_s: float) -> F64:
        """A sample in which every value is missing."""
        nothing = self._convert.in_model_units(np.full((1, len(self._last)), np.nan))
        return self._kept(time_s, nothing)[0]
