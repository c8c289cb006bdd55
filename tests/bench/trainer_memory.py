"""Memory of a device's trainer process while it trains."""

import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bench.devices import resident_mb
from bench.releases import CLASSES, MODEL
from bench.report import Aim, Row
from bench.round_fleet import COLUMNS, INT8, ROWS, Lesson
from shoal.agent.federated.io.row_buffer import BUFFER, Buffer, Limits
from shoal.agent.federated.io.sandbox import rounds_folder
from shoal.agent.federated.io.trainer_process import SubprocessTrainer
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.federated.config import Config, Content
from shoal.federated.plan import Learning, Plan

_ATTEMPT = bytes(16)


def trainer_row(lesson: Lesson, aim: Aim) -> Row:
    """Peak private memory, beside all resident memory with shared libraries."""
    with tempfile.TemporaryDirectory() as name:
        private, resident = _trained(Path(name), lesson)
    over = private
    return Row(
        what="a device's trainer: private memory", unit="MB", ours=private,
        against="all of it that is resident, what it shares with the agent included",
        raw=resident, ratio=private / resident, over=private - resident,
        aim=aim.text("MB"), held=aim.holds(over),
    )  # fmt: skip


def _trained(folder: Path, lesson: Lesson) -> tuple[float, float]:
    work = _prepared(folder, lesson)
    trainer = SubprocessTrainer(folder, dict(os.environ), memory_mb=256, cpu_s=900)
    made: list[TrainingResult] = []
    job = threading.Thread(
        target=lambda: made.append(trainer.run(_ATTEMPT, work, lambda: "", lambda: False))
    )
    job.start()
    private = resident = 0.0
    while job.is_alive():
        for pid in _children():
            try:
                now = resident_mb(pid)
            except (OSError, KeyError, IndexError):
                continue
            private, resident = max(private, now["private"]), max(resident, now["rss"])
        time.sleep(0.002)
    job.join()
    return private, max(resident, made[0].rss_mb)


def _children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def _prepared(folder: Path, lesson: Lesson) -> TrainingJob:
    """A sandbox with a round in it, and rows; many epochs, so that it can be looked at."""
    here = rounds_folder(folder, _ATTEMPT.hex())
    here.mkdir(parents=True)
    (here / "graph.onnx").write_bytes(lesson.graph)
    (here / "theta").write_bytes(lesson.theta.astype("<f4").tobytes())
    rng, features = np.random.default_rng(0), [f"x{j}" for j in range(COLUMNS)]
    buffer = Buffer(folder / BUFFER, Limits(64 << 20, 100_000, 0), time.time)
    x = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    buffer.add(MODEL, features, x, [str(y) for y in rng.integers(0, CLASSES, ROWS)])
    buffer.flush()
    buffer.close()
    plan = Plan(
        task="bench", round=1, attempt=_ATTEMPT, strategy="fedavg", least=2, deadline_s=1e12,
        learning=Learning(lr=0.05, epochs=50, batch=32), compression=INT8,
    )  # fmt: skip
    config = Config(
        plan=plan, model=MODEL, graph=_content(lesson.graph), theta=_content(lesson.theta.tobytes())
    )
    labels = tuple(map(str, range(CLASSES)))
    return TrainingJob(
        kind="train", config=config, labels=labels, features=tuple(features), seed=bytes(32)
    )


def _content(data: bytes) -> Content:
    return Content(sha256=hashlib.sha256(data).hexdigest(), length=len(data))
