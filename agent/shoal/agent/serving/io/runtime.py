"""Loads releases from their slots into onnxruntime; returns freed memory to the system."""

import ctypes
import gc
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shoal import bundle
from shoal.agent.installed.record import Slot
from shoal.agent.serving.engine import NEWEST_OPSET, OLDEST_OPSET, Engine, Runtime
from shoal.agent.serving.io.session import OrtSession, failures_of_ort, import_ort
from shoal.agent.serving.io.session_cache import LARGEST, SMALLEST, SessionCache
from shoal.errors import ModelError, ShoalError
from shoal.manifest import Manifest, Variant
from shoal.profile import Profile, SessionOptions
from shoal.signature import Signature
from shoal.tensors import Named, datatype_of

_log = logging.getLogger(__name__)

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
#: Blocks of at least this size return to the system when freed; glibc otherwise raises that limit
#: to the largest block that it has freed.
_LARGE = 1 << 20


class OrtLoader:
    """Loads releases from their slots.

    folder   model, slot -> the slot's folder
    cache    of optimised models; None to optimise at every start
    """

    def __init__(
        self, folder: Callable[[str, str], Path], cache: SessionCache | None = None
    ) -> None:
        self._folder, self._cache = folder, cache

    @property
    def runtime(self) -> Runtime:
        """Version of onnxruntime, and a test for whether it loads an opset, by trying."""
        return Runtime(import_ort().__version__, loads_opset)

    def load(self, slot: Slot, profile: Profile) -> Engine:
        """The engine of a verified slot, after one warm-up run; ModelError when it fails."""
        folder = self._folder(slot.model, slot.slot)
        manifest = bundle.read_manifest(folder)
        session = self._session(folder, manifest, slot.variant, profile.session)
        sample: Named = {}
        if manifest.takes_rows:
            _warm_up_rows(session, manifest)
        else:
            sample = bundle.read_golden_tensors(folder, manifest).vectors[0].arrays()
            _warm_up_tensors(session, manifest, sample)
        return Engine(
            slot=slot,
            manifest=manifest,
            references=bundle.read_references(folder, manifest),
            session=session,
            slow_s=profile.budget.p99_ms / 1e3,
            sample=sample,
        )

    def settle(self, slot: Slot, profile: Profile) -> None:
        """Work deferred until the slot serves: cache its optimised model, free memory."""
        try:
            if self._cache is not None:
                self._fill(self._cache, slot, profile.session)
        except ShoalError as error:
            _log.info("%s is not in the session cache: %s", slot.release, error)
        self.trim()

    def trim(self) -> None:
        """Return freed memory to the system."""
        trim()

    def _session(
        self, folder: Path, manifest: Manifest, variant: str, options: SessionOptions
    ) -> OrtSession:
        """The variant's session, from the cache or from the release's own file."""
        found = manifest.variant(variant)
        file, signature = found.file, manifest.tensors
        path = folder / file.name
        if self._cache is None or not _is_cached(found):
            return OrtSession(path, options, signature)
        cache = self._cache
        key = cache.key(file.sha256, import_ort().__version__, options)
        return self._cached(cache, key, options, signature) or OrtSession(path, options, signature)

    def _fill(self, cache: SessionCache, slot: Slot, options: SessionOptions) -> None:
        """Have onnxruntime write the slot's optimised model, unless the cache has it.

        By a session of its own: one that has written its model holds the weights twice.
        """
        folder = self._folder(slot.model, slot.slot)
        manifest = bundle.read_manifest(folder)
        found = manifest.variant(slot.variant)
        file, signature = found.file, manifest.tensors
        if not _is_cached(found):
            return
        key = cache.key(file.sha256, import_ort().__version__, options)
        if cache.find(key) or not (into := cache.begin(key)):
            return
        bundle.verify_file(
            folder / file.name, file
        )  # from now on the cache entry stands for this file
        try:
            OrtSession(folder / file.name, options, signature, save_to=into)
        except ModelError:  # the disk refused: the model itself serves
            cache.delete(key)
            raise
        cache.commit(key)

    def _cached(
        self, cache: SessionCache, key: str, options: SessionOptions, signature: Signature
    ) -> OrtSession | None:
        """A session of the cached model; None when there is none that loads."""
        found = cache.find(key)
        if found is None:
            return None
        try:
            return OrtSession(found, options, signature, is_optimised=True)
        except ModelError as error:
            _log.warning("the optimised model %s: %s", found.name, error)
            cache.delete(key)
            return None


def _is_cached(variant: Variant) -> bool:
    """Whether its optimised form is kept: it is of a middling size, and one file."""
    return len(variant.files) == 1 and SMALLEST <= variant.size <= LARGEST


def _warm_up_rows(session: OrtSession, manifest: Manifest) -> None:
    """Run a row of zeros; ModelError when its output has another shape than the manifest says."""
    warm = session.run(np.zeros((1, len(manifest.features)), np.float32))
    outputs = max(1, len(manifest.labels))
    if warm.shape != (1, outputs):
        raise ModelError(
            f"{manifest.release}: output of shape {list(warm.shape)} for one row, "
            f"the manifest says [1, {outputs}]"
        )


def _warm_up_tensors(session: OrtSession, manifest: Manifest, sample: Named) -> None:
    """Run a golden vector; ModelError when an output has another datatype than the manifest says.

    Zeros may not fit: an id of 0, or a length of 0, is often none.
    """
    outputs = manifest.tensors.outputs
    warm = session.run_tensors(sample, [tensor.name for tensor in outputs])
    for tensor, array in zip(outputs, warm, strict=True):
        if datatype_of(array) != tensor.datatype:
            raise ModelError(
                f"{manifest.release}: output {tensor.name!r} is {datatype_of(array)}, "
                f"the manifest says {tensor.datatype}"
            )


def limit_malloc() -> None:
    """Use one malloc arena, so that short-lived threads leave no heaps of their own, and return the
    memory of large blocks (a model's file) when they are freed.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)
    except (OSError, AttributeError):
        pass  # not glibc: nothing to limit


def trim() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc


def loads_opset(opset: int) -> bool:
    """Whether the installed onnxruntime loads a model of an ONNX opset."""
    if opset <= OLDEST_OPSET:
        return True
    ort = import_ort()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    model = _identity(min(opset, NEWEST_OPSET))
    try:
        ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except failures_of_ort():
        return False
    return True


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
