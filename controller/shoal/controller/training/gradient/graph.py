"""Graph builder: nodes, constants, and shapes of the forward graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from shoal.errors import ModelError

#: A tensor's size by dimension: a number, or a name for an unknown one (the batch is "N").
Dims = tuple[int | str, ...]
#: Prefix of every name that Shoal writes into a graph.
OWN = "shoal/"
#: Prefix of the forward graph's names inside a train graph.
FORWARD = "forward/"

ONNX_TYPE = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE}


def own(name: str) -> str:
    """A forward tensor's name in the original model."""
    return name.removeprefix(FORWARD)


class Node:
    """A forward node. `attributes` are by name, text as str."""

    def __init__(self, proto: NodeProto) -> None:
        self.proto = proto
        self.kind: str = proto.op_type
        self.inputs: list[str] = list(proto.input)
        self.attributes: dict[str, Any] = {a.name: _value_of(a) for a in proto.attribute}

    @property
    def outputs(self) -> list[str]:
        return list(self.proto.output)

    @property
    def title(self) -> str:
        """Description for errors: `Conv 'features.0'`."""
        return f"{self.kind} {self.name!r}"

    @property
    def name(self) -> str:
        """Its own name, or that of its first output."""
        return self.proto.name or own(self.proto.output[0])

    def get(self, name: str, default: Any) -> Any:
        """Attribute, or ONNX's default."""
        return self.attributes.get(name, default)

    def optional(self, index: int) -> str:
        """Input by position; "" when it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def refuse(self, why: str, hint: str) -> ModelError:
        """The error for a node that cannot be differentiated as it is."""
        return ModelError(f"{self.title}: {why}", hint, op=self.kind, node=self.name)


class Builder:
    """Builds nodes and constants, in order, with unique names.

    shapes     of every forward tensor
    constants  values of the forward graph's initialisers
    dtype      float32, or float64 when the model's parameters are
    """

    def __init__(
        self,
        shapes: Mapping[str, Dims],
        constants: Mapping[str, npt.NDArray],
        dtype: npt.DTypeLike = np.float32,
        prefix: str = OWN,
    ) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.dtype = np.dtype(dtype)
        self.constants = constants
        self._shapes = shapes
        self._prefix = prefix
        self._named = 0
        self._known: dict[tuple[bytes, tuple[int, ...], str], str] = {}

    @property
    def onnx_type(self) -> int:
        """The float type as ONNX numbers it."""
        return ONNX_TYPE[self.dtype]

    def name(self, hint: str) -> str:
        self._named += 1
        return f"{self._prefix}{hint}_{self._named}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; its name."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Append a node with several outputs; their names."""
        names = [self.name(kind) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def into(self, output: str, kind: str, *inputs: str, **attributes: Any) -> None:
        """Append a node with a given output name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))

    def floats(self, value: npt.ArrayLike) -> str:
        """A constant of the model's float type."""
        return self.constant(np.asarray(value, self.dtype))

    def ints(self, values: Sequence[int] | int) -> str:
        """A constant int64 vector, for axes and shapes; () is an empty one."""
        return self.constant(np.atleast_1d(np.asarray(values, np.int64)))

    def constant(self, value: npt.NDArray) -> str:
        """A constant; the same value has one name."""
        key = (value.tobytes(), value.shape, value.dtype.str)
        if key not in self._known:
            self._known[key] = self.name("constant")
            self.tensors.append(numpy_helper.from_array(value, self._known[key]))
        return self._known[key]

    def named(self, name: str, value: npt.NDArray) -> None:
        """An initialiser with a given name."""
        self.tensors.append(numpy_helper.from_array(value, name))

    def shape(self, name: str) -> Dims:
        """Shape of a forward tensor; ModelError when it could not be inferred."""
        if name not in self._shapes:
            raise ModelError(
                f"tensor {own(name)!r} has no shape before the model runs",
                "export the model with every size fixed but the batch",
                tensor=own(name),
            )
        return self._shapes[name]

    def sizes(self, name: str, axes: Sequence[int]) -> list[int]:
        """Fixed sizes of some axes; ModelError when one is not fixed."""
        dims = self.shape(name)
        found = [dims[axis] for axis in axes]
        if any(isinstance(size, str) for size in found):
            raise ModelError(
                f"tensor {own(name)!r} has shape {dims}, not fixed along {[*axes]}",
                "export the model with every size fixed but the batch",
                tensor=own(name),
            )
        return [int(size) for size in found]

    def sum(self, x: str, axes: Sequence[int], keep: bool = False) -> str:
        """Σ over axes."""
        return self.op("ReduceSum", x, self.ints(list(axes)), keepdims=int(keep))

    def reshape(self, x: str, dims: Dims, like: str = "") -> str:
        """x with shape dims; `like` has that shape, needed when two sizes are unknown."""
        if sum(isinstance(size, str) for size in dims) > 1:
            return self.op("Reshape", x, self.op("Shape", like))
        return self.op("Reshape", x, self.ints([-1 if isinstance(d, str) else d for d in dims]))

    def zeros_like(self, x: str) -> str:
        zero = numpy_helper.from_array(np.zeros(1, self.dtype))
        return self.op("ConstantOfShape", self.op("Shape", x), value=zero)

    def masked(self, x: str, where: str) -> str:
        """x where a condition holds, else 0. Several times faster than ONNX's Where with a 0."""
        return self.op("Mul", x, self.op("Cast", where, to=self.onnx_type))

    def reduce_to(self, gradient: str, dims: Dims, wanted: Dims) -> str:
        """Sum a gradient of shape dims over the axes that broadcasting stretched from wanted."""
        lead = len(dims) - len(wanted)
        stretched = [lead + i for i, size in enumerate(wanted) if size == 1 and dims[lead + i] != 1]
        if stretched:
            gradient = self.sum(gradient, stretched, keep=True)
        return self.sum(gradient, range(lead)) if lead else gradient

    def unbroadcast(self, gradient: str, output: str, x: str) -> str:
        """The gradient of forward tensor `output`, summed to the shape of its operand x."""
        return self.reduce_to(gradient, self.shape(output), self.shape(x))


def _value_of(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.STRINGS:
        return [text.decode() for text in value]
    return value.decode() if attribute.type == AttributeProto.STRING else value
