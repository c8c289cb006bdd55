"""Signature of a model: its tensors by name, which axis of each counts items, and what may be left
out of a request.

Shapes that an ONNX file declares are often wrong, so the controller measures them by running the
model; what it found is signed with the release, and the device relies on it.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np

from shoal.errors import InputError, ModelError
from shoal.tensors import DTYPES, RANK, Array, Datatype, datatype_of, size_of

#: Most inputs or outputs of a model; most elements of a default.
MOST_TENSORS, MOST_DEFAULT = 256, 4_096
#: Most hashes of known tokens or words.
MOST_KNOWN = 128
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
_LAYOUTS = tuple(sorted(letters) for letters in ("HW", "HWC", "NHW", "NHWC"))

#: What a tensor's items are, for the statistics that a device keeps of them.
Kind = Literal["image", "audio", "tokens", "text", "numbers"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Sketched(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device looks at in the items of a tensor; see shoal.tensor_sketches.

    layout    of an image: a letter for each axis of the tensor, N (items), H, W, C; "" else
    low, high values of black and white; of audio, `high` is the largest possible value
    padding   of tokens: the id behind the last one, which does not count
    known     of tokens and text: hashes of the reference's most frequent ones
    """

    kind: Kind
    layout: Annotated[str, msgspec.Meta(max_length=RANK)] = ""
    low: float = 0.0
    high: float = 1.0
    padding: int | None = None
    known: Annotated[list[int], msgspec.Meta(max_length=MOST_KNOWN)] = []

    def check(self, tensor: "Tensor") -> None:
        """ModelError unless it fits the tensor."""
        fits = {
            "image": sorted(self.layout) in _LAYOUTS and len(self.layout) == len(tensor.shape),
            "audio": len(tensor.shape) > (tensor.batch is not None),
            "tokens": tensor.datatype[:3] in ("INT", "UIN"),
            "text": tensor.datatype == "BYTES",
        }.get(self.kind, True)
        is_text = tensor.datatype == "BYTES"
        axis = self.layout.find("N")
        fits = fits and is_text == (self.kind == "text")
        if self.layout and tensor.batch is not None:
            fits = fits and axis == tensor.batch
        if not fits or not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ModelError(f"signature: {tensor.name!r} is no {self.kind} {self.layout}".rstrip())


class Tensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One named tensor.

    shape     a length, or the name of a free axis
    batch     the axis that counts items; None when the tensor has none
    default   of an input that a request may leave out: its elements in order, as JSON
    sketched  what a device looks at; None: nothing
    """

    name: _Name
    datatype: Datatype
    shape: Annotated[list[_Length | _Name], msgspec.Meta(max_length=RANK)]
    batch: Annotated[int, msgspec.Meta(ge=0, lt=RANK)] | None = None
    default: Annotated[list[Any], msgspec.Meta(max_length=MOST_DEFAULT)] | None = None
    sketched: Sketched | None = None

    @property
    def dims(self) -> list[int]:
        """The shape in the protocol's form: -1 for a free axis."""
        return [-1 if isinstance(d, str) else d for d in self.shape]

    @property
    def shape_text(self) -> str:
        """The shape for a person.

        >>> Tensor(name="x", datatype="FP32", shape=["N", 3, "W"], batch=0).shape_text
        '[N (items), 3, W]'
        """
        marked = [f"{d} (items)" if at == self.batch else str(d) for at, d in enumerate(self.shape)]
        return f"[{', '.join(marked)}]"

    @property
    def sketched_text(self) -> str:
        """What is looked at, for a person: "image NCHW"; "" for nothing."""
        return f"{self.sketched.kind} {self.sketched.layout}".strip() if self.sketched else ""

    def check(self, array: Array) -> None:
        """InputError unless `array` has this tensor's datatype and fits its shape."""
        if datatype_of(array) != self.datatype:
            raise InputError(
                f"input {self.name!r} is {self.datatype}, got {datatype_of(array)}",
                f"convert it to {self.datatype}",
            )
        self.check_shape(array.shape)

    def check_shape(self, shape: tuple[int, ...] | list[int]) -> None:
        """InputError unless `shape` has this tensor's axes, of its length where that is fixed."""
        dims = self.dims
        if len(shape) != len(dims) or any(
            d not in (-1, n) for d, n in zip(dims, shape, strict=True)
        ):
            raise InputError(
                f"input {self.name!r} has shape {dims}, got {list(shape)!s:.200}",
                "-1 is any length; " + (f"axis {self.batch} counts items" if self.batch is not None
                                        else "it takes one item at a time"),
            )  # fmt: skip

    @property
    def default_array(self) -> Array | None:
        """The default; None when a request must send this input."""
        if self.default is None:
            return None
        return np.array(self.default, DTYPES[self.datatype]).reshape(self.dims)


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An output that is fed back: output `given` of a step is input `taken` of the next one.

    shape     of the first step's tensor; every element is `initial`
    """

    taken: _Name
    given: _Name
    shape: Annotated[list[_Length], msgspec.Meta(max_length=RANK)]
    initial: float = 0.0


class Signature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model takes and gives.

    together     "batch": requests may run as one, stacked along the batch axes, and each gets what
                 it gets alone; "alone": one request a run
    item_bytes   inputs and outputs of one item, as measured: batches are sized by it
    states       of a recurrent model
    """

    inputs: Annotated[list[Tensor], msgspec.Meta(max_length=MOST_TENSORS)]
    outputs: Annotated[list[Tensor], msgspec.Meta(min_length=1, max_length=MOST_TENSORS)]
    together: Literal["batch", "alone"] = "alone"
    item_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    states: Annotated[list[State], msgspec.Meta(max_length=MOST_TENSORS)] = []

    def check(self) -> None:
        """ModelError where tensors contradict each other."""
        for tensors in (self.inputs, self.outputs):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ModelError(f"signature names a tensor twice: {', '.join(names)[:200]}")
            for tensor in tensors:
                _check_tensor(tensor)
        self._check_states()
        batched = [t.batch is not None for t in (*self.inputs, *self.outputs)]
        if self.together == "batch" and not (any(batched) and all(batched[len(self.inputs) :])):
            raise ModelError("signature: requests run as one only with a batch axis on each output")

    def _check_states(self) -> None:
        inputs, outputs = self.by_name()
        for state in self.states:
            if state.taken not in inputs or state.given not in outputs:
                raise ModelError(
                    f"signature: state {state.taken!r} <- {state.given!r} is no tensor"
                )
            if inputs[state.taken].datatype != outputs[state.given].datatype:
                raise ModelError(f"signature: state {state.taken!r} has two datatypes")

    def by_name(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Inputs and outputs by their names."""
        return {t.name: t for t in self.inputs}, {t.name: t for t in self.outputs}


def rows_signature(input_name: str, features: int, output_name: str, columns: int) -> Signature:
    """Signature of a model of rows: float32 (N, features) -> float32 (N, columns)."""
    return Signature(
        inputs=[Tensor(name=input_name, datatype="FP32", shape=["N", features], batch=0)],
        outputs=[Tensor(name=output_name, datatype="FP32", shape=["N", columns], batch=0)],
        together="batch",
        item_bytes=4 * (features + columns),
    )


def _check_tensor(tensor: Tensor) -> None:
    if tensor.batch is not None and tensor.batch >= len(tensor.shape):
        raise ModelError(f"signature: {tensor.name!r} has no axis {tensor.batch}")
    if tensor.sketched is not None:
        tensor.sketched.check(tensor)
    if tensor.default is not None:
        if -1 in tensor.dims or size_of(tensor.dims) != len(tensor.default):
            raise ModelError(f"signature: the default of {tensor.name!r} does not fit its shape")
        try:
            _ = tensor.default_array
        except (ValueError, TypeError, OverflowError) as error:
            raise ModelError(f"signature: the default of {tensor.name!r}: {error}") from None
