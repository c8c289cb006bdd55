"""Models of wheels with a task: what is claimed of them is measured in the child that runs them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.test_real_models import FILES, files
from shoal.controller.releases.records import TaskReport
from shoal.controller.training.io import inspection
from shoal.controller.training.jobs import TaskDeclaration
from shoal.tasks import Classification
from shoal.tensors import Array

__all__ = ["files"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIRECTION = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
MAGIKA = "magika/models/standard_v3_3/model.onnx"
VOICE = "silero_vad/data/silero_vad_op18_ifless.onnx"


def line_of_text(text: str, upside_down: bool) -> Array:
    """A line as the model takes it: float32 (1, 3, 48, 192)."""
    picture = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(picture).text((8, 4), text, fill="black", font_size=32)
    pixels = np.asarray(picture.rotate(180) if upside_down else picture, np.float32)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)[None]


def measured(
    file: str, declared: TaskDeclaration | None, sample: Path | None = None
) -> tuple[TaskReport | None, str]:
    found = inspection.inspect(FILES / file, "it", sample, declared=declared)
    return found.task, " ".join(found.notes)


def test_the_direction_of_text_is_a_classification_of_two(files: Path, tmp_path: Path) -> None:
    texts = ["LOT 4711", "2026-11-30", "BOLT M8", "Shoal", "EXP 12/27", "north 7", "PRESS", "weld"]
    turned = [i % 2 == 1 for i in range(2 * len(texts))]
    x = np.stack([line_of_text(texts[i // 2], turned[i]) for i in range(len(turned))])
    np.savez(tmp_path / "lines.npz", x=x, label=np.where(turned, "180", "0"))
    declared = TaskDeclaration(word="classification", labels=["0", "180"])
    task, _ = measured(DIRECTION, declared, tmp_path / "lines.npz")
    assert task is not None
    assert isinstance(task.meaning, Classification)
    assert (task.meaning.form, task.items, task.guessing) == ("probabilities", 16, "")
    assert task.metrics["balanced_accuracy"] >= 0.75


def test_magika_looks_like_a_classification_of_214_classes(files: Path) -> None:
    _, notes = measured(MAGIKA, None)
    assert "probabilities of 214 classes" in notes
    assert "--labels FILE (214 lines)" in notes


def test_the_state_of_a_recurrent_model_is_not_asked_about(files: Path) -> None:
    declared = TaskDeclaration(word="classification", labels=["silence", "speech"])
    task, _ = measured(VOICE, declared)
    assert task is not None
    assert isinstance(task.meaning, Classification)
    assert task.meaning.output == "output"
    assert task.metrics == {}
    assert any("nothing was measured" in note for note in task.notes)
