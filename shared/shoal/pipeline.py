"""From what a plant measures to what a model reads: declared, never code, signed with the model.

A pipeline is part of the signed manifest. For each input of the model it says the name and unit
in which the plant has it, the range in which it can be true, what to do when it is missing, and
how it is scaled; for a model that reads a stretch of time, how many samples at which rate. The
controller and the device compute it with the very same functions (preparation.py).

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

#: What a value that is missing becomes: nothing, so that the row is refused; the last one that was
#: there; the mean or the constant in `fill`.
Missing = Literal["refuse", "last", "mean", "constant"]
#: What a value outside of its range becomes.
Outside = Literal["keep", "missing", "clip"]
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
MAX_INPUTS, MAX_SAMPLES = 262_144, 65_536
#: Name of the endpoint's input that takes rows in the plant's units and puts them through this.
RAW = "raw"


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


class Image(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an image becomes the model's row: resized (bilinear), values 0 to 255, one after another.

    mode    "L" for grey, "RGB" for colour
    layout  "chw" or "hwc": the order of channel, height and width
    """

    width: Annotated[int, msgspec.Meta(ge=1, le=8_192)]
    height: Annotated[int, msgspec.Meta(ge=1, le=8_192)]
    mode: Literal["L", "RGB"] = "RGB"
    layout: Literal["chw", "hwc"] = "chw"

    @property
    def values(self) -> int:
        """How many values an image is."""
        return self.width * self.height * (3 if self.mode == "RGB" else 1)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.mode} {self.layout}"


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model's rows are made. Without inputs: the manifest's features, as they come.

    missing        for every input that does not say otherwise
    scale, offset  without inputs, for every value: 0.00392156862745098 for pixels from 0 to 255
    stale_s        oldest value that "last" may repeat, in seconds of the source's clock
    stretch        None for a model that reads one moment
    image          None for a model that reads no images; then neither inputs nor a stretch
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
    """Read a pipeline's JSON; SettingError names the field that is wrong."""
    hint = "see docs/sources-and-sinks.md"
    with decode_errors_as(lambda cause: SettingError(f"pipeline: {cause}", hint)):
        return msgspec.json.decode(data, type=Pipeline)


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
