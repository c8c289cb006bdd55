"""Cost of a frame from a source to the model, and memory of each plugin's library.

The session answers with a constant, so that only the way is measured.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.measuring import compare, interleave, seconds
from bench.releases import CLASSES, MODEL, install, make_release, perceptron
from bench.report import Found, Row
from shoal.agent.feeds.flow import Flow
from shoal.agent.feeds.frames import frame_of
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.served_model import ServedModel
from shoal.pipeline import Input, Pipeline
from shoal.sketch import F32, References
from shoal.tensors import Array, Named
from shoal.wire import Health

LINES = {
    "identity": Pipeline(),
    "last values": Pipeline(missing="last"),
    "units, ranges, fills": Pipeline(
        inputs=[
            Input(name="x0", given="bar", unit="kPa", low=0, high=900, outside="clip"),
            Input(name="x1", missing="mean", fill=0.5, scale=0.1),
        ]
    ),
}
LIBRARIES = {
    "modbus": "pymodbus.client",
    "opcua": "asyncua",
    "parquet": "pyarrow.parquet",
    "images": "PIL.Image",
    "protobuf (not used)": "google.protobuf.message_factory, google.protobuf.descriptor_pb2",
}
RSS = "int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20"
#: What the agent has loaded in any case.
LOADED = "import numpy, asyncio, ssl, paho.mqtt.client, shoal.agent.feeds.io.runner"


class Constant:
    """A model with constant output."""

    def run(self, rows: F32) -> F32:
        return np.full((len(rows), CLASSES), 1 / CLASSES, np.float32)

    def run_tensors(self, feeds: Named, outputs: Sequence[str]) -> list[Array]:
        return [self.run(rows) for rows in feeds.values()]


def run(*, quick: bool) -> Found:
    """Microseconds of a frame, and megabytes of a library."""
    calls, repetitions = (50, 2) if quick else (2_000, 15)
    rows = [_frame(name, line, calls, repetitions) for name, line in LINES.items()]
    return Found(rows=[*rows, *(_library(*each, 2 if quick else 5) for each in LIBRARIES.items())])


def _frame(name: str, line: Pipeline, calls: int, repetitions: int) -> Row:
    serving = _served(line)
    flow = Flow("bench", "", serving=lambda: {MODEL: serving}, sinks=[], fault=lambda _: None)
    frame = frame_of(1.0, {"x0": 0.5, "x1": 0.5})
    rows = frame.rows.astype(np.float32)
    sides: dict[str, Callable[[], float]] = {
        "flow": lambda: seconds(lambda: flow(frame), calls) / calls * 1e6,
        "infer": lambda: seconds(lambda: serving.infer(rows), calls) / calls * 1e6,
    }
    found = interleave(repetitions, sides)
    return compare(f"a frame, {name}", "µs", found["flow"], found["infer"], against="the call")


def _served(line: Pipeline) -> ServedModel:
    """A release of two features, with this pipeline, that answers at once."""
    release = make_release(perceptron(2), features=2)
    with tempfile.TemporaryDirectory() as folder:
        slot = install(release, Path(folder))
    loaded = Engine(
        slot=slot,
        manifest=msgspec.structs.replace(release.manifest, pipeline=line),
        references=msgspec.json.decode(release.files["reference.json"], type=References),
        session=Constant(),
        slow_s=1.0,
    )
    serving = ServedModel(MODEL, clock=time.time, timer=time.perf_counter, lock=threading.Lock())
    serving.swap(loaded, Health())
    return serving


def _library(name: str, modules: str, repetitions: int) -> Row:
    def after(more: str) -> float:
        code = f"{LOADED}\n{more}\nprint({RSS})"
        return float(subprocess.check_output([sys.executable, "-c", code]))

    sides = {"with": lambda: after(f"import {modules}"), "without": lambda: after("")}
    found = interleave(repetitions, sides)
    return compare(f"RSS with {name}", "MB", found["with"], found["without"], against="without it")
