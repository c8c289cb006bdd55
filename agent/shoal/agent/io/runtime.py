"""onnxruntime, as a device wants it: DESIGN section 6b. Loaded on first use, never at import."""

import ctypes
import gc
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shoal import bundle
from shoal.agent.io.optimised import SMALLEST, Optimised
from shoal.agent.orders import Runtime
from shoal.agent.serving import Engine
from shoal.agent.update import Slot
from shoal.errors import InputError, ModelError
from shoal.manifest import Manifest
from shoal.profile import Profile, SessionOptions
from shoal.sketch import F32

_log = logging.getLogger(__name__)

#: Read by onnxruntime, OpenBLAS and glibc when they are loaded: set before that.
ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # wheels from 1.29 on keep a database and a device id otherwise
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_M_ARENA_MAX = -8
#: IR version and wire type of the smallest model there is: Identity, one float in, one out.
_OLDEST_OPSET, _NEWEST_OPSET = 13, 60

_MENDS = (
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


class OrtLoader:
    """Loads releases from their slots.

    folder      model, slot -> where its files are
    optimised   keeps what onnxruntime made of them; None to do it again at every start
    """

    def __init__(
        self, folder: Callable[[str, str], Path], optimised: Optimised | None = None
    ) -> None:
        self._folder, self._optimised = folder, optimised
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """Version of onnxruntime, and the newest opset it loads: found out by trying."""
        if self._runtime is None:
            ort = import_ort()
            self._runtime = Runtime(ort.__version__, newest_opset())
        return self._runtime

    def load(self, slot: Slot, profile: Profile) -> Engine:
        """The engine of a verified slot, warmed once; ModelError when it cannot be."""
        folder = self._folder(slot.model, slot.slot)
        manifest = bundle.read_manifest(folder)
        features = len(manifest.features)
        session = self._session(folder, manifest, slot.variant, profile.session)
        warm = session.run(np.zeros((1, features), np.float32))
        outputs = max(1, len(manifest.labels))
        if warm.shape != (1, outputs):
            raise ModelError(
                f"{slot.release}: answers one row with shape {list(warm.shape)}, "
                f"[1, {outputs}] was promised"
            )
        engine = Engine(
            slot=slot,
            manifest=manifest,
            references=bundle.read_references(folder, manifest),
            session=session,
            slow_s=profile.budget.p99_ms / 1e3,
        )
        self.trim()
        return engine

    def trim(self) -> None:
        """Give freed memory back to the system."""
        trim()

    def _session(
        self, folder: Path, manifest: Manifest, variant: str, options: SessionOptions
    ) -> "OrtSession":
        """The variant's session: from the cache where that holds it, and kept there if not."""
        file = manifest.variant(variant).file
        path, names = folder / file.name, (manifest.input, manifest.output)
        if self._optimised is None or file.size < SMALLEST:
            return OrtSession(path, options, *names)
        key = self._optimised.key(file.sha256, import_ort().__version__, options)
        found = self._optimised.find(key)
        if found is not None:
            try:
                return OrtSession(found, options, *names, optimised=True)
            except ModelError as error:
                _log.warning("the optimised model of %s: %s", manifest.release, error)
                self._optimised.drop(key)
        into = self._optimised.begin(key)
        try:
            session = OrtSession(path, options, *names, keep=into)
        except ModelError:
            return OrtSession(path, options, *names)  # or the disk refused, and not the model
        self._optimised.keep(key)
        return session


class OrtSession:
    """One loaded ONNX file: float32 (n, F) -> float32 (n, C).

    optimised   the file is what onnxruntime wrote itself: nothing is left to optimise
    keep        where it shall write that, None for nowhere

    Raises ModelError, naming the operator, opset or type that this runtime lacks.
    """

    def __init__(
        self,
        path: Path,
        options: SessionOptions,
        given: str,
        wanted: str,
        *,
        optimised: bool = False,
        keep: Path | None = None,
    ) -> None:
        ort = import_ort()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.intra_op_num_threads
        settings.inter_op_num_threads = options.inter_op_num_threads
        settings.log_severity_level = 4
        spin = "1" if options.spinning else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spin)
        settings.add_session_config_entry("session.inter_op.allow_spinning", spin)
        if optimised:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if keep is not None:
            settings.optimized_model_filepath = str(keep)
        self._failures = failures = _failures()
        try:
            session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except failures as error:
            raise translated(path.name, error) from error
        self._given, self._wanted, self._name = given, [wanted], path.name
        self._run = session.run
        _check_tensors(path.name, session, given, wanted)

    def run(self, rows: F32) -> F32:
        """Answer `rows`; InputError when they are of another shape or type than the model's."""
        try:
            said: F32 = self._run(self._wanted, {self._given: rows})[0]
        except self._failures as error:
            raise _refused(self._name, rows, error) from error
        return said


def import_ort() -> Any:
    """The onnxruntime module, its environment set first."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import onnxruntime

    return onnxruntime


def limit_arenas() -> None:
    """One malloc arena: threads that come and go do not each keep their own heap."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        pass  # not glibc: nothing to limit


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc


def newest_opset() -> int:
    """The newest ONNX opset that the installed onnxruntime loads, by bisection."""
    ort = import_ort()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    low, high = _OLDEST_OPSET, _NEWEST_OPSET
    while low < high:
        middle = (low + high + 1) // 2
        try:
            ort.InferenceSession(_identity(middle), settings, providers=["CPUExecutionProvider"])
            low = middle
        except _failures():
            high = middle - 1
    return low


def translated(name: str, error: Exception) -> ModelError:
    """onnxruntime's complaint about a model as a ModelError that names the thing and the mend."""
    said = str(error)
    for pattern, what, mend in _MENDS:
        found = re.search(pattern, said, re.DOTALL)
        if found:
            return ModelError(
                f"{name}: {what.format(*found.groups())}", mend.format(*found.groups())
            )
    return ModelError(f"{name}: {said[:300]}", "does it load with onnxruntime elsewhere?")


def _refused(name: str, rows: F32, error: Exception) -> InputError | ModelError:
    said = str(error)
    if "INVALID_ARGUMENT" in said or "Invalid" in type(error).__name__:
        return InputError(f"{name}: input {rows.dtype} {list(rows.shape)}: {said[:300]}")
    return ModelError(f"{name}: {said[:300]}", "roll the release back")


def _check_tensors(name: str, session: Any, given: str, wanted: str) -> None:
    inputs = {i.name: i.type for i in session.get_inputs()}
    outputs = {o.name: o.type for o in session.get_outputs()}
    for what, have, want in (("input", inputs, given), ("output", outputs, wanted)):
        if want not in have:
            raise ModelError(f"{name} has no {what} {want!r}; it has: {', '.join(have)}")
        if have[want] != "tensor(float)":
            raise ModelError(f"{name}: {what} {want!r} is {have[want]}, float32 is needed")
    if len(inputs) > 1:
        raise ModelError(f"{name} has {len(inputs)} inputs: {', '.join(inputs)}; one is served")


def _failures() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its classes share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
        "ModelLoaded", "NoModel", "NoSuchFile", "NotImplemented", "RuntimeException",
    )  # fmt: skip
    known = [getattr(state, name) for name in names if hasattr(state, name)]
    return (*known, ValueError, RuntimeError)


def _identity(opset: int) -> bytes:
    """ONNX bytes of y = Identity(x), float32 (1,): protobuf by hand, so that onnx is not needed."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def value(name: bytes) -> bytes:
        tensor = b"\x08\x01" + field(2, field(1, b"\x08\x01"))
        return field(1, name) + field(2, field(1, tensor))

    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g") + field(11, value(b"x")) + field(12, value(b"y"))
    return b"\x08\x08" + field(7, graph) + field(8, bytes([0x10, opset]))
