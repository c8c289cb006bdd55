"""A variant beside fp32 on held-back rows: outputs, CPU time of a row, and rows in company."""

import platform
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from shoal import bundle
from shoal.controller.releases.records import VariantReport
from shoal.controller.releases.verdicts import FP32, Cpu
from shoal.controller.training.io import runtime, timing
from shoal.controller.training.io.onnx_graph import INPUT, OUTPUT
from shoal.controller.training.io.rows import Rows
from shoal.controller.training.io.runtime import F32
from shoal.controller.training.io.validate import cosine, metrics_of
from shoal.errors import ModelError
from shoal.tensors import Named

#: Rows that are run with another one, and how many may then answer otherwise than alone.
_PAIRS, _TOLERATED = 8, 1
#: Difference in company, over the largest output, that other kernels do not explain.
_COMPANY = 1e-4


class Reference(NamedTuple):
    """fp32, loaded, and its outputs (n, C) for the held-back rows.

    row_s        seconds of a row, when many run together
    in_company   fp32 itself answers otherwise in company
    """

    session: onnxruntime.InferenceSession
    model: bytes
    rows: Rows
    task: str
    outputs: F32
    row_s: float
    in_company: bool


def reference_of(model: bytes, rows: Rows, task: str) -> Reference:
    """fp32 on held-back rows; ModelError when its outputs are no numbers."""
    session = runtime.open_session(model, FP32)
    began = time.monotonic()
    outputs = runtime.run(session, rows.x, FP32)
    row_s = (time.monotonic() - began) / max(1, len(rows.y))
    if not np.isfinite(outputs).all():
        raise ModelError(f"{FP32} outputs NaN or infinity on held-back rows", "look at the data")
    in_company = depends_on_company(session, rows.x, outputs)
    return Reference(session, model, rows, task, outputs, row_s, in_company)


def report_of(name: str, model: bytes, fp32: Reference, *, timed: bool = True) -> VariantReport:
    """Measure one variant; ModelError when it cannot be loaded or run.

    timed   False to leave out the CPU time
    """
    own = name == FP32
    session = fp32.session if own else runtime.open_session(model, name)
    outputs = fp32.outputs if own else runtime.run(session, fp32.rows.x, name)
    finite = np.isfinite(outputs).all(1)
    outputs = np.nan_to_num(outputs)
    ratio = row_time_ratio(session, fp32.session, fp32.rows.x) if timed and not own else None
    same = (outputs.argmax(1) == fp32.outputs.argmax(1)) & finite
    return VariantReport(
        name=name,
        sha256=bundle.describe(name, model).sha256,
        size=len(model),
        metrics=metrics_of(fp32.task, fp32.rows.y, outputs),
        cosine=cosine(outputs, fp32.outputs),
        detail="larger than fp32" if len(model) > len(fp32.model) else "",
        same_labels=None if fp32.task == "regression" else float(same.mean()),
        time_ratio=ratio,
        not_finite=int((~finite).sum()),
        in_company=not own
        and not fp32.in_company
        and depends_on_company(session, fp32.rows.x, fp32.outputs),
    )


def row_time_ratio(
    session: onnxruntime.InferenceSession, fp32: onnxruntime.InferenceSession, x: F32
) -> float:
    """CPU time of one row of x over fp32's."""
    rows: list[Named] = [{INPUT: x[i : i + 1]} for i in range(min(len(x), 16))]
    return timing.time_ratio(
        lambda feeds: session.run([OUTPUT], feeds), lambda feeds: fp32.run([OUTPUT], feeds), rows
    )


def depends_on_company(session: onnxruntime.InferenceSession, x: F32, outputs: F32) -> bool:
    """Whether rows of x (n, F) answer otherwise beside the row of the largest values than alone.

    Dynamic quantization takes its scale from the whole batch, so it does. The least certain rows
    are asked: where a softmax is at 0 or 1, nothing shows.

    outputs   (n, C) for x
    """
    if len(x) < 2:
        return False
    largest = int(np.abs(x).sum(1, dtype=np.float64).argmax())
    order = np.argsort(np.abs(outputs).max(1), kind="stable")
    chosen = order[order != largest][:_PAIRS]
    scale = max(float(np.abs(outputs).max()), 1e-12)
    different = 0
    for i in chosen:
        alone = runtime.run(session, x[i : i + 1], "the model")
        beside = runtime.run(session, x[[i, largest]], "the model")[:1]
        different += bool(np.abs(alone - beside).max() > _COMPANY * scale)
    return different > min(_TOLERATED, len(chosen) - 1)


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Architecture and flags of this machine."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    flags = next(
        (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), ""
    )
    return Cpu(platform.machine(), frozenset(flags.split()))
