"""The same steps as torch's, where torch is installed: it is no part of Shoal.

Teacher-forced: both start every step from torch's numbers, so one step's difference is seen and
not the drift of two hundred. Forward models come from torch's own exporter.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import prepare, step_graph
from shoal.controller.training.gradient.optimisers import Adam, Momentum, Optimiser, Sgd
from unit.training.gradient.running import Gradient, Trainer

torch = pytest.importorskip("torch", reason="torch is not installed: it is only an oracle here")
pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
nn = torch.nn
STEPS, CLOSE, ENOUGH = 200, 1e-6, 0.95


class Net(NamedTuple):
    """make builds the module; row is one row's shape; columns the classes or the output's width."""

    name: str
    make: Callable[[], Any]
    row: tuple[int, ...]
    loss: str
    columns: int


def sequence(*layers: Any) -> Callable[[], Any]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def layer(kind: str, *sizes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(nn, kind)(*sizes, **options)


class Recurrent(nn.Module):
    def __init__(self, kind: str, features: int, classes: int, **options: Any) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(features, 12, batch_first=True, **options)
        self.head = nn.Linear(12 * (2 if options.get("bidirectional") else 1), classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.cell(x)[0][:, -1])


class Mobile(nn.Module):
    """Depthwise and pointwise convolutions with batch norms that have seen data, and relu6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 10)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(16)])
        for norm in self.norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.norms[0](self.first(x)))
        h = nn.functional.relu6(self.norms[1](self.point(self.depth(h))))
        return self.head(nn.functional.adaptive_avg_pool2d(h, 1).flatten(1))


NETS = [
    Net("linear regression", layer("Linear", 13, 1), (13,), "mse", 1),
    Net("logistic regression", layer("Linear", 64, 10), (64,), "cross-entropy", 10),
    Net(
        "mlp",
        sequence(
            layer("Linear", 64, 128), nn.ReLU, layer("Linear", 128, 64), nn.ReLU,
            layer("Linear", 64, 10),
        ),
        (64,), "cross-entropy", 10,
    ),
    Net(
        "two classes",
        sequence(layer("Linear", 30, 16), nn.Sigmoid, layer("Linear", 16, 1)),
        (30,), "bce", 1,
    ),
    Net(
        "gelu and layer norm",
        sequence(layer("Linear", 64, 32), nn.GELU, layer("LayerNorm", 32), layer("Linear", 32, 10)),
        (64,), "cross-entropy", 10,
    ),
    Net(
        "autoencoder",
        sequence(
            layer("Linear", 32, 16), nn.Tanh, layer("Linear", 16, 4), nn.Tanh,
            layer("Linear", 4, 16), nn.ELU, layer("Linear", 16, 32),
        ),
        (32,), "mse", 32,
    ),
    Net(
        "huber",
        sequence(layer("Linear", 8, 16), nn.Hardswish, layer("Linear", 16, 2)),
        (8,), "huber", 2,
    ),
    Net(
        "cnn 1-D",
        sequence(
            layer("Conv1d", 3, 8, 7, stride=3, dilation=2, padding=1), nn.LeakyReLU,
            layer("MaxPool1d", 3, 2, 1), layer("Conv1d", 8, 16, 4, stride=2), nn.ReLU,
            layer("AvgPool1d", 2), nn.Flatten, layer("Linear", 48, 4),
        ),
        (3, 100), "cross-entropy", 4,
    ),
    Net(
        "cnn 2-D",
        sequence(
            layer("Conv2d", 1, 8, 3), nn.ReLU, layer("MaxPool2d", 2), layer("Conv2d", 8, 16, 3),
            nn.ReLU, layer("MaxPool2d", 2), nn.Flatten, layer("Linear", 400, 10),
        ),
        (1, 28, 28), "cross-entropy", 10,
    ),
    Net("depthwise, frozen batch norm", Mobile, (1, 28, 28), "cross-entropy", 10),
    Net("gru", lambda: Recurrent("GRU", 5, 3), (10, 5), "cross-entropy", 3),
    Net("lstm", lambda: Recurrent("LSTM", 5, 3, bidirectional=True), (10, 5), "cross-entropy", 3),
]  # fmt: skip
OPTIMISERS: list[tuple[Optimiser, float, Callable[[Any], Any]]] = [
    (Sgd(), 0.05, lambda p: torch.optim.SGD(p, 0.05)),
    (Momentum(), 0.02, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9)),
    (Adam(), 0.002, lambda p: torch.optim.Adam(p, 0.002)),
]
LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss,
    "bce": nn.BCEWithLogitsLoss,
    "mse": nn.MSELoss,
    "huber": nn.HuberLoss,
}


@pytest.fixture(scope="module", params=NETS, ids=lambda net: net.name)
def twin(request: pytest.FixtureRequest) -> "Twin":
    return Twin(request.param)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda item: item[0].name)
def test_two_hundred_steps_are_torchs_own(twin: "Twin", optimiser: Any) -> None:
    differences = teacher_forced(twin, *optimiser)
    close = (differences < CLOSE).mean()
    print(
        f"{twin.net.name}, {optimiser[0].name}: median {np.median(differences):.1e},"
        f" worst {differences.max():.1e}, under 1e-6: {close:.1%}"
    )
    assert close >= ENOUGH


@pytest.mark.timeout(600)
def test_two_hundred_gradients_are_those_that_torch_has_in_float64(twin: "Twin") -> None:
    """Torch's own float32 gradients of depthwise convolutions are 25 times further from them."""
    twin.reset()
    gradient, rng, found = Gradient(twin.prepared), np.random.default_rng(2), []
    for _ in range(STEPS):
        x, y = batch(twin.net, rng)
        theta = twin.theta()
        own, _ = gradient(theta, x, y)
        right = twin.exact_gradient(x, y)
        found.append(np.abs(own - right).max() / np.abs(right).max())
        twin.descend(right, 0.05)
    close = (np.array(found) < CLOSE).mean()
    print(
        f"{twin.net.name}, gradient: median {np.median(found):.1e}, worst {max(found):.1e},"
        f" under 1e-6 of the largest: {close:.1%}"
    )
    assert close >= ENOUGH


def teacher_forced(twin: "Twin", optimiser: Optimiser, lr: float, theirs: Any) -> npt.NDArray:
    """Largest difference in any parameter after each of 200 steps from the same numbers."""
    twin.reset()
    own = Trainer(step_graph(twin.prepared, optimiser), twin.theta())
    stepper, loss_of = theirs(twin.module.parameters()), LOSSES[twin.net.loss]()
    rng, found = np.random.default_rng(1), []
    for _ in range(STEPS):
        x, y = batch(twin.net, rng)
        own.theta, own.state = twin.theta(), twin.state(stepper, own.spec.state)
        own.step(x, y, lr)
        stepper.zero_grad()
        loss_of(twin.module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        stepper.step()
        found.append(np.abs(own.theta - twin.theta()).max())
    return np.array(found)


class Twin:
    """A torch module and its ONNX self, and which number of one is which of the other.

    order   theta = torch's parameters back to back, in this order: found by exporting a module
            whose parameters are 0, 1, 2, ...
    """

    def __init__(self, net: Net) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.net, self.module = net, net.make().eval()
        self.start = self._values()
        self.prepared = prepare(exported(self.module, net), Loss(net.loss))
        self._set(np.arange(self.start.size, dtype=np.float32))
        self.order = prepare(exported(self.module, net), Loss(net.loss)).theta.astype(int)
        assert sorted(self.order) == list(range(self.start.size))
        self.reset()

    def reset(self) -> None:
        self._set(self.start)

    def theta(self) -> npt.NDArray[np.float32]:
        return self._values()[self.order]

    def state(self, stepper: Any, size: int) -> npt.NDArray[np.float32]:
        """torch's optimiser state as ours is laid out; zeros before the first step."""
        kept = [stepper.state[p] for p in self.module.parameters() if stepper.state[p]]
        if not kept or not size:
            return np.zeros(size, np.float32)
        slots = [name for name in ("momentum_buffer", "exp_avg", "exp_avg_sq") if name in kept[0]]
        vectors = [np.concatenate([one[name].numpy().ravel() for one in kept]) for name in slots]
        return np.concatenate([vector[self.order] for vector in vectors])

    def exact_gradient(self, x: npt.NDArray, y: npt.NDArray) -> npt.NDArray[np.float64]:
        double = copy.deepcopy(self.module).double()
        labels = torch.from_numpy(y)
        labels = labels.double() if labels.is_floating_point() else labels
        LOSSES[self.net.loss]()(double(torch.from_numpy(x).double()), labels).backward()
        return np.concatenate([p.grad.numpy().ravel() for p in double.parameters()])[self.order]

    def descend(self, gradient: npt.NDArray[np.float64], lr: float) -> None:
        values = self._values()
        values[self.order] -= (lr * gradient).astype(np.float32)
        self._set(values)

    def _values(self) -> npt.NDArray[np.float32]:
        return np.concatenate([p.detach().numpy().ravel() for p in self.module.parameters()])

    def _set(self, values: npt.NDArray[np.float32]) -> None:
        at = 0
        with torch.no_grad():
            for p in self.module.parameters():
                p.copy_(torch.from_numpy(values[at : at + p.numel()].reshape(p.shape)))
                at += p.numel()


def exported(module: Any, net: Net) -> onnx.ModelProto:
    """What torch's own exporter writes, batch free; unoptimised where it would fold a norm."""
    fold = not isinstance(module, Mobile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module, (torch.zeros((2, *net.row)),), dynamo=True, opset_version=18, verbose=False,
            optimize=fold, input_names=["x"], dynamic_shapes=({0: torch.export.Dim("N")},),
        ).model_proto  # fmt: skip


def batch(net: Net, rng: np.random.Generator) -> tuple[npt.NDArray, npt.NDArray]:
    n = int(rng.integers(1, 40))
    x = rng.standard_normal((n, *net.row)).astype(np.float32)
    if net.loss == "cross-entropy":
        return x, rng.integers(0, net.columns, n)
    if net.loss == "bce":
        return x, rng.integers(0, 2, (n, net.columns)).astype(np.float32)
    return x, rng.standard_normal((n, net.columns)).astype(np.float32)
