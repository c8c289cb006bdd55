"""A training fleet for the bench `federated`: a served controller and agents in few processes.

Devices are enrolled by hand (certificate, trusted roots, settings, a release in its slot, rows):
what is measured are rounds.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from bench.controllers import add_devices, add_release, make_controller
from bench.releases import CLASSES, MODEL, Release, install, make_release, perceptron
from bench.round_tasks import TASK, add_task
from shoal.agent.federated.io.row_buffer import BUFFER, Buffer, Limits
from shoal.agent.host.io import config
from shoal.agent.host.io import folder as names
from shoal.agent.identity.io.enrol import key_pem, make_csr
from shoal.controller.federated.records import Round
from shoal.controller.federated.rounds import rounds
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.host.context import Context
from shoal.controller.store import tables
from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import prepare, step_graph
from shoal.federated.plan import Compression

COLUMNS, HIDDEN, ROWS = 784, (128,), 320
PATIENCE_S = 300.0
#: Agents in one process: their files and sockets are 1024 at most, for select.
TOGETHER = 50
INT8 = Compression(kind="int8")


class Lesson(NamedTuple):
    """graph: the train graph as bytes; size: of theta."""

    release: Release
    graph: bytes
    theta: np.ndarray

    @property
    def size(self) -> int:
        return int(self.theta.size)


def make_lesson() -> Lesson:
    """784-128-10, as large as a first network for handwritten digits."""
    forward = perceptron(COLUMNS, HIDDEN)
    prepared = prepare(onnx.ModelProto.FromString(forward), Loss("cross-entropy"))
    graph = step_graph(prepared).SerializeToString()
    return Lesson(make_release(forward, features=COLUMNS), graph, prepared.theta)


def learn(
    folder: Path, lesson: Lesson, devices: int, count: int, compression: Compression
) -> list[Round]:
    """Run rounds with all devices; TimeoutError."""
    ctx = make_controller(folder / "controller")
    release = add_release(ctx, lesson.release)
    folders = [folder / f"d{i:03}" for i in range(devices)]
    add_devices(ctx, [one.name for one in folders])
    authority = Authority.open(folder / "controller" / "pki")
    for number, one in enumerate(folders):
        _seed(one, ctx, authority, lesson, number)
    features = [f"x{j}" for j in range(COLUMNS)]
    labels = [str(c) for c in range(CLASSES)]
    with _served(folder / "controller"), _running(folders):
        _until(lambda: _serving(ctx, release) == devices, "every device serves")
        add_task(
            ctx, lesson.graph, lesson.theta, [one.name for one in folders],
            compression=compression, features=features, labels=labels,
        )  # fmt: skip
        rounds.start(ctx, actor="bench", task=TASK, rounds=count)
        _until(lambda: rounds.get_task(ctx, TASK).state != "running", "the rounds are done")
        found = rounds.list_rounds(ctx, task=TASK)[::-1]
    ctx.store.close()
    return found


def _serving(ctx: Context, release: str) -> int:
    with ctx.store.read() as db:
        found = db.execute(select(tables.device.c.online, tables.device.c.releases))
        return sum(row.online and row.releases.get(MODEL) == release for row in found)


def _seed(folder: Path, ctx: Context, authority: Authority, lesson: Lesson, number: int) -> None:
    """Write an agent folder as after enrolment and a rollout, with rows."""
    folder.mkdir()
    network, here = ctx.settings.network, folder / names.LEARNING
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_device(make_csr(key, folder.name), folder.name, time.time())
    wanted = config.Settings(
        device=config.Device(name=folder.name, site="here", profile="generic"),
        controller=config.Controller(
            url=f"https://localhost:{network.port}",
            broker=f"mqtts://localhost:{network.mqtt}",
            artifacts=f"https://localhost:{network.artifacts}",
        ),
        learning=config.LearningSettings(cohort=2, celsius=0.0),
        log_level="ERROR",
    )
    (folder / names.SETTINGS).write_text(config.dump(wanted))
    (folder / names.CERTIFICATE).write_text(issued.certificate)
    (folder / names.KEY).write_bytes(key_pem(key))
    (folder / names.CA).write_text(authority.bundle)
    (folder / names.ROOT).write_bytes(ctx.signer.root)
    (folder / names.DIRECTOR).write_bytes(ctx.signer.director_root)
    install(lesson.release, folder / names.MODELS)
    here.mkdir()
    rng = np.random.default_rng(number)
    x = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    buffer = Buffer(here / BUFFER, Limits(64 << 20, 100_000, 0), time.time)
    features = [f"x{j}" for j in range(COLUMNS)]
    buffer.add(MODEL, features, x, [str(y) for y in rng.integers(0, CLASSES, ROWS)])
    buffer.flush()
    buffer.close()


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[None]:
    with (folder.parent / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "shoal.controller", "serve", "--folder", str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _until(lambda: b"ready:" in (folder.parent / "serve.log").read_bytes(), "it serves")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def _running(folders: Sequence[Path]) -> Iterator[None]:
    workers = max(2, -(-len(folders) // TOGETHER))
    parts = [list(folders[k::workers]) for k in range(workers)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), **_ONE_THREAD}
    with (folders[0].parent / "devices.log").open("wb") as log:
        made = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.round_devices", *map(str, part)],
                stdout=log, stderr=log, env=environment,
            )
            for part in parts
        ]  # fmt: skip
        try:
            yield
        finally:
            for process in made:
                process.terminate()
            for process in made:
                process.wait(60)


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def _until(look: Callable[[], bool], what: str) -> None:
    end, wait = time.monotonic() + PATIENCE_S, threading.Event()
    while not look():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
        wait.wait(0.05)
