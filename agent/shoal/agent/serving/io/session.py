"""onnxruntime session of an ONNX file, with the settings for a device: DESIGN section 6b.

onnxruntime is loaded on first use, never at import. The probe's process imports this and little
else: each import here delays a probe.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal.errors import InputError, ModelError
from shoal.onnx_outline import MAPPED_FROM, outline
from shoal.onnxruntime_errors import explain
from shoal.profile import SessionOptions
from shoal.signature import Signature, Tensor
from shoal.sketch import F32
from shoal.tensors import Array, Datatype, Named

#: Read by onnxruntime, OpenBLAS and glibc when they are loaded: set before that.
ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # wheels from 1.29 on keep a database and a device id otherwise
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

#: What onnxruntime calls the protocol's datatypes.
_TYPES: dict[str, Datatype] = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64", "tensor(int8)": "INT8",
    "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip
_OPTIONAL = "optional("


class OrtSession:
    """One loaded ONNX file: rows, float32 (n, F) -> float32 (n, C), or tensors by name.

    signature      the tensors that are given and read; `run` takes the first input and output
    is_optimised   the file was written by onnxruntime after its optimisations
    save_to        path to write the optimised model to, None for none

    Raises ModelError, naming the operator, opset or type that this runtime lacks.
    """

    def __init__(
        self,
        path: Path,
        options: SessionOptions,
        signature: Signature,
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
        source = path if is_optimised or save_to else _mapped(path, settings)
        try:
            session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        except failures as error:
            raise translated(path.name, error) from error
        _check_tensors(path.name, session, signature)
        self._name, self._run = path.name, session.run
        self._input = signature.inputs[0].name if signature.inputs else ""
        self._outputs = [signature.outputs[0].name]

    def run(self, rows: F32) -> F32:
        """Outputs of `rows`; InputError when their shape or type is not the model's."""
        try:
            outputs: F32 = self._run(self._outputs, {self._input: rows})[0]
        except self._failures as error:
            raise _run_error(self._name, {self._input: rows}, error) from error
        return outputs

    def run_tensors(self, feeds: Named, outputs: Sequence[str]) -> list[Array]:
        """The named outputs for the named inputs, of the signature's datatypes.

        Strings are object arrays of str. InputError when onnxruntime refuses a shape or a type,
        ModelError when the run fails.
        """
        try:
            return [np.asarray(output) for output in self._run([*outputs], feeds)]
        except self._failures as error:
            raise _run_error(self._name, feeds, error) from error


def import_ort() -> Any:
    """The onnxruntime module, with its environment set before the import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import onnxruntime

    return onnxruntime


def _mapped(path: Path, settings: Any) -> Path | bytes:
    """A large file without its weights, which onnxruntime then maps from it; else its path.

    onnxruntime reads a file whole, parses it, and copies the weights: 2.2 times its size. Weights
    that are mapped are read when they are packed, once.
    """
    if path.stat().st_size < MAPPED_FROM:
        return path
    try:
        found = outline(path, path.name)
    except ModelError:  # onnxruntime says what is wrong with it
        return path
    if not found.left_out or path.name in found.locations:
        return path
    entry = "session.model_external_initializers_file_folder_path"
    settings.add_session_config_entry(entry, str(path.parent.resolve()))
    return found.content


def translated(name: str, error: Exception) -> ModelError:
    """A ModelError that explains onnxruntime's error, with a hint."""
    text = str(error)
    what, hint = explain(text) or (text[:300], "does it load with onnxruntime elsewhere?")
    return ModelError(f"{name}: {what}", hint)


def _run_error(name: str, feeds: Named, error: Exception) -> InputError | ModelError:
    text = str(error)
    if "INVALID_ARGUMENT" in text or "Invalid" in type(error).__name__:
        given = ", ".join(
            f"{key!r} {array.dtype} {list(array.shape)}" for key, array in feeds.items()
        )
        return InputError(f"{name}: input {given[:300]}: {text[:300]}")
    return ModelError(f"{name}: {text[:300]}", "roll the release back")


def _check_tensors(name: str, session: Any, signature: Signature) -> None:
    """ModelError unless the session has the signature's tensors, and needs no other input."""
    needed, spare = session.get_inputs(), session.get_overridable_initializers()
    _check_names(name, "input", signature.inputs, [*needed, *spare])
    _check_names(name, "output", signature.outputs, session.get_outputs())
    given = {tensor.name for tensor in signature.inputs}
    missing = [i.name for i in needed if i.name not in given and not _is_optional(i.type)]
    if missing:
        raise ModelError(f"{name} needs the inputs {', '.join(missing)}; its manifest has none")


def _check_names(name: str, what: str, wanted: Iterable[Tensor], have: Iterable[Any]) -> None:
    types = {one.name: one.type for one in have}
    for tensor in wanted:
        if tensor.name not in types:
            raise ModelError(f"{name} has no {what} {tensor.name!r}; it has: {', '.join(types)}")
        if _datatype(types[tensor.name]) != tensor.datatype:
            raise ModelError(
                f"{name}: {what} {tensor.name!r} is {types[tensor.name]}, "
                f"{tensor.datatype} is needed"
            )


def _is_optional(kind: str) -> bool:
    return kind.startswith(_OPTIONAL)


def _datatype(kind: str) -> Datatype | None:
    """The protocol's name of an onnxruntime type; None when it has none."""
    return _TYPES.get(kind[len(_OPTIONAL) : -1] if _is_optional(kind) else kind)


def failures_of_ort() -> tuple[type[Exception], ...]:
    """The exceptions that onnxruntime raises; they share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoaded", "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException",
    )  # fmt: skip
    known = [getattr(state, name) for name in names if hasattr(state, name)]
    return (*known, ValueError, RuntimeError)
