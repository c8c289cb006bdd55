"""The trainer as on a device: a process of its own, with limits, that inference goes before."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from learning_devices import FEATURES, LABELS, FakeController, RoundDevice, attempt_of, some_rows
from shoal.agent.federated.io.trainer_process import SubprocessTrainer
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.installed.record import RoundState
from shoal.controller.training.gradient.make import step_graph
from shoal.controller.training.gradient.optimisers import Adam, Momentum, Optimiser
from shoal.errors import LinkError, RefusedError
from shoal.federated import messages
from shoal.federated.compression import decompress
from shoal.federated.config import Config
from shoal.federated.messages import Contribution
from shoal.federated.plan import Learning
from waiting import eventually

LONG = Learning(lr=0.001, epochs=100_000, batch=2)


@pytest.fixture
def controller(tmp_path: Path) -> FakeController:
    return FakeController(tmp_path)


@pytest.fixture
def device(controller: FakeController) -> Iterator[RoundDevice]:
    made = RoundDevice(controller, "cam-1", some_rows(60), trainer="process")
    yield made
    made.stop()


def prepared(device: RoundDevice, config: Config) -> TrainingJob:
    """The round's files in the sandbox, and the work on them."""
    urls = device.controller.urls()
    device.sandbox.fetch(config.plan.attempt, config, urls, lambda: False)
    return TrainingJob(
        kind="train", config=config, labels=LABELS, features=FEATURES, seed=b"s" * 32
    )


class Training:
    """One piece of work on a thread, as the agent runs it."""

    def __init__(self, device: RoundDevice, config: Config, **limits: float) -> None:
        work = prepared(device, config)
        most = {"memory_mb": 256, "cpu_s": 60, **limits}
        self.held, self.stopped = "", False
        self.made: TrainingResult | None = None
        self.error: Exception | None = None
        here = device.folder / "learning"
        trainer = SubprocessTrainer(here, dict(os.environ), **most)  # type: ignore[arg-type]

        def run() -> None:
            try:
                self.made = trainer.run(
                    config.plan.attempt, work, lambda: self.held, lambda: self.stopped
                )
            except (RefusedError, LinkError) as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def child(self) -> int:
        """Process id of the trainer, once it works; what it is doing is in /proc."""
        eventually(lambda: bool(children()))
        return children()[0]

    def end(self) -> None:
        self.stopped = True
        self.thread.join(30)
        assert not self.thread.is_alive()


def children() -> list[int]:
    """Trainers of this process."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for path in found for pid in path.read_text().split()]
    return [pid for pid in pids if b"shoal.agent.federated.io.trainer_process" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_ticks(pid: int) -> int:
    return int(stat(pid)[11]) + int(stat(pid)[12])


def test_a_device_learns_digits_in_a_process_of_its_own(device: RoundDevice) -> None:
    device.receive(device.controller.invite(1, learning=Learning(lr=0.1, epochs=30, batch=10)))
    device.call(1, messages.Start())
    said = device.contribution()
    after = device.controller.theta + decompress(said.update, device.controller.theta.size)
    device.controller.theta = after
    device.call(1, messages.Dismiss())
    (measured,) = device.receive(device.controller.measure(1))
    assert isinstance(measured, messages.Measured)
    assert measured.whole.correct > 0.9 * measured.whole.rows
    assert said.loss > 2 * measured.whole.loss / measured.whole.rows


@pytest.mark.parametrize("optimiser", [None, Momentum(), Adam()], ids=["sgd", "momentum", "adam"])
def test_the_process_trains_every_epoch_with_each_optimiser(
    controller: FakeController, optimiser: Optimiser | None
) -> None:
    device = RoundDevice(controller, "cam-0", some_rows(67), trainer="process")
    graph = step_graph(controller.prepared, optimiser).SerializeToString()
    config = controller.config(
        1, graph=controller.put(graph), learning=Learning(lr=0.01, epochs=3, batch=10)
    )
    training = Training(device, config)
    training.thread.join(60)
    assert training.error is None
    data = (device.path(1) / "contribution").read_bytes()
    said = msgspec.msgpack.decode(data, type=Contribution)
    assert said.steps == 21
    assert np.abs(decompress(said.update, controller.theta.size)).max() > 0


def test_training_rests_while_inference_is_busy_and_goes_on_after(device: RoundDevice) -> None:
    training = Training(device, device.controller.config(1, learning=LONG))
    pid = training.child()
    eventually(lambda: cpu_ticks(pid) > 20)
    training.held = "busy"
    eventually(lambda: stat(pid)[0] == "T")
    at = cpu_ticks(pid)
    assert cpu_ticks(pid) == at
    training.held = ""
    eventually(lambda: cpu_ticks(pid) > at + 5)
    training.end()
    assert isinstance(training.error, LinkError)
    assert not cmdline(pid)


def test_a_trainer_that_rests_is_ended_all_the_same(device: RoundDevice) -> None:
    training = Training(device, device.controller.config(1, learning=LONG))
    pid = training.child()
    training.held = "busy"
    eventually(lambda: stat(pid)[0] == "T")
    training.end()
    assert not cmdline(pid)


def test_a_trainer_has_the_lowest_priority_and_its_limits(device: RoundDevice) -> None:
    training = Training(device, device.controller.config(1, learning=LONG))
    pid = training.child()
    eventually(lambda: stat(pid)[16] == "19")

    def limit(name: str) -> str:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        return next(line for line in lines if name in line)

    eventually(lambda: f"{256 << 20}" in limit("data size"))
    eventually(lambda: " 60 " in limit("cpu time"))
    training.end()


@pytest.mark.parametrize(
    ("limits", "reason"), [({"memory_mb": 24}, "little-memory"), ({"cpu_s": 1}, "too-slow")]
)
def test_a_round_that_takes_too_much_is_refused_with_the_reason(
    device: RoundDevice, limits: dict[str, float], reason: str
) -> None:
    training = Training(device, device.controller.config(1, learning=LONG), **limits)
    training.thread.join(60)
    assert isinstance(training.error, RefusedError)
    assert training.error.reason == reason, training.error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 1e30, "epochs": 5}, "diverged"),
        ({"lr": 0.1, "terms": {"mu": 0.1}}, "other-terms"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_the_reason(
    device: RoundDevice, changes: dict, reason: str
) -> None:
    training = Training(device, device.controller.config(1, learning=Learning(**changes)))
    training.thread.join(60)
    assert isinstance(training.error, RefusedError)
    assert training.error.reason == reason, training.error


def test_a_graph_that_is_none_is_refused(device: RoundDevice) -> None:
    broken = device.controller.put(b"no graph at all")
    training = Training(device, device.controller.config(1, graph=broken))
    training.thread.join(60)
    assert isinstance(training.error, RefusedError)
    assert training.error.reason == "unusable-model"


def test_a_trainer_dies_with_the_agent(device: RoundDevice) -> None:
    config = device.controller.config(1, learning=LONG)
    work = prepared(device, config)
    packed = device.folder / "work"
    packed.write_bytes(msgspec.msgpack.encode(work))
    script = textwrap.dedent(f"""
        import os, pathlib, msgspec
        from shoal.agent.federated.io.trainer_process import SubprocessTrainer
        from shoal.agent.federated.trainer import TrainingJob
        work = msgspec.msgpack.decode(pathlib.Path({str(packed)!r}).read_bytes(), type=TrainingJob)
        folder = pathlib.Path({str(device.folder / "learning")!r})
        trainer = SubprocessTrainer(folder, dict(os.environ), memory_mb=256, cpu_s=60)
        trainer.run({attempt_of(1)!r}, work, str, lambda: False)
    """)
    with subprocess.Popen([sys.executable, "-c", script]) as agent:
        task = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        eventually(lambda: bool(task.read_text().split()))
        child = int(task.read_text().split()[0])
        eventually(lambda: b"io.train" in cmdline(child) and cpu_ticks(child) > 20)
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    eventually(lambda: not cmdline(child))


def test_killed_in_the_middle_of_training_a_device_trains_again_and_sends_one_update(
    device: RoundDevice, controller: FakeController
) -> None:
    device.receive(controller.invite(1))
    pending: list = []
    device._spawn = pending.append  # type: ignore[method-assign]
    device.stop()
    device.start()
    device.call(1, messages.Start())
    assert device.state == RoundState.TRAINING  # killed here: the job never ended
    del device._spawn
    device.restart()
    device.settle()
    assert device.state == RoundState.SENT
    assert len({piece.chunk.digest for piece in device.said(messages.Piece)}) == 1
    assert device.journal.participation().last
