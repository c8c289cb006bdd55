"""Flower's half of the bench `federated`; runs in an environment with flwr[simulation] and
onnxruntime, and not Shoal.

`python flower_rounds.py TRAIN.onnx SIZE DEVICES ROUNDS`: FedAvg in Flower's simulation; every
client runs the very train graph that Shoal's devices run, on rows of its own. Prints JSON: seconds
of each round, bytes of parameters up and down a round.
"""

# Its libraries are in the peer's own environment, not in this one.
# mypy: ignore-errors

import json
import logging
import sys
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

logging.disable(logging.WARNING)
STEPS, BATCH, COLUMNS, CLASSES = 10, 32, 784, 10


def main(path: str, size: int, devices: int, rounds: int) -> None:
    found = {}
    client, server = apps(path, size, devices, rounds, found.update)
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, devices, backend_config=resources)
    print(json.dumps(found))


def apps(path: str, size: int, devices: int, rounds: int, keep) -> tuple[ClientApp, ServerApp]:
    """What a client and what the server does, wherever they run; keep: takes what was found."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        session, theta = _session(path), message.content["arrays"].to_numpy_ndarrays()[0]
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        x = rng.standard_normal((STEPS * BATCH, COLUMNS)).astype(np.float32)
        y, lr = rng.integers(0, CLASSES, STEPS * BATCH), np.array(0.05, np.float32)
        for start in range(0, STEPS * BATCH, BATCH):
            some = slice(start, start + BATCH)
            feed = {"theta": theta, "x": x[some], "y": y[some], "lr": lr}
            theta = session.run(["theta_out"], feed)[0]
        metrics = MetricRecord({"num-examples": STEPS * BATCH})
        content = RecordDict({"arrays": ArrayRecord([theta]), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=devices,
                         min_available_nodes=devices)  # fmt: skip
        theta = ArrayRecord([np.zeros(size, np.float32)])
        strategy.start(grid=grid, initial_arrays=theta, num_rounds=rounds)
        keep({"seconds": strategy.seconds, "bytes": strategy.moved / rounds})

    return client, server


class Timed(FedAvg):
    """FedAvg that notes when a round's instructions are made and when its answers are averaged."""

    def configure_train(self, *arguments, **named):
        self.__dict__.setdefault("seconds", [])
        self.__dict__.setdefault("moved", 0)
        self._began = time.perf_counter()
        messages = list(super().configure_train(*arguments, **named))
        self.moved += sum(_weight(message) for message in messages)
        return messages

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.moved += sum(_weight(reply) for reply in replies)
        result = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self._began)
        return result


def _weight(message: Message) -> int:
    records = message.content.array_records.values() if message.has_content() else ()
    return sum(len(array.data) for record in records for array in record.values())


_KEPT: dict = {}


def _session(path: str):
    """One a process: a worker serves many clients."""
    if path not in _KEPT:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        _KEPT[path] = onnxruntime.InferenceSession(path, options)
    return _KEPT[path]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
