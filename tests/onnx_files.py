"""Small ONNX models of tensors, made in memory: of many datatypes, shapes and habits."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper

Value = tuple[str, int, Sequence[int | str | None] | None]
node = helper.make_node
opsetid = helper.make_opsetid


def onnx_of(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    *,
    stored: Sequence[TensorProto] = (),
    functions: Sequence[FunctionProto] = (),
    opsets: Sequence[onnx.OperatorSetIdProto] = (),
    ir: int = 8,
) -> bytes:
    """Bytes of a model of `nodes`; inputs and outputs as (name, TensorProto type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        list(stored),
    )
    model = helper.make_model(
        graph,
        opset_imports=list(opsets) or [opsetid("", 17)],
        functions=list(functions),
        ir_version=ir,
    )
    return bytes(model.SerializeToString())


def ints(name: str, values: Sequence[int]) -> TensorProto:
    """A stored INT64 tensor of rank 1."""
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def scalar(name: str, value: float, kind: int = TensorProto.INT64) -> TensorProto:
    """A stored tensor of rank 0."""
    return helper.make_tensor(name, kind, [], [value])


def linear(kind: int = TensorProto.FLOAT, width: int = 3) -> bytes:
    """y = x @ w + 1, x (N, width): items are independent, whatever the type."""
    weights = helper.make_tensor("w", kind, [width, 2], [float(i) for i in range(2 * width)])
    return onnx_of(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "one"], ["y"])],
        [("x", kind, ["N", width])],
        [("y", kind, ["N", 2])],
        stored=[weights, scalar("one", 1, kind)],
    )


def of_opset(opset: int) -> bytes:
    """y = relu(x) * x, of an opset from 7 on."""
    return onnx_of(
        [node("Relu", ["x"], ["r"]), node("Mul", ["r", "x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y", TensorProto.FLOAT, ["N", 3])],
        opsets=[opsetid("", opset)],
        ir=3 if opset < 10 else 10,
    )


def fixed_batch() -> bytes:
    """Takes two items at a time, no more and no fewer."""
    return onnx_of(
        [node("Softmax", ["x"], ["y"], axis=1)],
        [("x", TensorProto.FLOAT, [2, 3])],
        [("y", TensorProto.FLOAT, [2, 3])],
    )


def scalars() -> bytes:
    """Two numbers and their product: no axis at all."""
    return onnx_of(
        [node("Mul", ["a", "b"], ["y"])],
        [("a", TensorProto.DOUBLE, []), ("b", TensorProto.DOUBLE, [])],
        [("y", TensorProto.DOUBLE, [])],
    )


def upper_case() -> bytes:
    """Texts in capitals, and their lengths by a second output that declares a wrong shape."""
    return onnx_of(
        [
            node("StringNormalizer", ["texts"], ["upper"], case_change_action="UPPER", locale="C"),
            node("Shape", ["texts"], ["count"]),
        ],
        [("texts", TensorProto.STRING, ["N"])],
        [("upper", TensorProto.STRING, ["N"]), ("count", TensorProto.INT64, [7])],
    )


def two_inputs() -> bytes:
    """sum = a + cast(b), same = a > b: FLOAT and INT64 in, FLOAT and BOOL out."""
    return onnx_of(
        [
            node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
            node("Add", ["a", "c"], ["sum"]),
            node("Greater", ["a", "c"], ["above"]),
        ],
        [("a", TensorProto.FLOAT, ["N", 2]), ("b", TensorProto.INT64, ["N", 2])],
        [("sum", TensorProto.FLOAT, ["N", 2]), ("above", TensorProto.BOOL, ["N", 2])],
    )


def mean_of_batch() -> bytes:
    """y = x - mean of the batch: an item's answer depends on its company."""
    return onnx_of(
        [
            node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            node("Sub", ["x", "m"], ["d"]),
            node("Add", ["x", "d"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y", TensorProto.FLOAT, ["N", 3])],
    )


def accumulator() -> bytes:
    """stateN = state + x, y = 2 stateN; the batch is axis 1 of the state, as in many RNNs."""
    return onnx_of(
        [
            node("Unsqueeze", ["x", "zero"], ["wide"]),
            node("Add", ["state", "wide"], ["stateN"]),
            node("Squeeze", ["stateN", "zero"], ["flat"]),
            node("Add", ["flat", "flat"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", 2]), ("state", TensorProto.FLOAT, [1, "N", 2])],
        [("y", TensorProto.FLOAT, ["N", 2]), ("stateN", TensorProto.FLOAT, [1, "N", 2])],
        stored=[ints("zero", [0])],
    )


def noisy() -> bytes:
    """y = x, and noise that is another at each run."""
    return onnx_of(
        [node("Identity", ["x"], ["y"]), node("RandomNormalLike", ["x"], ["noise"])],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y", TensorProto.FLOAT, ["N", 3]), ("noise", TensorProto.FLOAT, ["N", 3])],
    )


def needs_length(length: int) -> bytes:
    """Runs for items of `length` only, and does not declare it."""
    shape = ints("shape", [-1, length // 4, 4])
    return onnx_of(
        [node("Reshape", ["x", "shape"], ["r"]), node("ReduceSum", ["r"], ["y"], keepdims=0)],
        [("x", TensorProto.FLOAT, ["N", "length"])],
        [("y", TensorProto.FLOAT, None)],
        stored=[shape],
    )


def classifier_with_maps() -> bytes:
    """Probabilities through ZipMap: the output is a list of dictionaries."""
    nodes = [
        node("Softmax", ["x"], ["p"], axis=1),
        node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
        node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml",
             classlabels_strings=["ok", "worn"]),
    ]  # fmt: skip
    data = onnx_of(
        nodes,
        [("x", TensorProto.FLOAT, ["N", 2])],
        [("label", TensorProto.INT64, ["N"]), ("probabilities", TensorProto.FLOAT, None)],
        opsets=[opsetid("", 17), opsetid("ai.onnx.ml", 3)],
    )
    model = onnx.load_model_from_string(data)
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(
            TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    )
    model.graph.output[1].type.CopyFrom(maps)
    return bytes(model.SerializeToString())


def layers(count: int = 2, width: int = 64, seed: int = 0) -> bytes:
    """y = tanh(... tanh(x @ w0) @ w1 ...), x (N, width): count * width² * 4 bytes of weights."""
    rng = np.random.default_rng(seed)
    made, last = [], "x"
    for i in range(count):
        made += [node("MatMul", [last, f"w{i}"], [f"h{i}"]), node("Tanh", [f"h{i}"], [f"t{i}"])]
        last = f"t{i}"
    return onnx_of(
        made,
        [("x", TensorProto.FLOAT, ["N", width])],
        [(last, TensorProto.FLOAT, ["N", width])],
        stored=[
            numpy_helper.from_array(
                (rng.normal(size=(width, width)) / width**0.5).astype(np.float32), f"w{i}"
            )
            for i in range(count)
        ],
    )


def kept_apart(
    data: bytes, names: Sequence[str] = ("weights.bin",)
) -> tuple[bytes, dict[str, bytes]]:
    """The model with its stored tensors in data files, in turn; and name -> content of those."""
    model = onnx.load_model_from_string(data)
    files = dict.fromkeys(names, b"")
    for i, tensor in enumerate(model.graph.initializer):
        name, raw = names[i % len(names)], numpy_helper.to_array(tensor).tobytes()
        for field in ("raw_data", "float_data", "double_data", "int64_data", "int32_data"):
            tensor.ClearField(field)
        external(tensor, location=name, offset=str(len(files[name])), length=str(len(raw)))
        files[name] += raw
    return bytes(model.SerializeToString()), files


def external(tensor: TensorProto, **entries: str) -> None:
    """Have a stored tensor name its data in another file."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def hostile() -> dict[str, bytes]:
    """Files of a few hundred bytes (one of 5 MB) that ask for hours or gigabytes."""
    x, y = [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, None)]

    def of_constant(shape: list[int], *more: NodeProto) -> bytes:
        made = [node("ConstantOfShape", ["s"], ["c"]), *more]
        last = more[-1].output[0] if more else "c"
        total = [node("ReduceSum", [last], ["r"], keepdims=0), node("Add", ["x", "r"], ["y"])]
        return onnx_of([*made, *total], x, y, stored=[ints("s", shape)])

    doubled = [
        node("Concat", [f"c{i - 1}" if i else "x"] * 2, [f"c{i}"], axis=0) for i in range(36)
    ]
    long = [node("Neg", [f"n{i - 1}" if i else "x"], [f"n{i}"]) for i in range(200_000)]
    return {
        "a loop without end": _loop(x, y),
        "a constant of 64 GB": of_constant([1 << 34]),
        "a constant of 2 GB": of_constant([1 << 29]),
        "a product of two constants of 1.6 GB": of_constant(
            [20_000, 20_000], node("MatMul", ["c", "c"], ["d"])
        ),
        "an input repeated to 64 GB": onnx_of(
            [node("Expand", ["x", "s"], ["y"])], x, y, stored=[ints("s", [1 << 34])]
        ),
        "36 doublings": onnx_of(
            [*doubled, node("ReduceSum", ["c35"], ["y"], keepdims=0)], x, y
        ),
        "a range of 2^40": onnx_of(
            [
                node("Range", ["a", "b", "c"], ["r"]),
                node("ReduceSum", ["r"], ["s"], keepdims=0),
                node("Cast", ["s"], ["t"], to=TensorProto.FLOAT),
                node("Add", ["x", "t"], ["y"]),
            ],
            x,
            y,
            stored=[scalar("a", 0), scalar("b", 1 << 40), scalar("c", 1)],
        ),
        "functions that call each other twice, 2^22 nodes": _functions(x, y, depth=22),
        "a function that calls itself": _functions(x, y, depth=1, calls_itself=True),
        "200 000 nodes": onnx_of([*long, node("Identity", ["n199999"], ["y"])], x, y),
    }  # fmt: skip


def _loop(x: list[Value], y: list[Value]) -> bytes:
    body = helper.make_graph(
        [node("Identity", ["go"], ["go_on"]), node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]),
        ],
    )
    return onnx_of(
        [node("Loop", ["n", "yes", "x"], ["y"], body=body)],
        x,
        y,
        stored=[scalar("n", 1 << 40), scalar("yes", True, TensorProto.BOOL)],
    )


def _functions(x: list[Value], y: list[Value], depth: int, *, calls_itself: bool = False) -> bytes:
    both = [opsetid("", 17), opsetid("own", 1)]
    functions = []
    for level in range(depth):
        name, domain = (f"f{level - 1}", "own") if level else ("Neg", "")
        if calls_itself:
            name, domain = f"f{level}", "own"
        calls = [node(name, ["a"], ["b"], domain=domain), node(name, ["b"], ["c"], domain=domain)]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["c"], calls, both))
    last = node(f"f{depth - 1}", ["x"], ["y"], domain="own")
    return onnx_of([last], x, y, functions=functions, opsets=both)
