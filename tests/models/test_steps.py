"""Models as people have them, with steps in place of their own program's preparation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.test_real_models import files
from shoal.controller.training.io import composed_model, inspection, runtime
from shoal.tensors import Array
from training_steps import photo

__all__ = ["files"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MAGIKA = "magika/models/standard_v3_3/model.onnx"
TURNED = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def sessions(path: Path, folder: Path, declared: Mapping[str, Any]) -> tuple[Any, Any]:
    """The author's file, and the one with these steps."""
    steps = folder / "steps.json"
    steps.write_bytes(msgspec.json.encode(declared))
    inspection.read_facts(path, path.name, steps=steps)
    return (
        runtime.open_session(path, path.name),
        runtime.open_session(composed_model.composed(path, steps, path.name), path.name),
    )


def magikas(data: bytes) -> Array:
    """int32 (1, 2048) as Magika's own extraction makes it."""
    first, last = list(data[:4096].lstrip()[:1024]), list(data[-4096:].rstrip()[-1024:])
    both = first + [256] * (1024 - len(first)) + [256] * (1024 - len(last)) + last
    return np.array([both], np.int32)


def test_magika_gives_the_same_scores_from_the_bytes_of_a_file(files: Path, tmp_path: Path) -> None:
    cut = {"step": "head-tail", "head": 1024, "tail": 1024, "pad": 256, "strip": True,
           "block": 4096}  # fmt: skip
    declared = {"input": [{"name": "bytes", "from": "file", "steps": [{"step": "bytes"}, cut]}]}
    own, composed = sessions(files / MAGIKA, tmp_path, declared)
    contents = [
        Path(__file__).read_bytes(),
        (files / TURNED).read_bytes(),
        b"\n\n\n#!/bin/sh\necho hello\n\n",
        b"{}",
        b" " * 5000 + b"x" * 5000 + b"\n" * 5000,
        bytes(range(256)) * 8,
    ]
    for data in contents:
        wanted = own.run(None, {"bytes": magikas(data)})[0]
        found = composed.run(None, {"file": np.frombuffer(data, np.uint8)[None]})[0]
        assert found.shape == (1, 214)
        assert found.tobytes() == wanted.tobytes()


def lines(seed: int) -> Array:
    """A line of text on a photo, sometimes upside down: uint8 (height, width, 3)."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(24, 90)), int(rng.integers(80, 400))
    back = Image.fromarray(photo(height, width, seed=seed) // 4 + np.uint8(150))
    size = int(height * 0.6)
    ImageDraw.Draw(back).text((4, height // 6), f"LOT {seed}47 KLM", fill="black", font_size=size)
    return np.asarray(back)[::-1, ::-1] if seed % 2 else np.asarray(back)


def rapidocrs(picture: Array) -> Array:
    """float32 (1, 3, 48, 192) as rapidocr's TextClassifier.resize_norm_img makes it: OpenCV's
    INTER_LINEAR, which is bilinear on half-pixel centres without antialias."""
    height, width = picture.shape[:2]
    new = min(192, int(np.ceil(48 * width / height)))

    def along(image: Array, axis: int, n: int) -> Array:
        old = image.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, old - 1)
        return image.take(low, axis) * (1 - share) + image.take(high, axis) * share

    resized = np.floor(along(along(picture.astype(float), 0, 48), 1, new) + 0.5)
    padded = np.zeros((1, 3, 48, 192), np.float32)
    padded[0, :, :, :new] = (resized.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return padded


def test_rapidocr_finds_the_same_lines_upside_down_from_pixels(files: Path, tmp_path: Path) -> None:
    name = "save_infer_model/scale_0.tmp_1"
    declared = {
        "input": [{"name": "x", "steps": [
            {"step": "image", "channels": "BGR"},
            {"step": "resize", "fit": "height", "height": 48, "width": 192,
             "rounding": "up", "antialias": False},
            {"step": "normalise", "divide": 255, "mean": [0.5], "std": [0.5]},
            {"step": "pad", "height": 48, "width": 192},
            {"step": "layout", "to": "CHW"},
        ]}],
        "output": [
            {"name": name, "as": "turned", "steps": [
                {"step": "argmax"}, {"step": "labels", "labels": ["0", "180"]}
            ]},
            {"name": name, "as": "scores", "steps": []},
        ],
    }  # fmt: skip
    own, composed = sessions(files / TURNED, tmp_path, declared)
    seen = set()
    for seed in range(12):
        picture = lines(seed)
        [wanted] = own.run(None, {"x": rapidocrs(picture)})
        label, scores = composed.run(["turned", "scores"], {"image": picture[None]})
        assert label.tolist() == [["0", "180"][int(wanted.argmax())]]
        assert np.abs(scores - wanted).max() < 1e-3
        seen |= set(label)
    assert seen == {"0", "180"}
