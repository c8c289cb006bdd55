"""Flower's half of test_against_flower.py; runs in an environment that has flwr, and not Shoal.

`python flower_side.py IN.npz OUT.npz`: theta (P,), updates (rounds, N, P), examples (N,), loss.
Every strategy starts from theta; a round's results are its theta plus that round's updates. In
float64, so that what is compared is the strategy and not Flower's rounding in float32.
"""

import logging
import os
import sys
from collections.abc import Callable

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy as flower

logging.disable(logging.WARNING)


def fit(parameters, examples):
    status = Status(Code.OK, "")
    return FitRes(status, ndarrays_to_parameters([parameters]), int(examples), {})


def rounds(make: Callable, before=lambda strategy, theta: None):
    strategy, theta, seen = make(), start_theta, []
    for number, updates in enumerate(given["updates"], start=1):
        before(strategy, theta)
        pairs = zip(updates, given["examples"], strict=True)
        results = [(None, fit(theta + delta, examples)) for delta, examples in pairs]
        parameters, _ = strategy.aggregate_fit(number, results, [])
        theta = np.asarray(parameters_to_ndarrays(parameters)[0], np.float64)
        seen.append(theta)
    return np.stack(seen)


def start():
    return ndarrays_to_parameters([start_theta])


def remember(strategy, theta):
    strategy.pre_weights = [theta]


given = np.load(sys.argv[1])
start_theta = given["theta"].astype(np.float64)
loss = float(given["loss"])
STRATEGIES = {
    "fedavg": lambda: flower.FedAvg(),
    "fedavgm": lambda: flower.FedAvgM(
        initial_parameters=start(), server_learning_rate=0.7, server_momentum=0.8
    ),
    "fedprox": lambda: flower.FedProx(proximal_mu=0.1),
    "fedadam": lambda: flower.FedAdam(initial_parameters=start(), eta=0.02, tau=1e-3),
    "fedyogi": lambda: flower.FedYogi(initial_parameters=start(), eta=0.02, tau=1e-3),
    "fedadagrad": lambda: flower.FedAdagrad(initial_parameters=start(), eta=0.02, tau=1e-3),
    "median": lambda: flower.FedMedian(),
    "trimmed-mean": lambda: flower.FedTrimmedAvg(beta=0.2),
    "krum": lambda: flower.Krum(num_malicious_clients=2),
    "multi-krum": lambda: flower.Krum(num_malicious_clients=2, num_clients_to_keep=5),
    "bulyan": lambda: flower.Bulyan(num_malicious_clients=2, to_keep=0),
    "q-fedavg": lambda: flower.QFedAvg(
        q_param=0.3, qffl_learning_rate=0.1, evaluate_fn=lambda *_: (loss, {})
    ),
}
found = {
    name: rounds(make, remember if name == "q-fedavg" else lambda *_: None)
    for name, make in STRATEGIES.items()
}
np.savez(sys.argv[2], **found)
