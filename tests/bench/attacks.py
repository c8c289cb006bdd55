"""Accuracy of every strategy while a fifth of the devices lies: non-IID digits, by train graph."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.report import Found, Row
from shoal.controller.federated.gathering import MemoryShelf
from shoal.controller.federated.strategy import Strategy, strategy_of
from shoal.controller.federated.updates import Server, Update
from shoal.controller.gradient.losses import Loss
from shoal.controller.gradient.make import prepare, step_graph
from shoal.params import F32, TrainSpec, spec_of

DEVICES, LIARS, EPOCHS, BATCH, LR = 50, 10, 2, 10, 0.1
TARGET = 0  # what the backdoor's mark is to be taken for
STRATEGIES: dict[str, dict[str, float]] = {
    "fedavg": {},
    "norm-clipping": {"bound": 0.5},
    "median": {},
    "trimmed-mean": {"cut": 0.2},
    "krum": {"malicious": LIARS},
    "multi-krum": {"malicious": LIARS, "keep": 20},
    "bulyan": {"malicious": LIARS},
}
ATTACKS = ("none", "label flip", "sign flip", "scaled update", "backdoor")


class Images(NamedTuple):
    """x float32 (N, 64) in 0..1, y int64 (N,)."""

    x: F32
    y: npt.NDArray[np.int64]

    def only(self, rows: npt.NDArray) -> "Images":
        return Images(self.x[rows], self.y[rows])


def run(*, quick: bool) -> Found:
    """A row for every strategy under every attack, beside FedAvg where nobody lies."""
    rounds, seeds = (2, 1) if quick else (30, 3)
    table = {
        (name, attack): np.mean(
            [_federated(strategy_of(name, settings), attack, rounds, s) for s in range(seeds)], 0
        )
        for name, settings in STRATEGIES.items()
        for attack in ATTACKS
    }
    raw = float(table["fedavg", "none"][0])
    rows = [_row(f"{n}, {a}", float(v[0]), raw) for (n, a), v in table.items()]
    marked = {f"backdoor taken, {name}": f"{table[name, 'backdoor'][1]:.3f}" for name in STRATEGIES}
    return Found(rows=rows, notes=marked)


def _row(what: str, ours: float, raw: float) -> Row:
    return Row(
        what=what,
        unit="accuracy",
        ours=ours,
        against="fedavg, none",
        raw=raw,
        ratio=ours / raw,
        over=ours - raw,
    )


def _federated(strategy: Strategy, attack: str, rounds: int, seed: int) -> tuple[float, float]:
    """(accuracy on held-back images, share of marked images taken for TARGET)."""
    random = np.random.default_rng(seed)
    homes, test = _split(random)
    theta, session, spec = _model(seed)
    server = Server(theta=theta)
    for _ in range(rounds):
        gathering = strategy.gather(theta.size, MemoryShelf())
        for i, home in enumerate(homes):
            lies = i < LIARS and attack != "none"
            rows = _poisoned(home, attack, random) if lies else home
            delta = _trained(session, server.theta, rows, random) - server.theta
            if lies:
                delta = _twisted(delta, attack)
            gathering.add(Update(device=f"d{i:02}", delta=delta, examples=len(rows.y)))
        server = strategy.advance(server, gathering.result())
    answers = _answers(spec, server.theta)
    clean = float((answers(test.x) == test.y).mean())
    others = test.only(test.y != TARGET)
    return clean, float((answers(_marked(others.x)) == TARGET).mean())


def _split(random: np.random.Generator) -> tuple[list[Images], Images]:
    """Every device its own mixture of digits (Dirichlet 0.5), at least ten images."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    all_of_them = Images((x / 16).astype(np.float32), y.astype(np.int64))
    order = random.permutation(len(y))
    learn, test = order[:1437], order[1437:]
    homes: list[list[int]] = [[] for _ in range(DEVICES)]
    for digit in range(10):
        of_it = learn[y[learn] == digit]
        cuts = np.cumsum(random.dirichlet([0.5] * DEVICES) * len(of_it)).astype(int)[:-1]
        for home, part in zip(homes, np.split(of_it, cuts), strict=True):
            home.extend(part.tolist())
    for home in homes:
        home.extend(random.choice(learn, max(0, 10 - len(home))).tolist())
    return [all_of_them.only(np.array(home)) for home in homes], all_of_them.only(test)


def _poisoned(home: Images, attack: str, random: np.random.Generator) -> Images:
    if attack == "label flip":
        return Images(home.x, 9 - home.y)
    if attack == "backdoor":
        half = random.random(len(home.y)) < 0.5
        marked = np.where(half[:, None], _marked(home.x), home.x)
        return Images(marked, np.where(half, TARGET, home.y))
    return home


def _marked(x: F32) -> F32:
    """Three bright pixels in a corner that is dark in nearly every image."""
    marked = x.copy()
    marked[:, [0, 1, 8]] = 1
    return marked


def _twisted(delta: F32, attack: str) -> F32:
    factors = {"sign flip": -4.0, "scaled update": 20.0, "backdoor": 4.0}
    return delta * np.float32(factors.get(attack, 1.0))


def _trained(
    session: onnxruntime.InferenceSession, theta: F32, rows: Images, random: np.random.Generator
) -> F32:
    lr = np.array(LR, np.float32)
    for _ in range(EPOCHS):
        order = random.permutation(len(rows.y))
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            feed = {"theta": theta, "x": rows.x[some], "y": rows.y[some], "lr": lr}
            theta = session.run(["theta_out"], feed)[0]
    return theta


def _model(seed: int) -> tuple[F32, onnxruntime.InferenceSession, TrainSpec]:
    random = np.random.default_rng(seed)
    layers = {"w0": (64, 64), "b0": (64,), "w1": (64, 10), "b1": (10,)}
    numbers = [
        numpy_helper.from_array((random.normal(size=s) * 0.15).astype(np.float32), name)
        for name, s in layers.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    p = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "digits", [x], [p], numbers)
    opset = [helper.make_opsetid("", 18)]
    prepared = prepare(
        helper.make_model(graph, opset_imports=opset, ir_version=9), Loss("cross-entropy")
    )
    session = _session(step_graph(prepared))
    return prepared.theta, session, spec_of(session.get_modelmeta().custom_metadata_map)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def _answers(spec: TrainSpec, theta: F32) -> Callable[[F32], npt.NDArray[np.int64]]:
    by = {name.rpartition("/")[2]: value for name, value in spec.split(theta).items()}
    return lambda x: (np.maximum(x @ by["w0"] + by["b0"], 0) @ by["w1"] + by["b1"]).argmax(1)
