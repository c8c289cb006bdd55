"""The same updates through Flower's strategies give the same model.

Flower lives in an environment of its own: .venv-peers/flower, or SHOAL_FLOWER_PYTHON names it.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shelves import file_shelf
from shoal.controller.federated.strategy import strategy_of
from shoal.controller.federated.updates import Server, Update
from unit.federated.peers import python_with

SIDE = Path(__file__).with_name("flower_side.py")
ROUNDS, DEVICES, SIZE, LOSS = 4, 13, 2_000, 0.8
SETTINGS = {
    "fedavg": {},
    "fedavgm": {"lr": 0.7, "momentum": 0.8},
    "fedprox": {"mu": 0.1},
    "fedadam": {"lr": 0.02, "tau": 1e-3},
    "fedyogi": {"lr": 0.02, "tau": 1e-3},
    "fedadagrad": {"lr": 0.02, "tau": 1e-3},
    "median": {},
    "trimmed-mean": {"cut": 0.2},
    "krum": {"malicious": 2},
    "multi-krum": {"malicious": 2, "keep": 5},
    "bulyan": {"malicious": 2},
    "q-fedavg": {"q": 0.3, "lr": 0.1},
}


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "theta": random.normal(size=SIZE).astype(np.float32),
        "updates": (random.normal(size=(ROUNDS, DEVICES, SIZE)) * 0.1).astype(np.float32),
        "examples": random.integers(5, 500, DEVICES),
        "loss": np.array(LOSS),
    }


@pytest.fixture(scope="module")
def flower(given: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("flower")
    np.savez(folder / "in.npz", **given)
    run = [
        python_with("flwr", "flower"),
        str(SIDE),
        str(folder / "in.npz"),
        str(folder / "out.npz"),
    ]
    environment = {**os.environ, "FLWR_HOME": str(folder)}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_updates_give_the_model_that_flower_gives(
    name: str, given: dict[str, np.ndarray], flower: dict[str, np.ndarray]
) -> None:
    strategy, server = strategy_of(name, SETTINGS[name]), Server(theta=given["theta"])
    for number, updates in enumerate(given["updates"]):
        gathering = strategy.gather(SIZE, file_shelf(SIZE))
        for i, delta in enumerate(updates):
            rows = int(given["examples"][i])
            gathering.add(Update(device=f"d{i:02}", delta=delta, examples=rows, loss=LOSS))
        server = strategy.advance(server, gathering.result())
        np.testing.assert_allclose(server.theta, flower[name][number], rtol=0, atol=1e-6)
