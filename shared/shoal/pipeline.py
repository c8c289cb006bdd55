"""Declarative preprocessing pipeline: from measurements to a model's inputs. Part of the manifest.

For each input it declares the source's name and unit, the valid range, the handling of missing
values, and the scaling; for a model over a time series, the number of samples and their rate.
Controller and device compute it with the same functions (preparation.py).

    >>> parse(b'{"missing": "last", "stale_s": 5}').stale_s
    5.0

The order for one value: unit, range, missing, scale and offset.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from shoal.errors import SettingError
from shoal.units import conversion
from shoal.validation_errors import decode_errors_as

#: Handling of a missing value: refuse the row, repeat the last value, or use the mean or constant
#: in `fill`.
Missing = Literal["refuse", "last", "mean", "constant"]
#: Handling of a value outside of its range.
Outside = Literal["keep", "missing", "clip"]
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
MAX_INPUTS, MAX_SAMPLES = 262_144, 65_536
#: Name of the endpoint's input for raw rows, which go through the pipeline.
RAW = "raw"


class Input(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input of the model.

    name           as in the manifest's features
    source         its name in the source's frames; "" for the same
    given, unit    unit in the frames, and of low, high and fill; see shoal.units
    low, high      valid range, in `unit`; None for no bound
    outside        handling of a value outside of it: "keep", "missing" or "clip"
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
    """Sliding window of samples, for a model over a time series, such as a 1-D CNN.

    samples  window length; the model reads (samples · inputs) values, oldest first
    rate_hz  sampling rate: the first reading of a period counts, and a period without one is a
             missing value; 0 takes every reading
    every    samples from one inference to the next
    """

    samples: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)]
    rate_hz: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    every: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)] = 1


class Image(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an image becomes a row: bilinear resize, values 0 to 255, flattened.

    mode    "L" for grey, "RGB" for colour
    layout  "chw" or "hwc": the order of channel, height and width
    """

    width: Annotated[int, msgspec.Meta(ge=1, le=8_192)]
    height: Annotated[int, msgspec.Meta(ge=1, le=8_192)]
    mode: Literal["L", "RGB"] = "RGB"
    layout: Literal["chw", "hwc"] = "chw"

    @property
    def values(self) -> int:
        """Values of an image."""
        return self.width * self.height * (3 if self.mode == "RGB" else 1)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.mode} {self.layout}"


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Preprocessing of a model's rows. Without inputs: the manifest's features, unchanged.

    missing        default of all inputs
    scale, offset  without inputs, for every value: 0.00392156862745098 for pixels from 0 to 255
    stale_s        age limit of a value that "last" repeats, in seconds of the source's clock
    stretch        None for a model over single rows
    image          None for a model without images; with an image, neither inputs nor a stretch
    """

    inputs: Annotated[list[Input], msgspec.Meta(max_length=MAX_INPUTS)] = []
    missing: Missing = "refuse"
    scale: Finite = 1.0
    offset: Finite = 0.0
    stale_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 60.0
    stretch: Stretch | None = None
    image: Image | None = None


IDENTITY = Pipeline()


def parse(data: bytes) -> Pipeline:
    """Decode a pipeline's JSON; SettingError names the invalid field."""
    hint = "see docs/sources-and-sinks.md"
    with decode_errors_as(lambda cause: SettingError(f"pipeline: {cause}", hint)):
        return msgspec.json.decode(data, type=Pipeline)


def check(pipeline: Pipeline, features: Sequence[str]) -> None:
    """Raise SettingError unless `pipeline` produces rows of these features."""
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
    if pipeline.image is not None:
        _check_image(pipeline, pipeline.image, len(features))
    for one in pipeline.inputs:
        _check_input(one, one.missing or pipeline.missing)
    if pipeline.scale == 0 or (names and (pipeline.scale, pipeline.offset) != (1.0, 0.0)):
        raise SettingError(
            "pipeline: scale is 0, or of the whole beside inputs", "scale each of its inputs"
        )
    if not names and pipeline.missing in ("mean", "constant"):
        raise SettingError(f"pipeline: missing = {pipeline.missing!r} needs inputs with a fill")


def _check_image(pipeline: Pipeline, image: Image, features: int) -> None:
    if pipeline.inputs or pipeline.stretch:
        raise SettingError(
            "pipeline: image stands beside inputs or a stretch",
            "scale and offset of the whole are for pixels",
        )
    if image.values != features:
        raise SettingError(
            f"pipeline: an image of {image} is {image.values} values, the model reads {features}",
            "width × height × channels is what the model reads",
        )


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
