"""onnxruntime session of an ONNX file, with the settings for a device: DESIGN section 6b.

onnxruntime is loaded on first use, never at import. The probe's process imports this and little
else: each import here delays a probe.
"""

import os
import re
from pathlib import Path
from typing import Any

from shoal.errors import InputError, ModelError
from shoal.profile import SessionOptions
from shoal.sketch import F32

#: Read by onnxruntime, OpenBLAS and glibc when they are loaded: set before that.
ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # wheels from 1.29 on keep a database and a device id otherwise
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

_EXPLANATIONS = (
    (r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
     "the model has IR version {0}, this onnxruntime reads up to {1}",
     "save it with ir_version {1}, or update onnxruntime"),
    (r"Opset (\d+) is under development.*?till opset (\d+)",
     "the model uses opset {0}, this onnxruntime knows up to {1}",
     "export it with opset {1} or older, or update onnxruntime"),
    (r"(?:No Op registered for |Fatal error: )([\w.:]+)(?:\(-?\d+\) is not a registered| with)",
     "operator {0} is unknown to this onnxruntime",
     "export the model without it, or with an opset that this device has"),
    (r"Could not find an implementation for (\w+)\((\d+)\)",
     "operator {0} (opset {1}) has no implementation on this CPU",
     "quantize or export it differently"),
    (r"Protobuf parsing failed", "the file is no ONNX model", "export it again"),
)  # fmt: skip


class OrtSession:
    """One loaded ONNX file: float32 (n, F) -> float32 (n, C).

    is_optimised   the file was written by onnxruntime after its optimisations
    save_to        path to write the optimised model to, None for none

    Raises ModelError, naming the operator, opset or type that this runtime lacks.
    """

    def __init__(
        self,
        path: Path,
        options: SessionOptions,
        input_name: str,
        output_name: str,
        *,
        is_optimised: bool = False,
        save_to: Path | None = None,
    ) -> None:
        ort = import_ort()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.intra_op_num_threads
        settings.inter_op_num_threads = options.inter_op_num_threads
        settings.log_severity_level = 4
        spin = "1" if options.spinning else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spin)
        settings.add_session_config_entry("session.inter_op.allow_spinning", spin)
        if is_optimised:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save_to is not None:
            settings.optimized_model_filepath = str(save_to)
        self._failures = failures = failures_of_ort()
        try:
            session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except failures as error:
            raise translated(path.name, error) from error
        self._input, self._outputs, self._name = input_name, [output_name], path.name
        self._run = session.run
        _check_tensors(path.name, session, input_name, output_name)

    def run(self, rows: F32) -> F32:
        """Outputs of `rows`; InputError when their shape or type is not the model's."""
        try:
            outputs: F32 = self._run(self._outputs, {self._input: rows})[0]
        except self._failures as error:
            raise _run_error(self._name, rows, error) from error
        return outputs


def import_ort() -> Any:
    """The onnxruntime module, with its environment set before the import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import onnxruntime

    return onnxruntime


def translated(name: str, error: Exception) -> ModelError:
    """A ModelError that explains onnxruntime's error, with a hint."""
    text = str(error)
    for pattern, what, hint in _EXPLANATIONS:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return ModelError(
                f"{name}: {what.format(*found.groups())}", hint.format(*found.groups())
            )
    return ModelError(f"{name}: {text[:300]}", "does it load with onnxruntime elsewhere?")


def _run_error(name: str, rows: F32, error: Exception) -> InputError | ModelError:
    text = str(error)
    if "INVALID_ARGUMENT" in text or "Invalid" in type(error).__name__:
        return InputError(f"{name}: input {rows.dtype} {list(rows.shape)}: {text[:300]}")
    return ModelError(f"{name}: {text[:300]}", "roll the release back")


def _check_tensors(name: str, session: Any, input_name: str, output_name: str) -> None:
    inputs = {i.name: i.type for i in session.get_inputs()}
    outputs = {o.name: o.type for o in session.get_outputs()}
    for what, have, want in (("input", inputs, input_name), ("output", outputs, output_name)):
        if want not in have:
            raise ModelError(f"{name} has no {what} {want!r}; it has: {', '.join(have)}")
        if have[want] != "tensor(float)":
            raise ModelError(f"{name}: {what} {want!r} is {have[want]}, float32 is needed")
    if len(inputs) > 1:
        raise ModelError(f"{name} has {len(inputs)} inputs: {', '.join(inputs)}; one is served")


def failures_of_ort() -> tuple[type[Exception], ...]:
    """The exceptions that onnxruntime raises; they share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoaded", "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException",
    )  # fmt: skip
    known = [getattr(state, name) for name in names if hasattr(state, name)]
    return (*known, ValueError, RuntimeError)
