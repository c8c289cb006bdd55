"""Memory of a large model: its import against its size, the agent against bare onnxruntime.

Two models: layers, whose weights onnxruntime packs, and a table of which rows are looked up.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bench import devices
from bench.measuring import compare, interleave
from bench.releases import MODEL, OPSET, make_tensor_release
from bench.report import Aim, Found, Row
from shoal.agent.host.io.folder import MODELS
from shoal.agent.serving.io.client import Client
from shoal.agent.serving.io.session import ENVIRONMENT
from shoal.controller.training.io import inspection
from shoal.errors import ShoalError
from shoal.tensors import Array

IMPORT, DEVICE = Aim(at_most=1.5, on_ratio=True), Aim(at_most=60.0, on_difference=True)
WIDTH = 1_024
_PEAK = re.compile(r"VmHWM:\s+(\d+)")


def run(*, quick: bool) -> Found:
    """304 MB each, so that what is beside a model counts little."""
    layers, repetitions = (4, 1) if quick else (76, 3)
    models = {"a table": _table(layers * WIDTH)}
    if not quick:
        models["packed weights"] = _layers(layers)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, (graph, item) in models.items():
            rows += _rows(Path(folder) / kind.replace(" ", "-"), kind, graph, item, repetitions)
    return Found(rows=rows, notes={})


def _rows(
    folder: Path, kind: str, graph: bytes, item: dict[str, Array], repetitions: int
) -> list[Row]:
    folder.mkdir()
    path = folder / "model.onnx"
    path.write_bytes(graph)
    size_mb = path.stat().st_size / 2**20
    devices.seed_folder(folder / "agent", make_tensor_release(graph, [item, item]))
    found = interleave(
        repetitions,
        {
            "import": lambda: inspection.inspect(path, MODEL).rss_mb,
            "agent": lambda: _agent(folder / "agent", item),
            "bare": lambda: _bare(folder / "agent" / MODELS / MODEL / "a" / "fp32.onnx"),
        },
    )
    what = f"{kind} of {size_mb:.0f} MB"
    return [
        compare(f"import, peak of its process: {what}", "MB", found["import"],
                [size_mb] * len(found["import"]), against="the model's size", aim=IMPORT),
        compare(f"agent, peak until the first answer: {what}", "MB", found["agent"], found["bare"],
                against="import onnxruntime, session, run", aim=DEVICE),
    ]  # fmt: skip


def _agent(folder: Path, item: dict[str, Array]) -> float:
    """Most memory of an agent that starts with the model and answers, MB."""
    with devices.running(folder) as device, Client(MODEL, folder) as client:

        def answered() -> bool:
            try:
                client.infer_tensors(item)
            except ShoalError:  # it still loads
                time.sleep(0.05)
                return False
            return True

        device.until(answered)
        return _peak_mb(device.pid)


def _bare(path: Path) -> float:
    """The same of a process with onnxruntime alone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.bare", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=devices.with_bytecode() | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        peak = _peak_mb(process.pid)
        process.stdin.close()
    return peak


def _peak_mb(pid: int) -> float:
    found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _layers(count: int) -> tuple[bytes, dict[str, Array]]:
    """x (N, 1024) -> y: so many layers of 4 MB."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(1, count)), "y"]
    weights = [
        numpy_helper.from_array((rng.normal(size=(WIDTH, WIDTH)) / 32).astype(np.float32), f"w{i}")
        for i in range(count)
    ]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(count)]
    return _model(nodes, weights), {"x": rng.normal(size=(1, WIDTH)).astype(np.float32)}


def _table(rows: int) -> tuple[bytes, dict[str, Array]]:
    """x (N, 1024) -> y: the row of a table that x's first number says."""
    table = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["number"], axis=1),
        helper.make_node("Cast", ["number"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array(0), "first"),
    ]
    return _model(nodes, weights), {"x": np.zeros((1, WIDTH), np.float32)}


def _model(nodes: list[NodeProto], weights: list[TensorProto]) -> bytes:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", WIDTH]) for n in ("x", "y"))
    graph = helper.make_graph(nodes, "large", [x], [y], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(made.SerializeToString())
