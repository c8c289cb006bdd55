"""From what a plant measures to what a model reads: declared, never code, signed with the model.

A pipeline is part of the signed manifest. For each input of the model it says the name and unit
in which the plant has it, the range in which it can be true, what to do when it is missing, and
how it is scaled; for a model that reads a stretch of time, how many samples at which rate. The
controller and the device compute it with the very same functions.

    >>> line = Pipeline(inputs=[Input(name="t", source="TT-101", given="°F", unit="°C", low=-40)])
    >>> reading = np.array([[212.0]])
    >>> Preparation(line, ["t"]).rows(0.0, ("TT-101",), reading).values.tolist()
    [[100.0]]

The order for one value: unit, range, missing, scale and offset.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError, SettingError
from shoal.units import conversion

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: What a value that is missing becomes: nothing, so that the row is refused; the last one that was
#: there; the mean or the constant in `fill`.
Missing = Literal["refuse", "last", "mean", "constant"]
#: What a value outside of its range becomes.
Outside = Literal["keep", "missing", "clip"]
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
MAX_INPUTS, MAX_SAMPLES = 262_144, 65_536


class Input(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input of the model.

    name           as in the manifest's features
    source         its name in the plant's frames; "" for the same
    given, unit    unit in the frames, and that of low, high and fill; shoal.units knows them
    low, high      range in which a value can be true, in `unit`; None for no bound
    outside        what a value outside of it becomes: "keep", "missing" or "clip"
    missing        "refuse", "last", "mean" or "constant"; None for the pipeline's
    fill           the mean or constant, in `unit`
    scale, offset  the model reads value · scale + offset
    """

    name: str
    source: str = ""
    given: str = ""
    unit: str = ""
    low: Finite | None = None
    high: Finite | None = None
    outside: Outside = "keep"
    missing: Missing | None = None
    fill: Finite | None = None
    scale: Finite = 1.0
    offset: Finite = 0.0


class Stretch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last samples, for a model that reads a stretch of time, such as a 1-D CNN.

    samples  how many; the model reads them oldest first, each with every input: (samples · inputs)
    rate_hz  of the samples: of several readings in one period the first counts, and a period
             without one is a missing value; 0 for every reading as it comes
    every    samples from one answer to the next
    """

    samples: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)]
    rate_hz: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    every: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)] = 1


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model's rows are made. Without inputs: the manifest's features, as they come.

    missing        for every input that does not say otherwise
    scale, offset  without inputs, for every value: 0.00392156862745098 for pixels from 0 to 255
    stale_s        oldest value that "last" may repeat, in seconds of the source's clock
    stretch        None for a model that reads one moment
    """

    inputs: Annotated[list[Input], msgspec.Meta(max_length=MAX_INPUTS)] = []
    missing: Missing = "refuse"
    scale: Finite = 1.0
    offset: Finite = 0.0
    stale_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 60.0
    stretch: Stretch | None = None


IDENTITY = Pipeline()


def parse(data: bytes) -> Pipeline:
    """Read a pipeline's JSON; SettingError names the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=Pipeline)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"pipeline: {error}", "see docs/sources-and-sinks.md") from error


def check(pipeline: Pipeline, features: Sequence[str]) -> None:
    """Raise SettingError unless `pipeline` makes the rows of these features."""
    names = [i.name for i in pipeline.inputs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingError(f"pipeline: input {twice!r} is there twice", "name each once")
    stretch = pipeline.stretch
    if stretch is None and names and names != list(features):
        raise SettingError(
            f"pipeline: its inputs are {', '.join(names[:9])}; the model's are "
            f"{', '.join(features[:9])}",
            "name the same, in the same order",
        )
    if stretch and (not names or stretch.samples * len(names) != len(features)):
        raise SettingError(
            f"pipeline: {stretch.samples} samples of {len(names)} inputs do not make the model's "
            f"{len(features)} values",
            "samples × inputs is what the model reads",
        )
    for one in pipeline.inputs:
        _check_input(one, one.missing or pipeline.missing)
    if pipeline.scale == 0 or (names and (pipeline.scale, pipeline.offset) != (1.0, 0.0)):
        raise SettingError(
            "pipeline: scale is 0, or of the whole beside inputs", "scale each of its inputs"
        )
    if not names and pipeline.missing in ("mean", "constant"):
        raise SettingError(f"pipeline: missing = {pipeline.missing!r} needs inputs with a fill")


def _check_input(one: Input, missing: Missing) -> None:
    conversion(one.given, one.unit)
    low = -math.inf if one.low is None else one.low
    high = math.inf if one.high is None else one.high
    if low > high:
        raise SettingError(f"pipeline: input {one.name!r} has low {low:g} above high {high:g}")
    if missing in ("mean", "constant") and one.fill is None:
        raise SettingError(
            f"pipeline: input {one.name!r} is filled with a {missing} and has no fill",
            "say which value",
        )
    if one.scale == 0:
        raise SettingError(f"pipeline: input {one.name!r} has scale 0", "every value would be one")


class Conversion:
    """The part without memory: unit, range, fill; then scale and offset. Arrays (..., inputs)."""

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

    def understood(self, rows: npt.NDArray) -> F64:
        """Values in the model's units, NaN where there is none: float64, the shape of `rows`."""
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
        """What the model reads: float32."""
        with np.errstate(over="ignore"):
            return (values if self.plain else values * self._scale + self._offset).astype(
                np.float32
            )


def _column(values: list[float]) -> F64:
    return np.array(values, np.float64)


def convert(pipeline: Pipeline, features: Sequence[str], rows: npt.NDArray) -> F32:
    """Rows of a table (n, F), in the plant's units, as the model reads them: float32 (n, F).

    With a stretch a row of the table is one whole stretch, oldest sample first. A value that is
    missing and not filled stays NaN: a table knows no "last".
    """
    conversion_ = Conversion(pipeline, features)
    n, wide = np.shape(rows)
    samples = pipeline.stretch.samples if pipeline.stretch else 1
    values = conversion_.understood(np.reshape(rows, (n, samples, wide // samples)))
    return conversion_.scaled(values).reshape(n, wide)


class Ready(NamedTuple):
    """Rows for the model, float32 (m, F), and which row of the frame each stands for."""

    values: F32
    stands_for: list[int]


class Preparation:
    """A pipeline at work on the frames of one asset: what it must remember is in here.

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

    def rows(self, time_s: float, names: tuple[str, ...], rows: npt.NDArray) -> Ready:
        """What the model reads of rows (n, len(names)).

        names   of the columns; () for rows that have the model's columns in the model's order
        time_s  the source's clock

        A value that is missing and may not be filled is NaN: the model refuses the row by name.
        InputError when it breaks a stretch, which then begins anew.
        """
        values = self._convert.understood(self._picked(names, rows))
        if self._pipeline.stretch is not None:
            return self._stretches(self._pipeline.stretch, time_s, values)
        if self._convert.keeps.any():
            values = self._kept(time_s, values)
        return Ready(self._convert.scaled(values), list(range(len(values))))

    def _picked(self, names: tuple[str, ...], rows: npt.NDArray) -> npt.NDArray:
        """The model's columns, in order; NaN for those that are not in the frame."""
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
        """Missing values of inputs that keep the last one are repeated, while it is not stale."""
        keeps, made = self._convert.keeps, values.copy()
        for row in made:
            known = np.isfinite(row)
            self._last[known], self._last_at[known] = row[known], time_s
            fresh = time_s - self._last_at <= self._pipeline.stale_s
            repeat = ~known & keeps & fresh
            row[repeat] = self._last[repeat]
        return made

    def _stretches(self, stretch: Stretch, time_s: float, values: F64) -> Ready:
        """Every stretch that these samples complete, (m, samples · inputs)."""
        made, stands = [np.empty((0, self._ring.size), np.float32)], list[int]()
        for row, sample in enumerate(values):
            for one in self._in_time(stretch, time_s, sample):
                self._take(stretch, one)
            if self._filled >= stretch.samples and self._since >= stretch.every:
                self._since = 0
                made.append(self._convert.scaled(self._ring).reshape(1, -1))
                stands.append(row)
        return Ready(np.concatenate(made), stands)

    def _take(self, stretch: Stretch, sample: F64) -> None:
        if not np.isfinite(sample).all():
            self._filled = self._since = 0
            missing = self._convert.names[int(np.argwhere(~np.isfinite(sample))[0][0])]
            raise InputError(
                f"{missing!r} is missing: the stretch of {stretch.samples} samples begins anew",
                "let the pipeline fill it, or mend the source",
            )
        self._ring[:-1] = self._ring[1:]
        self._ring[-1] = sample
        self._filled, self._since = self._filled + 1, self._since + 1

    def _in_time(self, stretch: Stretch, time_s: float, sample: F64) -> list[F64]:
        """The samples that this reading stands for: none when its period has one already."""
        gap = 0
        if stretch.rate_hz:
            slot, before = math.floor(time_s * stretch.rate_hz + 1e-6), self._slot
            if before is not None and slot <= before:
                return []
            gap = min(slot - before - 1, stretch.samples) if before is not None else 0
            self._slot = slot
        unseen = [self._unseen(time_s) for _ in range(gap)]
        return [*unseen, self._kept(time_s, sample[None])[0]]

    def _unseen(self, time_s: float) -> F64:
        """A sample that nobody took: what the pipeline makes of every value missing."""
        nothing = self._convert.understood(np.full((1, len(self._last)), np.nan))
        return self._kept(time_s, nothing)[0]
