"""Small models, one per operator and way of using it, in ONNX's own text form."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import ModelProto, helper, numpy_helper

OPSET = 17


class Case(NamedTuple):
    """`text` computes y from h, of shape (N, *row), and from weights by name.

    h is x + p, where p is trained too: so every case shows its gradient by its input. FLOAT in
    the text stands for the float type's number.

    low, high   range that x is drawn from
    opset       where the operator is newer than what Shoal writes
    """

    name: str
    row: tuple[int, ...]
    text: str
    weights: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    constants: Mapping[str, npt.NDArray] = MappingProxyType({})
    low: float = -1.0
    high: float = 1.0
    opset: int = OPSET


def model_of(case: Case, dtype: npt.DTypeLike, seed: int = 0) -> ModelProto:
    """The case as a model of float32 or float64; the same numbers in both."""
    rng = np.random.default_rng(seed)
    kind = "float" if np.dtype(dtype) == np.float32 else "double"
    row = ",".join(map(str, case.row))
    text = case.text.replace("FLOAT", "1" if kind == "float" else "11")
    graph = onnx.parser.parse_graph(
        f"case ({kind}[N,{row}] x) => ({kind} y) {{ h = Add(x, p)\n {text} }}"
    )
    values = {"p": rng.uniform(-0.1, 0.1, case.row)}
    values |= {name: rng.uniform(-1, 1, shape) for name, shape in case.weights.items()}
    for name, value in values.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
    for name, value in case.constants.items():
        fixed = value.astype(dtype) if value.dtype == np.float64 else value
        graph.initializer.append(numpy_helper.from_array(fixed, name))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)])
    model.ir_version = 9
    return model


def rows_of(case: Case, n: int, seed: int = 1) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.uniform(case.low, case.high, (n, *case.row))


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def scalar(value: float) -> npt.NDArray[np.float64]:
    return np.array(value)


LINEAR_ALGEBRA = [
    Case("matmul", (3,), "y = MatMul(h, w)", {"w": (3, 4)}),
    Case("matmul of a stack", (2, 3), "y = MatMul(h, w)", {"w": (3, 4)}),
    Case("matmul of two stacks", (2, 4, 3), "y = MatMul(h, w)", {"w": (2, 3, 5)}),
    Case("matmul, both stretched", (1, 4, 3), "y = MatMul(h, w)", {"w": (2, 3, 5)}),
    Case("matmul of activations", (2, 3), "t = Transpose<perm=[0,2,1]>(h)\n y = MatMul(h, t)"),
    Case("gemm", (3,), "y = Gemm(h, w, b)", {"w": (3, 4), "b": (4,)}),
    Case("gemm, B transposed", (3,), "y = Gemm<transB=1>(h, w, b)", {"w": (4, 3), "b": (1, 4)}),
    Case(
        "gemm, all attributes",
        (3,),
        "t = Transpose(h)\n y = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(t, w, b)",
        {"w": (4, 3), "b": (1,)},
    ),
    Case(
        "gemm, A transposed",
        (3,),
        "t = Transpose(h)\n y = Gemm<transA=1>(t, w)",
        {"w": (3, 4)},
    ),
]

ARITHMETIC = [
    Case("add, a row", (3,), "y = Add(h, w)", {"w": (3,)}),
    Case("add, a scalar", (3,), "y = Add(w, h)", {"w": ()}),
    Case("add, a column", (2, 3), "y = Add(h, w)", {"w": (2, 1)}),
    Case("add, stretching the rows", (1, 3), "y = Add(h, w)", {"w": (4, 1)}),
    Case("sum of three", (3,), "y = Sum(h, w, h)", {"w": (3,)}),
    Case("sub", (3,), "y = Sub(w, h)", {"w": (1, 3)}),
    Case("mul", (2, 3), "y = Mul(h, w)", {"w": (3,)}),
    Case("mul by itself", (3,), "y = Mul(h, h)"),
    Case("div", (3,), "y = Div(w, h)", {"w": (1,)}, low=0.5, high=2),
    Case("div by a weight", (3,), "e = Exp(w)\n y = Div(h, e)", {"w": (3,)}),
    Case("neg", (3,), "y = Neg(h)"),
    Case("abs", (3,), "y = Abs(h)"),
    Case("reciprocal", (3,), "y = Reciprocal(h)", low=0.5, high=2),
    Case("exp", (3,), "y = Exp(h)"),
    Case("log", (3,), "y = Log(h)", low=0.5, high=2),
    Case("sqrt", (3,), "y = Sqrt(h)", low=0.5, high=2),
    Case("sin and cos", (3,), "s = Sin(h)\n c = Cos(s)\n y = Mul(s, c)"),
    Case("square", (3,), "y = Pow(h, two)", constants={"two": scalar(2.0)}),
    Case("cube", (3,), "y = Pow(h, three)", constants={"three": scalar(3.0)}),
    Case("power of 1.5", (3,), "y = Pow(h, p15)", constants={"p15": scalar(1.5)}, low=0.5, high=2),
    Case("where", (3,), "c = Greater(h, w)\n y = Where(c, h, w)", {"w": (3,)}),
    Case("max", (3,), "y = Max(h, w)", {"w": (3,)}),
    Case("min", (3,), "y = Min(h, w)", {"w": (3,)}),
]

REDUCTIONS = [
    Case("sum over the last axis", (2, 3), "y = ReduceSum(h, a)", constants={"a": ints(-1)}),
    Case("sum, axis gone", (2, 3), "y = ReduceSum<keepdims=0>(h, a)", constants={"a": ints(1)}),
    Case("mean before opset 18", (2, 3), "y = ReduceMean<axes=[1,2], keepdims=0>(h)"),
    Case("mean since 18", (2, 3), "y = ReduceMean(h, a)", constants={"a": ints(1)}, opset=18),
    Case(
        "mean over rows and columns",
        (3,),
        "m = ReduceMean<axes=[0,1]>(h)\n y = Mul(h, m)",
    ),
    Case("max over an axis", (2, 3), "y = ReduceMax<axes=[2], keepdims=0>(h)"),
    Case("min over an axis", (2, 3), "y = ReduceMin<axes=[1]>(h)"),
    Case("length", (3,), "y = ReduceL2<axes=[1]>(h)"),
    Case("sum of squares", (3,), "y = ReduceSumSquare<axes=[1]>(h)"),
]

ACTIVATIONS = [
    Case("relu", (5,), "y = Relu(h)"),
    Case("leaky relu", (5,), "y = LeakyRelu<alpha=0.2>(h)"),
    Case("prelu", (5,), "y = PRelu(h, w)", {"w": (5,)}),
    Case("elu", (5,), "y = Elu<alpha=0.7>(h)"),
    Case("selu", (5,), "y = Selu(h)"),
    Case("sigmoid", (5,), "y = Sigmoid(h)"),
    Case("tanh", (5,), "y = Tanh(h)"),
    Case("softplus", (5,), "y = Softplus(h)"),
    Case("softsign", (5,), "y = Softsign(h)"),
    Case("hard sigmoid", (5,), "y = HardSigmoid<alpha=0.4, beta=0.5>(h)", low=-2, high=2),
    Case("hard swish", (5,), "y = HardSwish(h)", low=-5, high=5),
    Case(
        "clip",
        (5,),
        "y = Clip(h, low, high)",
        constants={"low": scalar(-0.5), "high": scalar(0.4)},
    ),
    Case("clip from above", (5,), "y = Clip(h, , high)", constants={"high": scalar(0.4)}),
    Case("erf", (5,), "y = Erf(h)"),
    Case("gelu", (5,), "y = Gelu(h)", opset=20, low=-3, high=3),
    Case("gelu by tanh", (5,), 'y = Gelu<approximate="tanh">(h)', opset=20, low=-3, high=3),
    Case("softmax", (5,), "y = Softmax(h)", low=-3, high=3),
    Case("softmax, inner axis", (4, 3), "y = Softmax<axis=1>(h)", low=-3, high=3),
    Case("log softmax", (5,), "y = LogSoftmax(h)", low=-3, high=3),
]

MOVEMENT = [
    Case("identity and dropout", (3,), "i = Identity(h)\n y = Dropout(i)"),
    Case("reshape", (2, 3), "y = Reshape(h, s)", constants={"s": ints(-1, 6)}),
    Case(
        "reshape by a computed shape",
        (2, 3),
        "s = Shape(h)\n g = Gather(s, zero)\n u = Unsqueeze(g, a)\n c = Concat<axis=0>(u, rest)\n"
        "y = Reshape(h, c)",
        constants={"zero": np.array(0), "a": ints(0), "rest": ints(-1)},
    ),
    Case("flatten", (2, 3), "y = Flatten(h)"),
    Case(
        "squeeze and unsqueeze",
        (1, 3),
        "s = Squeeze(h, a)\n u = Unsqueeze(s, b)\n y = Mul(u, u)",
        constants={"a": ints(1), "b": ints(2)},
    ),
    Case("transpose", (2, 3, 4), "y = Transpose<perm=[0,3,1,2]>(h)"),
    Case("expand", (1, 3), "y = Expand(h, s)", constants={"s": ints(1, 4, 1)}),
    Case("cast", (3,), "c = Cast<to=FLOAT>(h)\n y = Mul(c, h)"),
    Case("cast to another's type", (3,), "c = CastLike(h, p)\n y = Mul(c, h)"),
    Case("concat", (3,), "e = Exp(h)\n y = Concat<axis=1>(h, e, h)"),
    Case(
        "split",
        (6,),
        "a, b, c = Split<axis=1>(h, s)\n y = Mul(a, c)",
        constants={"s": ints(2, 2, 2)},
    ),
    Case("pad", (3,), "y = Pad(h, s)", constants={"s": ints(0, 1, 0, 2)}),
    Case(
        "slice",
        (2, 6),
        "y = Slice(h, s, e, a)",
        constants={"s": ints(0, 1), "e": ints(1, -1), "a": ints(1, -1)},
    ),
    Case(
        "slice with a step",
        (7,),
        "y = Slice(h, s, e, a, t)",
        constants={"s": ints(1), "e": ints(7), "a": ints(1), "t": ints(2)},
    ),
    Case(
        "slice backwards",
        (5,),
        "y = Slice(h, s, e, a, t)",
        constants={"s": ints(-1), "e": ints(-(2**62)), "a": ints(1), "t": ints(-1)},
    ),
    Case(
        "slice of all rows, last step",
        (4, 3),
        "y = Slice(h, s, e, a)",
        constants={"s": ints(0, -1), "e": ints(2**63 - 1, 2**63 - 1), "a": ints(0, 1)},
    ),
    Case("last step", (4, 3), "y = Gather<axis=1>(h, i)", constants={"i": np.array(-1)}),
    Case("gather", (5,), "y = Gather<axis=1>(h, i)", constants={"i": ints(4, 0, 0)}),
    Case(
        "embedding",
        (3,),
        "c = Cast<to=7>(h)\n e = Gather(w, c)\n u = Unsqueeze(h, a)\n y = Add(e, u)",
        {"w": (6, 2)},
        {"a": ints(2)},
        low=0.2,
        high=5.7,
    ),
]

CONVOLUTION = [
    Case("1-D", (2, 7), "y = Conv(h, w, b)", {"w": (3, 2, 3), "b": (3,)}),
    Case(
        "1-D, stride, dilation, padding, a remainder",
        (2, 12),
        "y = Conv<strides=[3], dilations=[2], pads=[1,2]>(h, w)",
        {"w": (4, 2, 3)},
    ),
    Case("2-D", (2, 5, 6), "y = Conv(h, w, b)", {"w": (3, 2, 2, 3), "b": (3,)}),
    Case(
        "2-D, stride and padding",
        (2, 6, 7),
        "y = Conv<strides=[2,2], pads=[1,1,1,1]>(h, w)",
        {"w": (3, 2, 3, 3)},
    ),
    Case(
        "2-D, groups and dilation",
        (4, 7, 6),
        "y = Conv<group=2, dilations=[2,1], strides=[1,2]>(h, w)",
        {"w": (6, 2, 2, 3)},
    ),
    Case("depthwise", (3, 5, 5), "y = Conv<group=3, pads=[1,1,1,1]>(h, w)", {"w": (3, 1, 3, 3)}),
    Case("depthwise with a multiplier", (2, 6), "y = Conv<group=2>(h, w)", {"w": (4, 1, 3)}),
    Case(
        "same padding",
        (1, 6, 7),
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(h, w)',
        {"w": (2, 1, 3, 2)},
    ),
    Case(
        "transposed 1-D",
        (3, 4),
        "y = ConvTranspose<strides=[2], pads=[1,0], output_padding=[1]>(h, w, b)",
        {"w": (3, 2, 3), "b": (2,)},
    ),
    Case(
        "transposed 2-D in groups",
        (4, 3, 3),
        "y = ConvTranspose<group=2, strides=[2,2]>(h, w)",
        {"w": (4, 3, 2, 2)},
    ),
]

POOLING = [
    Case("max 1-D", (2, 7), "y = MaxPool<kernel_shape=[2], strides=[2]>(h)"),
    Case(
        "max 2-D, overlapping and padded",
        (2, 5, 6),
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(h)",
    ),
    Case("average 1-D", (2, 7), "y = AveragePool<kernel_shape=[3], strides=[2]>(h)"),
    Case(
        "average 2-D, padding not counted",
        (2, 5, 6),
        "y = AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(h)",
    ),
    Case(
        "average 2-D, padding counted",
        (2, 5, 5),
        "y = AveragePool<kernel_shape=[3,3], strides=[1,2], pads=[1,1,1,1],"
        " count_include_pad=1>(h)",
    ),
    Case("global average", (2, 3, 4), "y = GlobalAveragePool(h)"),
    Case("global max", (2, 3, 4), "y = GlobalMaxPool(h)"),
]

NORMALISATION = [
    Case("layer", (5,), "y = LayerNormalization(h, w, b)", {"w": (5,), "b": (5,)}),
    Case(
        "layer over two axes, no bias",
        (2, 4),
        "y = LayerNormalization<axis=1, epsilon=0.01>(h, w)",
        {"w": (2, 4)},
    ),
    Case("instance", (3, 6), "y = InstanceNormalization(h, w, b)", {"w": (3,), "b": (3,)}),
    Case(
        "batch, frozen",
        (3, 4, 2),
        "y = BatchNormalization<epsilon=0.01>(h, w, b, m, v)",
        {"w": (3,), "b": (3,)},
        {"m": np.array([0.1, -0.2, 0.3]), "v": np.array([0.5, 1.0, 2.0])},
    ),
    Case(
        "batch, frozen, of vectors",
        (3,),
        "y = BatchNormalization(h, w, b, m, v)",
        {"w": (3,), "b": (3,)},
        {"m": np.array([0.1, -0.2, 0.3]), "v": np.array([0.5, 1.0, 2.0])},
    ),
]


def _recurrent(name: str, op: str, gates: int, attributes: str = "", more: str = "") -> Case:
    """Four steps of three features, two hidden; batch first outside, as users have it."""
    directions = 2 if "bidirectional" in attributes else 1
    listed = f"hidden_size=2{',' if attributes else ''}{attributes}"
    return Case(
        name,
        (4, 3),
        f"t = Transpose<perm=[1,0,2]>(h)\n s, last = {op}<{listed}>(t, w, r, b{more})\n"
        "q = ReduceSum<keepdims=0>(s, one)\n v = ReduceSum<keepdims=0>(last, zero)\n"
        "u = Add(q, v)\n y = Transpose<perm=[1,0,2]>(u)",
        {
            "w": (directions, gates * 2, 3),
            "r": (directions, gates * 2, 2),
            "b": (directions, gates * 4),
        },
        {"one": ints(1), "zero": ints(0)},
    )


RECURRENT = [
    _recurrent("gru", "GRU", 3),
    _recurrent("gru as torch has it", "GRU", 3, "linear_before_reset=1"),
    _recurrent("gru backwards", "GRU", 3, 'direction="reverse"'),
    _recurrent("gru both ways", "GRU", 3, 'direction="bidirectional", linear_before_reset=1'),
    _recurrent("lstm", "LSTM", 4),
    _recurrent("lstm both ways", "LSTM", 4, 'direction="bidirectional"'),
    _recurrent("rnn", "RNN", 1),
    Case(
        "lstm from a given state",
        (4, 3),
        "t = Transpose<perm=[1,0,2]>(h)\n f = ReduceMean<axes=[0,2]>(t)\n"
        "h0 = Expand(f, s)\n c0 = Neg(h0)\n"
        "q, n, c = LSTM<hidden_size=2>(t, w, r, , , h0, c0)\n"
        "o = Add(n, c)\n y = Squeeze(o, zero)",
        {"w": (1, 8, 3), "r": (1, 8, 2)},
        {"zero": ints(0), "s": ints(1, 1, 2)},
    ),
    Case(
        "gru without bias, from a given state",
        (4, 3),
        "t = Transpose<perm=[1,0,2]>(h)\n f = ReduceMean<axes=[0,2]>(t)\n h0 = Expand(f, s)\n"
        "q, n = GRU<hidden_size=2, linear_before_reset=1>(t, w, r, , , h0)\n"
        "y = Squeeze(n, zero)",
        {"w": (1, 6, 3), "r": (1, 6, 2)},
        {"zero": ints(0), "s": ints(1, 1, 2)},
    ),
]
