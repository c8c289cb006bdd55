"""Tensors through the agent, against raw `session.run`: an image of 602 kB, and a stream of audio
frames whose state the agent keeps.

Endpoint: a real agent's process and the SDK's client on its Unix socket. The baseline of an image
there is `session.run` and one copy of its bytes.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from bench import devices
from bench.inference import raw_session
from bench.measuring import F64, compare, interleave, latencies, quantile_us
from bench.releases import MODEL, OPSET, make_tensor_release
from bench.report import Aim, Found, Row
from shoal.agent.host.io.folder import MODELS
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.serving.io.client import Client
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.sequences import Step
from shoal.agent.serving.served_model import ServedModel
from shoal.profile import profile
from shoal.tensors import Array
from shoal.wire import Health

IMAGE, STREAM = Aim(at_most=1.2, on_ratio=True), Aim(at_most=100.0, on_difference=True)
SIDE, FRAME, STATE = 224, 512, 128


def run(*, quick: bool) -> Found:
    """A network of 184 million multiplications (MobileNet v2 has 300), and an LSTM of a voice
    detector's size."""
    calls, repetitions = (20, 2) if quick else (300, 15)
    frames = calls if quick else 10 * calls
    image = {"image": np.random.default_rng(1).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)}
    start = {
        "frame": np.random.default_rng(2).normal(size=(1, FRAME)).astype(np.float32),
        "state": np.zeros((2, 1, STATE), np.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = _image_rows(Path(folder) / "image", image, calls, repetitions)
        rows += _stream_rows(Path(folder) / "stream", start, frames, repetitions)
    return Found(rows=rows, notes={})


def _image_rows(
    folder: Path, image: Mapping[str, Array], calls: int, repetitions: int
) -> list[Row]:
    data = image["image"].tobytes()
    with _sides(folder, _convolutional(), dict(image)) as (raw, serving, client):
        found = interleave(
            repetitions,
            {
                "raw": lambda: latencies(lambda: raw(image), calls),
                "raw and copy": lambda: latencies(lambda: (bytearray(data), raw(image)), calls),
                "ours": lambda: latencies(lambda: serving.infer_tensors(image), calls),
                "endpoint": lambda: latencies(lambda: client.infer_tensors(image), calls),
            },
        )
    return [
        _row("in process: an image of 602 kB", found, "ours", "raw", None),
        _row("endpoint: an image of 602 kB as bytes", found, "endpoint", "raw and copy", IMAGE),
    ]


def _stream_rows(
    folder: Path, start: Mapping[str, Array], calls: int, repetitions: int
) -> list[Row]:
    frame, state = {"frame": start["frame"]}, [start["state"]]
    with _sides(folder, _recurrent(), dict(start)) as (raw, serving, client):

        def step_raw() -> None:
            _, state[0] = raw({**frame, "state": state[0]})

        step = Step("microphone", start=False, end=False)
        serving.infer_tensors(frame, (), step._replace(start=True))
        client.infer_tensors(frame, sequence="microphone", start=True)
        found = interleave(
            repetitions,
            {
                "raw": lambda: latencies(step_raw, calls),
                "ours": lambda: latencies(lambda: serving.infer_tensors(frame, (), step), calls),
                "endpoint": lambda: latencies(
                    lambda: client.infer_tensors(frame, sequence="microphone"), calls
                ),
            },
        )
    return [
        _row("in process: a frame of 32 ms in a sequence", found, "ours", "raw", STREAM),
        _row("endpoint: a frame of 32 ms in a sequence", found, "endpoint", "raw", None),
    ]


def _row(
    what: str, found: Mapping[str, list[F64]], side: str, against: str, aim: Aim | None
) -> Row:
    return compare(
        f"{what}, p50", "µs", quantile_us(found[side], 0.5), quantile_us(found[against], 0.5),
        against={"raw": "session.run", "raw and copy": "session.run and a copy"}[against], aim=aim,
    )  # fmt: skip


@contextlib.contextmanager
def _sides(
    folder: Path, graph: bytes, item: dict[str, Array]
) -> Iterator[tuple[Callable[[Mapping[str, Array]], list[Any]], ServedModel, Client]]:
    """Raw `session.run`, a served model in this process, and a client of an agent's process."""
    sample = [
        {name: array + np.float32(0.25 * i) for name, array in item.items()} for i in range(24)
    ]
    release = make_tensor_release(graph, sample)
    devices.seed_folder(folder, release)
    slots = DiskSlots(folder / MODELS)
    slot = slots.found()[0]
    session: Any = raw_session(slots.path(MODEL, slot.slot) / "fp32.onnx", profile("generic"))
    names = [output.name for output in release.manifest.tensors.outputs]
    serving = ServedModel(MODEL, clock=time.time, timer=time.perf_counter, lock=threading.Lock())
    serving.swap(OrtLoader(slots.path).load(slot, profile("generic")), Health())
    with devices.running(folder) as device:
        device.address()
        with Client(MODEL, folder) as client:
            yield lambda feeds: session.run(names, dict(feeds)), serving, client


def _convolutional() -> bytes:
    """image (N, 3, 224, 224) -> four strided convolutions -> probabilities of ten classes."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "image", 3
    for i, width in enumerate((32, 64, 128, 256)):
        drawn = rng.normal(size=(width, channels, 3, 3)) / (3 * channels**0.5)
        weights.append(numpy_helper.from_array(drawn.astype(np.float32), f"w{i}"))
        pads = [1, 1, 1, 1]
        conv = helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], strides=[2, 2], pads=pads)
        nodes += [conv, helper.make_node("Relu", [f"c{i}"], [f"r{i}"])]
        last, channels = f"r{i}", width
    head = rng.normal(size=(channels, 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["classes"], axis=1),
    ]
    inputs = [("image", ["N", 3, SIDE, SIDE])]
    return _onnx(nodes, weights, inputs, [("classes", ["N", 10])])


def _recurrent() -> bytes:
    """frame (N, 512) and state (2, N, 128) -> LSTM -> a probability, and the next state."""
    rng = np.random.default_rng(0)
    shapes = {"in": (FRAME, STATE), "w": (1, 4 * STATE, STATE), "r": (1, 4 * STATE, STATE),
              "out": (STATE, 1)}  # fmt: skip
    weights = [
        numpy_helper.from_array((rng.normal(size=shape) / 20).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([0]), "zero"))
    weights.append(numpy_helper.from_array(np.array([1, 1]), "halves"))
    node = helper.make_node
    nodes = [
        node("MatMul", ["frame", "in"], ["features"]),
        node("Unsqueeze", ["features", "zero"], ["steps"]),
        node("Split", ["state", "halves"], ["h", "c"], axis=0),
        node("LSTM", ["steps", "w", "r", "", "", "h", "c"], ["", "hn", "cn"], hidden_size=STATE),
        node("Concat", ["hn", "cn"], ["stateN"], axis=0),
        node("Squeeze", ["hn", "zero"], ["last"]),
        node("MatMul", ["last", "out"], ["logit"]),
        node("Sigmoid", ["logit"], ["speech"]),
    ]
    inputs = [("frame", ["N", FRAME]), ("state", [2, "N", STATE])]
    return _onnx(nodes, weights, inputs, [("speech", ["N", 1]), ("stateN", [2, "N", STATE])])


def _onnx(
    nodes: Sequence[Any],
    weights: Sequence[Any],
    inputs: Sequence[tuple[str, list[Any]]],
    outputs: Sequence[tuple[str, list[Any]]],
) -> bytes:
    taken, given = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors]
        for tensors in (inputs, outputs)
    )
    graph = helper.make_graph(list(nodes), "g", taken, given, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(model.SerializeToString())
