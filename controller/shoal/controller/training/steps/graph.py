"""The graph that steps are translated to: nodes before and behind a model, and what goes in."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from shoal.controller.training.gradient.graph import Builder
from shoal.errors import ModelError
from shoal.tensors import Datatype

#: The protocol's datatypes as ONNX numbers them.
ONNX_TYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING,
    **{f"{kind}{bits}": getattr(TensorProto, f"{kind}{bits}")
       for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}  # fmt: skip
#: Version of the standard operators that the steps are written for, and the IR that has it.
OPSET, IR = 18, 8
#: The ai.onnx.ml operators' domain, and the version that the steps are written for.
ML, ML_OPSET = "ai.onnx.ml", 2
Shape = tuple[int | str, ...]


class Value(NamedTuple):
    """A tensor between two steps.

    shape      a length, or the name of a free axis; None when the model does not declare it
    channels   of an image: the order of its channel axis, "" for anything else
    """

    name: str
    datatype: Datatype
    shape: Shape | None
    channels: str = ""

    def __str__(self) -> str:
        shape = "of unknown shape" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{self.datatype} {shape}"


class Placement(NamedTuple):
    """Where a resized image lies in what the model reads: tensors int64 (1,), in pixels."""

    height: str
    width: str
    new_height: str
    new_width: str
    top: str
    left: str


class Graph(Builder):
    """Nodes and constants of steps, with unique names, and the tensors that a request sends.

    inputs       raw inputs by name
    outputs      of the model, by name
    source       name of the raw input whose steps are being translated
    placements   of images that were resized, by that name; None of one that was resized in several
                 ways, or cut
    """

    def __init__(self, prefix: str, outputs: Mapping[str, Value]) -> None:
        super().__init__({}, {}, prefix=prefix)
        self.inputs: dict[str, Value] = {}
        self.outputs = outputs
        self.source = ""
        self.placements: dict[str, Placement | None] = {}

    def place(self, placement: Placement | None) -> None:
        """Note where the image of this source lies now."""
        self.placements[self.source] = None if self.source in self.placements else placement

    def take(self, name: str, datatype: Datatype, shape: Shape) -> Value:
        """The raw input `name`; several chains may begin with the same one."""
        value = Value(name, datatype, shape)
        if self.inputs.setdefault(name, value) != value:
            raise ModelError(
                f"steps: input {name!r} is {self.inputs[name]} for one input of the model and "
                f"{value} for another",
                'give one of them another name: from = "NAME"',
            )
        return value

    def cast(self, value: Value, to: Datatype) -> Value:
        """The value as another datatype; itself when it has it already."""
        if value.datatype == to:
            return value
        return value._replace(name=self.op("Cast", value.name, to=ONNX_TYPES[to]), datatype=to)

    def length(self, value: Value, axis: int) -> str:
        """Length of an axis when the model runs: int64 (1,)."""
        known = value.shape[axis] if value.shape is not None else "?"
        if isinstance(known, int):
            return self.ints(known)
        return self.op("Shape", value.name, start=axis, end=axis + 1)

    def floor_div(self, a: str, b: str) -> str:
        """a // b of int64 that are not negative."""
        return self.op("Div", a, b)

    def ml(self, kind: str, *inputs: str, **attributes: object) -> str:
        """A node of ai.onnx.ml with one output; its name."""
        return self.op(kind, *inputs, domain=ML, **attributes)

    def scalar(self, value: float | int, datatype: Datatype) -> str:
        """A constant without axes."""
        dtypes = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "UINT8": np.uint8,
                  "INT32": np.int32, "FP16": np.float16}  # fmt: skip
        return self.constant(np.array(value, dtypes[datatype]))
