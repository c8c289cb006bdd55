"""What a frame costs on its way from a source to the model, and what each plugin's library weighs.

The session answers with a constant, so that only the way is measured.
"""

import subprocess
import sys
from collections.abc import Callable

import numpy as np

from bench.measuring import compare, interleave, seconds
from bench.report import Found, Row
from devices import MODEL, engine
from plant import serving_of
from shoal.agent.flow import Flow
from shoal.agent.frames import frame_of
from shoal.pipeline import Input, Pipeline

LINES = {
    "identity": Pipeline(),
    "last values": Pipeline(missing="last"),
    "units, ranges, fills": Pipeline(
        inputs=[
            Input(name="contrast", given="bar", unit="kPa", low=0, high=900, outside="clip"),
            Input(name="blur", missing="mean", fill=0.5, scale=0.1),
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
LOADED = "import numpy, asyncio, ssl, paho.mqtt.client, shoal.agent.io.feeds.running"


class Constant:
    def run(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 3), 1 / 3, np.float32)


def run(*, quick: bool) -> Found:
    """Microseconds of a frame, and megabytes of a library."""
    calls, repetitions = (50, 2) if quick else (2_000, 15)
    rows = [_frame(name, line, calls, repetitions) for name, line in LINES.items()]
    return Found(rows=[*rows, *(_library(*each, 2 if quick else 5) for each in LIBRARIES.items())])


def _frame(name: str, line: Pipeline, calls: int, repetitions: int) -> Row:
    loaded = engine(1, pipeline=line)
    loaded.session = Constant()
    serving = serving_of(loaded)
    flow = Flow("bench", "", serving=lambda: {MODEL: serving}, sinks=[], fault=print)
    frame = frame_of(1.0, {"contrast": 0.5, "blur": 0.5})
    rows = frame.rows.astype(np.float32)
    sides: dict[str, Callable[[], float]] = {
        "flow": lambda: seconds(lambda: flow(frame), calls) / calls * 1e6,
        "infer": lambda: seconds(lambda: serving.infer(rows), calls) / calls * 1e6,
    }
    found = interleave(repetitions, sides)
    return compare(f"a frame, {name}", "µs", found["flow"], found["infer"], against="the call")


def _library(name: str, modules: str, repetitions: int) -> Row:
    def after(more: str) -> float:
        code = f"{LOADED}\n{more}\nprint({RSS})"
        return float(subprocess.check_output([sys.executable, "-c", code]))

    sides = {"with": lambda: after(f"import {modules}"), "without": lambda: after("")}
    found = interleave(repetitions, sides)
    return compare(f"RSS with {name}", "MB", found["with"], found["without"], against="without it")
