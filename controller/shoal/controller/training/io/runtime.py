"""Run a model as a device does: onnxruntime on the CPU, one thread."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from shoal.controller.training.io.onnx_graph import INPUT, OUTPUT
from shoal.errors import ModelError
from shoal.onnxruntime_errors import explain

#: Versions that serve a release, as the agent's wheel requires: pyproject.toml.
ORT = ">=1.31"
F32 = npt.NDArray[np.float32]
#: Bytes of inputs, and rows, of one run at most: bounds memory for wide rows and for a large table.
RUN_BYTES, RUN_ROWS = 4 << 20, 4_096


def open_session(
    model: bytes | Path, name: str, *, only_check: bool = False, folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load a model; ModelError when this runtime cannot run it.

    only_check   fold no constants and pack no weights: only whether it has every operator is asked
    folder       of its data files, where the model is given as bytes
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if only_check:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        entry = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(entry, str(folder.resolve()))
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what, hint = explain(str(error)) or (
            message_of(error),
            "export it with standard operators and an opset that this onnxruntime has",
        )
        raise ModelError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load it: {what}", hint
        ) from error


def rows_per_run(x: F32) -> int:
    """Rows of x (n, F) that run together.

    >>> [rows_per_run(np.zeros((1, width), np.float32)) for width in (64, 150_528)]
    [4096, 6]
    """
    return min(RUN_ROWS, max(1, RUN_BYTES // max(1, x[:1].nbytes)))


def run(session: onnxruntime.InferenceSession, x: F32, name: str) -> F32:
    """Outputs float32 (n, C) of a normalised model; ModelError if it fails on real rows."""
    step = rows_per_run(x)
    try:
        parts = [
            session.run([OUTPUT], {INPUT: x[at : at + step]})[0]
            for at in range(0, max(len(x), 1), step)
        ]
    except Exception as error:
        raise ModelError(
            f"{name} fails on the dataset's rows: {message_of(error)}",
            "export it with a free batch dimension and float32 input",
        ) from error
    return np.concatenate(parts).astype(np.float32, copy=False)


def outputs(model: bytes, x: F32, name: str) -> F32:
    """Load and run a model."""
    return run(open_session(model, name), x, name)


def message_of(error: Exception) -> str:
    """The readable part of an onnxruntime error, without files and C++ expressions."""
    text = " ".join(str(error).split())
    text = text.rpartition("[ONNXRuntimeError] : ")[2]
    text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"Load model from \S* failed: ?", "", text)
    return re.sub(r"/\S+\.(?:h|cc):\d+ .*?\) ", "", text)[:500]
