"""Lower scikit-learn's operators (ai.onnx.ml) to plain ones, so that they can be trained.

Outputs stay the same to rounding. Operators without a gradient, such as trees, are refused with
an alternative.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from shoal.controller.training.gradient.graph import OWN, Builder, Node

DOMAIN = "ai.onnx.ml"
Lower = Callable[[Builder, Node], None]


def scaler(b: Builder, node: Node) -> None:
    """(x - offset)·scale."""
    centred = b.op("Sub", node.inputs[0], b.floats(node.attributes["offset"]))
    b.into(node.outputs[0], "Mul", centred, b.floats(node.attributes["scale"]))


def normalizer(b: Builder, node: Node) -> None:
    """Rows of norm 1; a softmax is left unchanged: its rows have norm 1."""
    x, out = node.inputs[0], node.outputs[0]
    producer = next((n for n in b.nodes if x in n.output), None)
    norm = node.get("norm", "MAX")
    if norm == "L1" and producer is not None and producer.op_type == "Softmax":
        b.into(out, "Identity", x)
    elif norm == "MAX":
        raise node.refuse("norm MAX", "scale with StandardScaler or MinMaxScaler")
    else:
        b.into(out, "LpNormalization", x, axis=1, p=1 if norm == "L1" else 2)


def imputer(b: Builder, node: Node) -> None:
    x = node.inputs[0]
    values = node.get("imputed_value_floats", None)
    if not values:
        raise node.refuse("it imputes whole numbers", "train on float32 features")
    replaced = node.get("replaced_value_float", 0.0)
    missing = b.op("IsNaN", x) if np.isnan(replaced) else b.op("Equal", x, b.floats(replaced))
    b.into(node.outputs[0], "Where", missing, b.floats(values), x)


def linear_regressor(b: Builder, node: Node) -> None:
    if node.get("post_transform", "NONE") != "NONE":
        raise node.refuse(f"post_transform {node.attributes['post_transform']}", "use none")
    targets = node.get("targets", 1)
    _linear(b, node, node.outputs[0], targets, node.get("intercepts", None))


def linear_classifier(b: Builder, node: Node) -> None:
    """The scores only: the label branch was removed before."""
    transform = node.get("post_transform", "NONE")
    intercepts: list[float] = list(node.get("intercepts", None) or [0.0])
    classes = max(
        len(node.get("classlabels_ints", None) or node.get("classlabels_strings", None) or []),
        len(intercepts),
    )
    scores = node.outputs[1]
    if classes == 2 and transform == "LOGISTIC":
        _two_classes(b, node, scores, intercepts)
    elif transform in ("SOFTMAX", "LOGISTIC"):
        logits = b.name("logits")
        _linear(b, node, logits, classes, intercepts)
        shape = {"SOFTMAX": ("Softmax", {"axis": 1}), "LOGISTIC": ("Sigmoid", {})}
        kind, attributes = shape[transform]
        b.into(scores, kind, logits, **attributes)
    elif transform == "NONE":
        _linear(b, node, scores, classes, intercepts)
    else:
        raise node.refuse(f"post_transform {transform}", "use logistic regression")


def _two_classes(b: Builder, node: Node, scores: str, intercepts: list[float]) -> None:
    """One row of weights for class 1, however many the exporter wrote: [1 - σ, σ]."""
    rows = np.asarray(node.attributes["coefficients"], np.float64).reshape(len(intercepts), -1)
    if len(rows) == 2 and not (
        np.allclose(rows[0], -rows[1]) and np.allclose(intercepts[0], -intercepts[1])
    ):
        raise node.refuse("its two classes have separate weights", "use logistic regression")
    logit = b.name("logit")
    _gemm(b, node, logit, rows[-1:], np.asarray(intercepts[-1:]))
    yes = b.op("Sigmoid", logit)
    b.into(scores, "Concat", b.op("Sub", b.floats(1.0), yes), yes, axis=1)


def _linear(b: Builder, node: Node, out: str, rows: int, intercepts: list[float] | None) -> None:
    weights = np.asarray(node.attributes["coefficients"]).reshape(rows, -1)
    bias = np.asarray(intercepts or 0.0)
    _gemm(b, node, out, weights, np.broadcast_to(bias, rows))


def _gemm(b: Builder, node: Node, out: str, weights: npt.NDArray, bias: npt.NDArray) -> None:
    """x·Wᵀ + b, its initialisers named after the node, for the layout."""
    title = node.proto.name or node.kind
    names = [f"{title}.coefficients", f"{title}.intercepts"]
    for name, value in zip(names, (weights, bias), strict=True):
        b.named(name, np.asarray(value, np.float32))
    b.into(out, "Gemm", node.inputs[0], *names, transB=1)


_TREES = "trees have no gradient: train mlp or logistic instead"
_KERNELS = "support vectors are not trained by gradient: use mlp or logistic"
_HINTS = {
    "TreeEnsemble": _TREES,
    "TreeEnsembleClassifier": _TREES,
    "TreeEnsembleRegressor": _TREES,
    "SVMClassifier": _KERNELS,
    "SVMRegressor": _KERNELS,
    "ZipMap": 'export with options={"zipmap": False}',
    "LabelEncoder": "encode categories before training: features are float32",
    "OneHotEncoder": "encode categories before training: features are float32",
}
LOWERED: dict[str, Lower] = {
    "Scaler": scaler,
    "Normalizer": normalizer,
    "Imputer": imputer,
    "LinearRegressor": linear_regressor,
    "LinearClassifier": linear_classifier,
}


def lower(nodes: Sequence[NodeProto]) -> Builder:
    """Nodes with scikit-learn's operators lowered; ModelError names one that cannot be."""
    b = Builder({}, {}, prefix=f"{OWN}plain/")
    for proto in nodes:
        if proto.domain != DOMAIN:
            b.nodes.append(proto)
            continue
        node = Node(proto)
        if node.kind not in LOWERED:
            hint = _HINTS.get(node.kind, "export the model with plain operators")
            raise node.refuse("it cannot be trained through", hint)
        LOWERED[node.kind](b, node)
    return b
