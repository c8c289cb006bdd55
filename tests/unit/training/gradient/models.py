"""Models to train in tests, and rows to train them on."""

import numpy as np
import numpy.typing as npt
import onnx.parser
from onnx import ModelProto, helper, numpy_helper


def written(
    text: str, tensors: dict[str, npt.NDArray] | None = None, opset: int = 17, **domains: int
) -> ModelProto:
    """A model from ONNX's text form, with initialisers by name."""
    graph = onnx.parser.parse_graph(text)
    for name, value in (tensors or {}).items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(name.replace("_", "."), v) for name, v in domains.items()]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def mlp(tail: str = "Identity", sizes: tuple[int, int, int] = (5, 8, 3)) -> ModelProto:
    """x (N, 5) scaled, a hidden layer of 8, 3 columns; then the operator `tail`."""
    rng, (features, hidden, columns) = np.random.default_rng(0), sizes
    return written(
        f"""mlp (float[N,{features}] x) => (float[N,{columns}] out) {{
            scaled = Mul(x, scale)
            a = MatMul(scaled, w1)  b = Add(a, b1)  h = Tanh(b)
            z = Gemm(h, w2, b2)  out = {tail}(z) }}""",
        {
            "scale": np.full(features, 0.5, np.float32),
            "w1": _weights(rng, features, hidden),
            "b1": np.zeros(hidden, np.float32),
            "w2": _weights(rng, hidden, columns),
            "b2": np.zeros(columns, np.float32),
        },
    )


def classes(n: int, features: int = 5, columns: int = 3, seed: int = 1) -> tuple[npt.NDArray, ...]:
    """x float32 (n, features) and y int64 (n,) that depends on it."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, features)).astype(np.float32)
    return x, np.argmax(x[:, :columns], 1)


def _weights(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float32]:
    return (rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)
