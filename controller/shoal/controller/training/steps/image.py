"""Steps of images: from 8-bit pixels to what a model reads.

Images are uint8 (N, height, width, channels) until `normalise` or `cast`. Sources of the rules:
Pillow's Image.resize and convert("L"), torchvision's Resize and CenterCrop, Ultralytics' letterbox.
"""

from typing import Annotated, Literal

import msgspec
import numpy as np

from shoal.controller.training.steps.graph import Graph, Placement, Shape, Value
from shoal.controller.training.steps.step import InputStep, Source
from shoal.errors import ModelError
from shoal.tensors import Datatype

Side = Annotated[int, msgspec.Meta(ge=1, le=16_384)]
Level = Annotated[int, msgspec.Meta(ge=0, le=255)]
Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
Order = Literal["RGB", "BGR", "L"]
_HEIGHT, _WIDTH, _CHANNEL = 1, 2, 3
#: Pillow's convert("L"): ITU-R 601-2 luma in fixed point of 16 bits.
_LUMA, _LUMA_HALF, _LUMA_BITS = (19_595, 38_470, 7_471), 0x8000, 16


class Image(Source, frozen=True, kw_only=True, tag="image"):
    """Pixels of 8 bits, decoded by the program that sends them; any height and width.

    channels   their order in what is sent; "L" is grey, with an axis of one channel
    layout     "NHWC": (N, height, width, channels), N images of one size; "HWC": one image
    """

    channels: Order = "RGB"
    layout: Literal["NHWC", "HWC"] = "NHWC"

    def begin(self, g: Graph, name: str) -> Value:
        """uint8 pixels as they are sent."""
        shape: Shape = (f"{name}_height", f"{name}_width", 1 if self.channels == "L" else 3)
        if self.layout == "NHWC":
            raw = g.take(name, "UINT8", (f"{name}_N", *shape))
            return raw._replace(channels=self.channels)
        raw = g.take(name, "UINT8", shape)
        whole = g.op("Unsqueeze", raw.name, g.ints(0))
        return Value(whole, "UINT8", (1, *shape), self.channels)

    def kinds(self, name: str) -> dict[str, str]:
        """An image."""
        return {name: f"image:{self.layout}"}


class Channels(InputStep, frozen=True, kw_only=True, tag="channels"):
    """Another order of the channels, or grey as Pillow's convert("L") computes it, level by level.

    to   "RGB", "BGR" or "L"
    """

    to: Order

    def apply(self, g: Graph, value: Value) -> Value:
        """Reorder, weigh or repeat the channels."""
        _pixels(self, value)
        if value.channels == self.to:
            return value
        if value.channels == "L":
            name = g.op("Concat", *[value.name] * 3, axis=_CHANNEL)
        elif self.to == "L":
            weights = np.array(_LUMA if value.channels == "RGB" else _LUMA[::-1], np.int32)
            wide = g.cast(value, "INT32").name
            total = g.op("ReduceSum", g.op("Mul", wide, g.constant(weights)), g.ints(-1))
            total = g.op("Add", total, g.scalar(_LUMA_HALF, "INT32"))
            grey = g.op("Div", total, g.scalar(1 << _LUMA_BITS, "INT32"))
            name = g.cast(Value(grey, "INT32", None), "UINT8").name
        else:
            name = g.op("Gather", value.name, g.ints([2, 1, 0]), axis=_CHANNEL)
        return _sized(value, name, channels=1 if self.to == "L" else 3)._replace(channels=self.to)


class Resize(InputStep, frozen=True, kw_only=True, tag="resize"):
    """Another size, in 8 bits.

    fit         "stretch": to width and height
                "letterbox": as large as fits into both, then `fill` around it (see place)
                "shorter": the shorter side becomes `size`, the other in proportion
                "height": to `height`, the width in proportion, at most `width` where that is given
                "multiple": each side down to a multiple of `multiple`, at least one of it
    method      "linear", "cubic" (a = -0.5) or "nearest", on half-pixel centres
    antialias   a filter as wide as the reduction, as in Pillow; without it "linear" is that of
                OpenCV's INTER_LINEAR
    rounding    of a side in proportion: "nearest" (half up), "up" or "down"; None for "down" with
                fit = "shorter", else "nearest"
    place       of a letterboxed image: "center" (odd rests go right and below) or "top-left"
    """

    fit: Literal["stretch", "letterbox", "shorter", "height", "multiple"] = "stretch"
    width: Side | None = None
    height: Side | None = None
    size: Side | None = None
    multiple: Side | None = None
    method: Literal["linear", "cubic", "nearest"] = "linear"
    antialias: bool = True
    rounding: Literal["nearest", "up", "down"] | None = None
    fill: Level = 0
    place: Literal["center", "top-left"] = "center"

    def __post_init__(self) -> None:
        needed = {
            "stretch": ("width", "height"), "letterbox": ("width", "height"),
            "shorter": ("size",), "height": ("height",), "multiple": ("multiple",),
        }[self.fit]  # fmt: skip
        allowed = {*needed, "width"} if self.fit == "height" else {*needed}
        for name in ("width", "height", "size", "multiple"):
            given = getattr(self, name) is not None
            if given != (name in needed) and not (given and name in allowed):
                takes = " and ".join(needed)
                raise ValueError(f'fit = "{self.fit}" takes {takes}, not {name}' if given
                                 else f'fit = "{self.fit}" needs {takes}')  # fmt: skip
        if self.method == "cubic" and not self.antialias:
            raise ValueError(
                "cubic without antialias is a hundred times slower in onnxruntime: leave antialias "
                "as it is"
            )

    def apply(self, g: Graph, value: Value) -> Value:
        """Resize, and pad a letterbox."""
        _pixels(self, value)
        height, width = self._sizes(g, value)
        sizes = g.op("Concat", height, width, axis=0)
        resized = _sized(value, self._resampled(g, value, sizes), *self._known(value))
        old = g.length(value, _HEIGHT), g.length(value, _WIDTH)
        if self.fit != "letterbox":
            g.place(Placement(*old, height, width, g.ints(0), g.ints(0)))
            return resized
        wanted = (self.height or 1, self.width or 1)
        whole, corner = _padded(g, resized, (height, width), wanted, self.fill, self.place)
        g.place(Placement(*old, height, width, *corner))
        return whole

    def _sizes(self, g: Graph, value: Value) -> tuple[str, str]:
        """Height and width of the result before padding: int64 (1,) each."""
        h, w = g.length(value, _HEIGHT), g.length(value, _WIDTH)
        if self.fit == "stretch":
            return g.ints(self.height or 1), g.ints(self.width or 1)
        if self.fit == "letterbox":
            return (
                g.op("Min", g.ints(self.height or 1), self._scaled(g, h, self.width, w)),
                g.op("Min", g.ints(self.width or 1), self._scaled(g, w, self.height, h)),
            )
        if self.fit == "height":
            width = self._scaled(g, w, self.height, h)
            most = g.op("Min", width, g.ints(self.width)) if self.width else width
            return g.ints(self.height or 1), most
        if self.fit == "multiple":
            step = g.ints(self.multiple or 1)

            def whole(side: str) -> str:
                return g.op("Max", g.op("Mul", g.floor_div(side, step), step), step)

            return whole(h), whole(w)
        shorter = g.op("Min", h, w)
        return self._scaled(g, h, self.size, shorter), self._scaled(g, w, self.size, shorter)

    def _scaled(self, g: Graph, side: str, wanted: int | None, other: str) -> str:
        """side · wanted / other in whole pixels, at least 1."""
        product = g.op("Mul", side, g.ints(wanted or 1))
        rounding = self.rounding or ("down" if self.fit == "shorter" else "nearest")
        if rounding == "nearest":
            product = g.op("Add", g.op("Mul", product, g.ints(2)), other)
            other = g.op("Mul", other, g.ints(2))
        elif rounding == "up":
            product = g.op("Add", product, g.op("Sub", other, g.ints(1)))
        return g.op("Max", g.floor_div(product, other), g.ints(1))

    def _known(self, value: Value) -> tuple[int | str, int | str]:
        free = f"{value.name}_height", f"{value.name}_width"
        if self.fit == "stretch":
            return self.height or 1, self.width or 1
        return (self.height or 1, free[1]) if self.fit == "height" else free

    def _resampled(self, g: Graph, value: Value, sizes: str) -> str:
        if self.method == "nearest":
            return _nearest(g, value, sizes)
        if self.antialias:
            coefficient = {"cubic_coeff_a": -0.5} if self.method == "cubic" else {}
            return _resize(
                g, value.name, sizes, self.method, antialias=1, exclude_outside=1, **coefficient
            )
        # The 8-bit kernel truncates; OpenCV rounds.
        found = _resize(g, g.cast(value, "FP32").name, sizes, "linear")
        whole = g.op("Floor", g.op("Add", found, g.scalar(0.5, "FP32")))
        return g.cast(Value(whole, "FP32", None), "UINT8").name


class Crop(InputStep, frozen=True, kw_only=True, tag="crop"):
    """The middle of an image; a smaller one is padded with `fill` first. As torchvision's
    CenterCrop: the offset is half of the difference, rounded half to even."""

    width: Side
    height: Side
    fill: Level = 0

    def apply(self, g: Graph, value: Value) -> Value:
        """Pad where it is smaller, and cut."""
        _pixels(self, value)
        wanted = (self.height, self.width)
        sides = g.length(value, _HEIGHT), g.length(value, _WIDTH)
        whole = tuple(g.op("Max", side, g.ints(n)) for side, n in zip(sides, wanted, strict=True))
        free = (f"{value.name}_height", f"{value.name}_width")
        value, _ = _padded(g, value, sides, whole, self.fill, "center", known=free)
        g.place(None)
        starts = [
            g.op("Cast", g.op("Round", g.op("Mul", _float(g, g.op("Sub", side, g.ints(n))),
                                            g.floats([0.5]))), to=7)
            for side, n in zip(whole, wanted, strict=True)
        ]  # fmt: skip
        start = g.op("Concat", *starts, axis=0)
        stop = g.op("Add", start, g.ints(wanted))
        cut = g.op("Slice", value.name, start, stop, g.ints([_HEIGHT, _WIDTH]))
        return _sized(value, cut, *wanted)


class Pad(InputStep, frozen=True, kw_only=True, tag="pad"):
    """`fill` right of and below an image that is smaller than width and height; of any datatype,
    so it can stand behind `normalise`."""

    width: Side
    height: Side
    fill: Finite = 0.0

    def apply(self, g: Graph, value: Value) -> Value:
        """Pad at the end of both sides."""
        _image(self, value)
        sides = g.length(value, _HEIGHT), g.length(value, _WIDTH)
        padded, _ = _padded(g, value, sides, (self.height, self.width), self.fill, "top-left")
        return padded


class Normalise(InputStep, frozen=True, kw_only=True, tag="normalise"):
    """(level / divide - mean) / std in float32, in this order; mean and std have one value, or one
    for each channel of an image in its order."""

    divide: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 1.0
    mean: Annotated[tuple[Finite, ...], msgspec.Meta(min_length=1, max_length=3)] = (0.0,)
    std: Annotated[tuple[Finite, ...], msgspec.Meta(min_length=1, max_length=3)] = (1.0,)

    def __post_init__(self) -> None:
        if 0 in self.std:
            raise ValueError("a std of 0 divides by zero")

    def apply(self, g: Graph, value: Value) -> Value:
        """Divide, subtract, divide; what changes nothing is left out."""
        if value.datatype == "BYTES":
            raise self.refused(value, "a text is no number")
        channels = 3 if value.channels in ("RGB", "BGR") else 1
        for what in (self.mean, self.std):
            if len(what) not in (1, channels):
                several = f", or {channels} in the order {value.channels}" if channels > 1 else ""
                raise ModelError(
                    f"steps: normalise has {len(what)} values, {value} has {channels} channels",
                    f"give one{several}",
                )
        # Along an axis of three, constants cost three times as much as along a whole line.
        width = value.shape[_WIDTH] if channels > 1 and value.shape else 1
        repeated = width if isinstance(width, int) else 1
        mean, std = (
            np.tile(np.array(one), (repeated, 1)) if len(one) > 1 else np.array(one)
            for one in (self.mean, self.std)
        )
        name = g.cast(value, "FP32").name
        if self.divide != 1:
            name = g.op("Div", name, g.floats(self.divide))
        if mean.any():
            name = g.op("Sub", name, g.floats(mean))
        if (std != 1).any():
            name = g.op("Div", name, g.floats(std))
        return value._replace(name=name, datatype="FP32")


class Layout(InputStep, frozen=True, kw_only=True, tag="layout"):
    """The order of axes that the model reads: "CHW" moves channels to the front; "flat" makes one
    row of each image, height by height."""

    to: Literal["CHW", "flat"]

    def apply(self, g: Graph, value: Value) -> Value:
        """Transpose or flatten; no step of images follows."""
        _image(self, value)
        assert value.shape is not None
        n, height, width, channels = value.shape
        if self.to == "CHW":
            name = g.op("Transpose", value.name, perm=[0, 3, 1, 2])
            return Value(name, value.datatype, (n, channels, height, width))
        name = g.op("Flatten", value.name, axis=1)
        count = (
            height * width * int(channels)
            if isinstance(height, int) and isinstance(width, int)
            else f"{name}_values"
        )
        return Value(name, value.datatype, (n, count))


class Cast(InputStep, frozen=True, kw_only=True, tag="cast"):
    """Another datatype; a float that becomes an integer is cut off."""

    to: Literal["FP16", "FP32", "FP64", "UINT8", "INT8", "INT32", "INT64"]

    def apply(self, g: Graph, value: Value) -> Value:
        """Cast."""
        if value.datatype == "BYTES":
            raise self.refused(value, "a text is no number")
        return g.cast(value, _datatype(self.to))


def _datatype(name: str) -> Datatype:
    return name  # type: ignore[return-value]


def _image(step: InputStep, value: Value) -> None:
    if not value.channels:
        raise step.refused(
            value, f"{step.tag()} stands behind image and before layout, where an image is"
        )


def _pixels(step: InputStep, value: Value) -> None:
    _image(step, value)
    if value.datatype != "UINT8":
        raise step.refused(value, f"{step.tag()} works in 8 bits: put it before normalise and cast")


def _sized(
    value: Value,
    name: str,
    height: int | str | None = None,
    width: int | str | None = None,
    channels: int | None = None,
) -> Value:
    assert value.shape is not None
    n, h, w, c = value.shape
    return value._replace(name=name, shape=(n, height or h, width or w, channels or c))


def _resize(g: Graph, name: str, sizes: str, mode: str, **attributes: object) -> str:
    return g.op(
        "Resize", name, "", "", sizes,
        mode=mode, coordinate_transformation_mode="half_pixel", axes=[_HEIGHT, _WIDTH],
        **attributes,
    )  # fmt: skip


def _nearest(g: Graph, value: Value, sizes: str) -> str:
    """Pixel (2i + 1) · old // (2 · new) for each i, as Pillow: Resize rounds some of them down."""
    name = value.name
    for at, axis in enumerate((_HEIGHT, _WIDTH)):
        new = g.op("Gather", sizes, g.scalar(at, "INT64"))
        old = g.length(value, axis)
        numbers = g.op("Range", g.scalar(0, "INT64"), new, g.scalar(1, "INT64"))
        odd = g.op("Add", g.op("Mul", numbers, g.ints(2)), g.ints(1))
        places = g.floor_div(g.op("Mul", odd, old), g.op("Mul", new, g.ints(2)))
        name = g.op("Gather", name, places, axis=axis)
    return name


def _float(g: Graph, name: str) -> str:
    return g.op("Cast", name, to=1)


def _padded(
    g: Graph,
    value: Value,
    sides: tuple[str, str],
    wanted: tuple[int | str, ...],
    fill: float,
    place: str,
    known: tuple[int | str, ...] = (),
) -> tuple[Value, tuple[str, str]]:
    """An image with `fill` around it, up to the wanted sides (larger ones stay as they are), and
    the rows above and columns left of it."""
    before, after = [], []
    for side, n in zip(sides, wanted, strict=True):
        whole = g.ints(n) if isinstance(n, int) else n
        rest = g.op("Max", g.op("Sub", whole, side), g.ints(0))
        first = g.floor_div(rest, g.ints(2)) if place == "center" else g.ints(0)
        before.append(first)
        after.append(g.op("Sub", rest, first))
    pads = g.op("Concat", *before, *after, axis=0)
    constant = g.scalar(fill, value.datatype)
    name = g.op("Pad", value.name, pads, constant, g.ints([_HEIGHT, _WIDTH]))
    found = known or wanted
    return _sized(value, name, found[0], found[1]), (before[0], before[1])
