"""A model with its preparation in the graph, against numpy (and Pillow) and the bare model.

Milliseconds are the thread's own CPU time, onnxruntime has one thread. Both sides take the same raw
data and give the same answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bench.measuring import compare, cpu_seconds, interleave
from bench.report import Aim, Found, Row
from shoal.controller.training.steps.audio import mel_filters
from shoal.tensors import Array
from training_steps import composed, photo

SIDE, RATE_HZ, FFT, HOP, MELS = 224, 16_000, 400, 160, 80
AIM = Aim(at_most=2.0, on_ratio=True)
#: Of ImageNet's training images.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def run(*, quick: bool) -> Found:
    """A photo and a second of sound, each before a small convolution."""
    repetitions, calls = (2, 1) if quick else (15, 20)
    rows = [_photo_row(repetitions, calls), _sound_row(repetitions, calls)]
    return Found(rows=rows, notes={"onnxruntime": str(onnxruntime.__version__)})


def _photo_row(repetitions: int, calls: int) -> Row:
    model = _convolution(3, ["N", 3, SIDE, SIDE])
    steps: list[dict[str, Any]] = [
        {"step": "image"},
        {"step": "resize", "width": SIDE, "height": SIDE},
        {"step": "normalise", "divide": 255, "mean": MEAN, "std": STD},
        {"step": "layout", "to": "CHW"},
    ]
    raw, bare = photo(480, 640), _session(model)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)

    def by_hand() -> Array:
        small = Image.fromarray(raw).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        scaled = (np.asarray(small, np.float32) / 255 - mean) / std
        return _answer(bare, {"x": np.ascontiguousarray(scaled.transpose(2, 0, 1))[None]})

    sides = {"ours": _composed(model, steps, {"image": raw[None]}), "by hand": by_hand}
    return _row("photo of 640 x 480 to 224 x 224", sides, repetitions, calls, "Pillow, numpy")


def _sound_row(repetitions: int, calls: int) -> Row:
    model = _convolution(1, ["N", MELS, "T"])
    steps: list[dict[str, Any]] = [
        {"step": "audio"},
        {"step": "log-mel", "rate_hz": RATE_HZ, "n_fft": FFT, "hop": HOP, "mels": MELS},
    ]
    raw, bare = (
        np.random.default_rng(0).integers(-9_999, 9_999, (1, RATE_HZ), np.int16),
        _session(model),
    )
    filters = mel_filters(RATE_HZ, FFT, MELS, 0, RATE_HZ / 2, slaney=True, norm=True)
    filters, window = filters.astype(np.float32), np.hanning(FFT + 1)[:-1].astype(np.float32)

    def by_hand() -> Array:
        padded = np.pad(raw[0] / np.float32(32_768), FFT // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * window
        power = (np.abs(np.fft.rfft(frames)) ** 2).astype(np.float32)
        mel = np.log(np.maximum(filters @ power.T, np.float32(1e-10)))
        return _answer(bare, {"x": mel[None]})

    sides = {"ours": _composed(model, steps, {"audio": raw}), "by hand": by_hand}
    return _row("a second of sound to 80 log-mels", sides, repetitions, calls, "numpy")


def _row(
    what: str, sides: Mapping[str, Callable[[], Array]], repetitions: int, calls: int, tools: str
) -> Row:
    ours, theirs = (side() for side in sides.values())
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max(), "other answers"

    def timed(side: Callable[[], Array]) -> Callable[[], float]:
        return lambda: 1e3 / calls * cpu_seconds(lambda: [side() for _ in range(calls)])

    found = interleave(repetitions, {name: timed(side) for name, side in sides.items()})
    return compare(
        what, "ms", found["ours"], found["by hand"], against=f"{tools} and the bare model", aim=AIM
    )


def _convolution(channels: int, shape: Sequence[int | str]) -> onnx.ModelProto:
    """x float32 of `shape` -> 16 means."""
    rank = len(shape) - 2
    width = channels if rank == 2 else int(shape[1])
    weights = np.random.default_rng(0).normal(size=(16, width, *[3] * rank)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2] * rank),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, *[1] * rank])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _composed(
    model: onnx.ModelProto, steps: Sequence[Mapping[str, Any]], raw: Mapping[str, Array]
) -> Callable[[], Array]:
    session = _session(composed(model, {"input": [{"name": "x", "steps": list(steps)}]}))
    return lambda: _answer(session, raw)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _answer(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> Array:
    return np.asarray(session.run(None, dict(feeds))[0])
