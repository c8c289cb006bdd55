"""What rounds learned becomes a release like any other: measured, quantized, judged."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import ModelProto

from controllers import digits
from shoal.controller.data import frames, table_files
from shoal.controller.data.records import DatasetVersion
from shoal.controller.releases.records import Built
from shoal.controller.training.gradient.losses import Loss
from shoal.controller.training.gradient.make import Prepared, prepare, step_graph
from shoal.controller.training.gradient.personal import personal_of
from shoal.controller.training.io import build, runtime
from shoal.controller.training.jobs import Checkpoint, Job
from shoal.errors import ModelError
from shoal.params import F32


def silent(fraction: float, step: str) -> None:
    assert 0 <= fraction <= 1, step


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = tmp_path_factory.mktemp("digits") / "digits.csv"
    digits().to_csv(path, index=False)
    frame = table_files.read_frame(path)
    version = DatasetVersion(
        name="d", version=1, sha256="", size=0, rows=len(frame),
        columns=frames.describe(frame, label="digit", site="station", split="", drop=()),
        label="digit", site="station", split="", parents=[], how="", created_at=0, created_by="",
    )  # fmt: skip
    return Job(model="lot-codes", dataset=version, table=path)


@pytest.fixture(scope="module")
def base(table: Job) -> Built:
    return build.build(table, silent)


@pytest.fixture(scope="module")
def task(base: Built) -> Prepared:
    return prepare(ModelProto.FromString(base.files["fp32"]), Loss("cross-entropy"))


def released(
    table: Job, task: Prepared, theta: F32, folder: Path, personal: tuple[tuple[int, int], ...] = ()
) -> Built:
    """The release that a checkpoint becomes."""
    files = {"theta": theta.tobytes(), "graph": step_graph(task).SerializeToString()}
    files["inference"] = task.inference.SerializeToString()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    checkpoint = Checkpoint(
        theta=folder / "theta", graph=folder / "graph", personal=personal,
        notes=("trained by 20 devices in 40 rounds",),
    )  # fmt: skip
    job = msgspec.structs.replace(
        table, estimator="imported", onnx=folder / "inference", checkpoint=checkpoint
    )
    return build.build(job, silent)


def test_a_checkpoint_answers_by_its_own_numbers_and_passes_the_same_gates(
    table: Job, base: Built, task: Prepared, tmp_path: Path
) -> None:
    made = released(table, task, task.theta, tmp_path)

    assert made.metrics == base.metrics
    assert list(made.files) == list(base.files)
    assert made.why_refused == ""
    assert "trained by 20 devices in 40 rounds" in made.card


def test_a_checkpoint_that_unlearned_everything_is_refused(
    table: Job, base: Built, task: Prepared, tmp_path: Path
) -> None:
    made = released(table, task, np.zeros_like(task.theta), tmp_path)

    x = np.ones((1, 64), np.float32)
    assert runtime.outputs(made.files["fp32"], x, "m") == pytest.approx(0.1)
    assert made.why_refused


def test_a_head_that_stayed_on_the_devices_is_learned_anew_above_the_backbone(
    table: Job, base: Built, task: Prepared, tmp_path: Path
) -> None:
    ranges = personal_of(task)
    theta = task.theta.copy()
    for start, stop in ranges:
        theta[start:stop] = 0

    without, made = (
        released(table, task, theta, tmp_path),
        released(table, task, theta, tmp_path, ranges),
    )

    assert without.metrics["accuracy"] < 0.2
    assert made.metrics["accuracy"] > 0.95
    assert "never left the devices" in made.card


def test_a_checkpoint_of_another_model_is_refused_by_name(
    table: Job, task: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="theta has shape"):
        released(table, task, task.theta[:-1], tmp_path)


def test_a_checkpoint_of_no_numbers_is_refused(table: Job, task: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        released(table, task, task.theta * np.float32("nan"), tmp_path)


def test_half_a_layer_cannot_be_personal(table: Job, task: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a part of .* is personal"):
        released(table, task, task.theta, tmp_path, ((0, 1),))
