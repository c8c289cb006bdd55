"""A user's own models, as ONNX graphs: a good one, a wrong one, and one that is far too slow.

Softmax regression on standardised features, written with onnx.helper, like a model
that was not trained by Shoal.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from demo.scenario import Scenario

F32 = npt.NDArray[np.float32]
OPSET = 17


class Burn(NamedTuple):
    """Artificial load: `times` passes of Erf over `width` numbers made from the input."""

    width: int
    times: int


#: Calibration load, timed on this machine.
SAMPLE = Burn(width=1 << 19, times=40)


class Linear(NamedTuple):
    """middle, spread: (F,); weight (F, C); bias (C,). A missing reading counts as the middle."""

    middle: F32
    spread: F32
    weight: F32
    bias: F32


def fit(scenario: Scenario) -> Linear:
    """Softmax regression on the scenario's newest data. Loads scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    readings = scenario.relabelled.only(scenario.features)
    X = np.array([[_number(cell) for cell in row] for row in readings.rows])
    classes = scenario.classes
    y = np.array([classes.index(label) for label in scenario.relabelled.column(scenario.label)])
    middle = np.nanmedian(X, axis=0)
    spread = np.nanstd(X, axis=0) + 1e-3
    Z = (np.where(np.isnan(X), middle, X) - middle) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is near enough
        model = LogisticRegression(C=0.5, max_iter=60).fit(Z, y)
    weight, bias = model.coef_, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps one column for two classes
        weight, bias = np.vstack([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return Linear(*(np.asarray(a, np.float32) for a in (middle, spread, weight.T, bias)))


def burn_for(model: Linear, seconds: float, timer: Callable[[], float]) -> Burn:
    """Work that takes about `seconds` on one idle core of this machine. Loads onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = build(model, burn=SAMPLE)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    row = model.middle[None, :]
    took = []
    for _ in range(8):
        began = timer()
        session.run(None, {"input": row})
        took.append(timer() - began)
    return Burn(SAMPLE.width, max(SAMPLE.times, round(seconds * SAMPLE.times / min(took))))


def build(model: Linear, *, rolled: int = 0, burn: Burn | None = None) -> bytes:
    """ONNX bytes: input (rows, F) float32, probabilities (rows, C) float32.

    rolled   answer each class as its neighbour so far on: it loads, and is wrong
    burn     work that changes nothing and cannot be folded away: it loads, is right, and is slow
    """
    import onnx
    from onnx import TensorProto, helper

    constants = {
        "middle": model.middle, "spread": model.spread,
        "weight": np.roll(model.weight, rolled, axis=1), "bias": np.roll(model.bias, rolled),
    }  # fmt: skip
    nodes = [
        helper.make_node("IsNaN", ["input"], ["gone"]),
        helper.make_node("Where", ["gone", "middle", "input"], ["known"]),
        helper.make_node("Sub", ["known", "middle"], ["centred"]),
        helper.make_node("Div", ["centred", "spread"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits" if burn is None else "cool"]),
    ]
    if burn is not None:
        nodes += _burning(helper, burn)
        constants["zero"] = np.zeros((), np.float32)
        constants["width"] = np.array([1, burn.width], np.int64)
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    features, classes = model.weight.shape
    graph = helper.make_graph(
        nodes,
        "softmax-regression",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", features])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", classes])],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="by-hand")
    onnx.checker.check_model(made, full_check=True)
    data: bytes = made.SerializeToString()
    return data


def _burning(helper: Any, burn: Burn) -> list[Any]:
    """Nodes from the input to a zero that no optimiser can know to be one.

    One number (the input's mean) is spread over a wide row, so the work is the same for any
    number of rows.
    """
    chain = [f"burn{i}" for i in range(burn.times + 1)]
    return [
        helper.make_node("ReduceMean", ["known"], ["spark"], axes=[0, 1], keepdims=1),
        helper.make_node("Expand", ["spark", "width"], [chain[0]]),
        *(
            helper.make_node("Erf", [before], [after])
            for before, after in itertools.pairwise(chain)
        ),
        helper.make_node("ReduceMean", [chain[-1]], ["ash"], axes=[0, 1], keepdims=1),
        helper.make_node("Mul", ["ash", "zero"], ["nothing"]),
        helper.make_node("Add", ["cool", "nothing"], ["logits"]),
    ]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
