"""The child process of the probe: `python -m shoal.agent.update.io.trial`.

It loads its libraries and waits for a byte on standard input, after which a Request (MessagePack)
is in the memory file that it was given. It runs every variant that the profile prefers, and writes
a TrialResult (JSON) to standard output. A crash, a hang or an allocation beyond the limit ends
this process only. Every update waits for it, so it imports only what it needs.
"""

import contextlib
import functools
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from shoal import bundle
from shoal.agent.host.io.child_process import die_with_parent, limit
from shoal.agent.serving.io.session import OrtSession, import_ort
from shoal.agent.update.acceptance import RUNS, Measured
from shoal.errors import ModelError, ShoalError
from shoal.golden import Vector
from shoal.manifest import Manifest
from shoal.profile import SessionOptions
from shoal.sketch import F32
from shoal.tensors import Named

#: CPU seconds of a trial, at most.
CPU_S = 150
#: Rounds of RUNS runs: other processes only add latency, so the best round counts.
ROUNDS, _ENOUGH = 5, 10
_ATOL_OF = 1.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The release to try.

    folder    its slot, verified; beside: slot of the serving release, "" for none
    variants  of the profile, preferred first; beside_variant: the serving one
    recent    float32 bytes of the last local inputs, row by row
    """

    folder: str
    variants: list[str]
    session: SessionOptions
    p99_ms: float
    beside: str = ""
    beside_variant: str = ""
    recent: bytes = b""


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements, or why the model cannot be used."""

    measured: list[Measured] = []
    error: str = ""


def main() -> None:
    """Run the requested trial; never raises, never returns."""
    parent, data_mb, descriptor = map(int, sys.argv[1:4])
    limit(data_mb=data_mb, cpu_s=CPU_S, file_bytes=0)
    _get_ready()
    signalled = sys.stdin.buffer.read(1)
    # Not before: the signal follows the thread that started this process.
    die_with_parent()
    if not signalled or os.getppid() != parent:
        os._exit(0)
    with os.fdopen(descriptor, "rb") as file:
        request = msgspec.msgpack.decode(file.read(), type=Request)
    try:
        result = TrialResult(measured=_measure_all(request))
    except MemoryError:
        result = TrialResult(error="memory")
    except ShoalError as error:
        memory = "alloc" in str(error).lower()
        result = TrialResult(error="memory" if memory else str(error))
    sys.stdout.buffer.write(msgspec.json.encode(result))
    sys.stdout.flush()
    os._exit(0)  # without unloading libraries: the update waits for this process


def _get_ready() -> None:
    """Load what every trial needs, before the Request comes."""
    with contextlib.suppress(MemoryError):  # reported with the Request
        import zipfile  # noqa: F401 np.load needs it

        import_ort()


def _measure_all(request: Request) -> list[Measured]:
    import_ort()
    folder = Path(request.folder)
    manifest = bundle.read_manifest(folder)
    if not manifest.takes_rows:
        vectors = bundle.read_golden_tensors(folder, manifest).vectors
        return [_measure_tensors(request, manifest, name, vectors) for name in request.variants]
    golden = bundle.read_golden(folder, manifest)
    recent = np.frombuffer(request.recent, np.float32).reshape(-1, len(manifest.features))
    serving_outputs = _beside(request, recent) if len(recent) else None
    return [
        _measure(request, manifest, name, golden, recent, serving_outputs)
        for name in request.variants
    ]


def _measure(
    request: Request,
    manifest: Manifest,
    name: str,
    golden: bundle.Golden,
    recent: F32,
    serving_outputs: F32 | None,
) -> Measured:
    session, load_ms = _load(Path(request.folder), manifest, name, request.session)
    outputs = session.run(golden.inputs)
    want = golden.outputs.get(name)
    if want is None or want.shape != outputs.shape:
        raise ModelError(f"{name}: output {list(outputs.shape)} has no golden output in the bundle")
    runs = [functools.partial(session.run, row[None, :]) for row in golden.inputs]
    p50_ms, p99_ms = _timed(runs, request.p99_ms)
    error = np.abs(outputs - want) / np.maximum(_ATOL_OF, np.abs(want))
    regression = manifest.task == "regression"
    disagree = _disagree(session, recent, serving_outputs, regression)
    return Measured(
        variant=name,
        worst_error=float(np.max(error)) if np.isfinite(outputs).all() else 1e9,
        labels_differ=0 if regression else _differ(outputs, want),
        golden_rows=len(want),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        rss_mb=rss_mb(),
        load_ms=load_ms,
        disagree=disagree,
        compared=len(recent) if disagree >= 0 else 0,
    )


def _measure_tensors(
    request: Request, manifest: Manifest, name: str, vectors: Sequence[Vector]
) -> Measured:
    session, load_ms = _load(Path(request.folder), manifest, name, request.session)
    outputs = [tensor.name for tensor in manifest.tensors.outputs]
    feeds = [vector.arrays() for vector in vectors]
    worst, where = 0.0, ""
    for i, vector in enumerate(vectors):
        found = dict(zip(outputs, session.run_tensors(feeds[i], outputs), strict=True))
        for output, deviation in _deviations(name, vector, found):
            if deviation > worst:
                worst, where = deviation, f"output {output!r} of golden vector {i}"
    runs = [functools.partial(session.run_tensors, given, outputs) for given in feeds]
    p50_ms, p99_ms = _timed(runs, request.p99_ms)
    return Measured(
        variant=name,
        worst_error=0.0,
        labels_differ=0,
        golden_rows=len(vectors),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        rss_mb=rss_mb(),
        load_ms=load_ms,
        deviation=min(worst, 1e9),
        where=where,
    )


def _deviations(name: str, vector: Vector, found: Named) -> list[tuple[str, float]]:
    """The outputs of a golden vector, and how far each is from what it must be."""
    want = vector.outputs.get(name)
    if not want or not want.keys() <= found.keys():
        raise ModelError(f"{name}: its outputs have no golden outputs in the bundle")
    return [(output, stored.deviation(found[output])) for output, stored in want.items()]


def _load(
    folder: Path, manifest: Manifest, name: str, options: SessionOptions
) -> tuple[OrtSession, float]:
    start = time.perf_counter()
    path = folder / manifest.variant(name).file.name
    session = OrtSession(path, options, manifest.tensors)
    return session, (time.perf_counter() - start) * 1e3


def _timed(runs: Sequence[Callable[[], object]], p99_ms: float) -> tuple[float, float]:
    """Median and 99th percentile of one-row runs, milliseconds, of the best round."""
    best = (float("inf"), float("inf"))
    runs[0]()
    for _ in range(ROUNDS):
        took = sorted(_round(runs, p99_ms))
        best = min(best, (percentile(took, 99), percentile(took, 50)))
        if best[0] <= p99_ms or best[1] > p99_ms:
            break  # within the budget, or a median over it: more rounds change nothing
    return best[1], best[0]


def percentile(ordered: list[float], percent: float) -> float:
    """numpy.percentile without loading numpy.ma, which is more than all other code of a trial.

    >>> percentile([1.0, 2.0, 4.0], 50), percentile([1.0, 2.0, 4.0], 75)
    (2.0, 3.0)
    """
    at = percent / 100 * (len(ordered) - 1)
    low, high = math.floor(at), math.ceil(at)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _round(runs: Sequence[Callable[[], object]], p99_ms: float) -> list[float]:
    """Milliseconds of up to RUNS runs; fewer when even the fastest is over the budget."""
    took: list[float] = []
    for i in range(RUNS):
        run = runs[i % len(runs)]
        start = time.perf_counter()
        run()
        took.append((time.perf_counter() - start) * 1e3)
        if len(took) == _ENOUGH and min(took) > p99_ms:
            break
    return took


def _beside(request: Request, recent: F32) -> F32 | None:
    """Outputs of the serving release for the same rows; None when it cannot be run."""
    try:
        folder = Path(request.beside)
        manifest = bundle.read_manifest(folder)
        session, _ = _load(folder, manifest, request.beside_variant, request.session)
        return session.run(recent)
    except ShoalError:
        return None


def _disagree(
    session: OrtSession, recent: F32, serving_outputs: F32 | None, regression: bool
) -> float:
    if serving_outputs is None or regression:
        return -1.0
    outputs = session.run(recent)
    return (
        _differ(outputs, serving_outputs) / len(recent)
        if outputs.shape == serving_outputs.shape
        else -1.0
    )


def _differ(a: F32, b: F32) -> int:
    return int((a.argmax(1) != b.argmax(1)).sum())


def rss_mb() -> float:
    """Resident memory of this process, MB; 0 without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
