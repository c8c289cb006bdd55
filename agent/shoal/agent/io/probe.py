"""The probe: a release tried in a process of its own before it may serve.

`python -m shoal.agent.io.probe` reads a Request (MessagePack) from standard input, tries every
variant that the profile prefers, and writes Measured structs (JSON) to standard output. A crash,
a hang or a greedy model takes that process down and nothing else.
"""

import ctypes
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from shoal import bundle
from shoal.agent.io.runtime import ENVIRONMENT, OrtSession, import_ort
from shoal.agent.probation import RUNS, Measured
from shoal.agent.update import Slot
from shoal.errors import ModelError, ShoalError
from shoal.manifest import Manifest
from shoal.profile import Profile, SessionOptions
from shoal.sketch import F32

#: Seconds that a probe may take in all, of the clock and of a CPU; seconds between two looks.
LONGEST_S, CPU_S, _LOOK_S = 180.0, 150, 0.2
#: Rounds of RUNS runs: another process only ever adds latency, so the best round is the model's.
ROUNDS, _ENOUGH = 5, 10
_DATA_MB = 512
_ATOL_OF = 1.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to try.

    folder    slot of the release, verified; beside the slot that serves, "" for none
    variants  of the profile, best first; beside_variant the one that serves
    recent    float32 bytes of the last local inputs, row after row
    """

    folder: str
    variants: list[str]
    session: SessionOptions
    p99_ms: float
    beside: str = ""
    beside_variant: str = ""
    recent: bytes = b""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: measurements, or why the model cannot be used at all."""

    measured: list[Measured] = []
    error: str = ""


class SubprocessProber:
    """Runs the probe with limits of its own.

    folder   model, slot -> where its files are
    """

    def __init__(self, folder: Callable[[str, str], Path], environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment

    def probe(
        self,
        model: str,
        slot: str,
        profile: Profile,
        recent: F32 | None,
        beside: Slot | None,
        stop: Callable[[], bool],
    ) -> list[Measured]:
        """Measurements of every variant for `profile`; ModelError when the trial died of it."""
        folder = self._folder(model, slot)
        manifest = bundle.read_manifest(folder)
        shadow = recent is not None and beside is not None
        request = Request(
            folder=str(folder),
            variants=manifest.profiles[profile.name],
            session=profile.session,
            p99_ms=profile.budget.p99_ms,
            beside=str(self._folder(model, beside.slot)) if shadow and beside else "",
            beside_variant=beside.variant if shadow and beside else "",
            recent=recent.astype(np.float32).tobytes() if shadow and recent is not None else b"",
        )
        said, status = self._run(msgspec.msgpack.encode(request), profile.budget.rss_mb, stop)
        return _understood(said, status, profile)

    def _run(self, request: bytes, rss_mb: int, stop: Callable[[], bool]) -> tuple[bytes, int]:
        command = [sys.executable, "-m", "shoal.agent.io.probe", str(2 * rss_mb + _DATA_MB)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment | ENVIRONMENT,
        ) as child:
            return _watched(child, request, stop)


def _watched(
    child: "subprocess.Popen[bytes]", request: bytes, stop: Callable[[], bool]
) -> tuple[bytes, int]:
    """What the child said and how it ended; killed when taken back or too late."""
    waits, given = int(LONGEST_S / _LOOK_S), request
    for _ in range(waits):
        try:
            said, _ = child.communicate(given, timeout=_LOOK_S)
            return said, child.returncode
        except subprocess.TimeoutExpired:
            given = b""
        if stop():
            break
    child.kill()
    child.communicate()
    return b"", -signal.SIGXCPU


def _understood(said: bytes, status: int, profile: Profile) -> list[Measured]:
    if status < 0:
        died = signal.Signals(-status)
        if died in (signal.SIGXCPU, signal.SIGALRM):
            raise SlowError(f"the probe was not done after {LONGEST_S:g} s")
        if died is signal.SIGKILL:
            raise BigError("the probe was killed: out of memory")
        raise ModelError(f"the probe died of {died.name}: this model crashes onnxruntime here")
    try:
        answer = msgspec.json.decode(said, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"the probe ended with status {status} and no answer") from error
    if answer.error == "memory":
        raise BigError(
            f"out of memory in the probe; {profile.name} allows {profile.budget.rss_mb} MB"
        )
    if answer.error:
        raise ModelError(answer.error)
    return answer.measured


class SlowError(ModelError):
    """A model that does not answer in time."""

    code = "too-slow"


class BigError(ModelError):
    """A model that takes more memory than there is."""

    code = "too-big"


# ---------------------------------------------------------------------------- in the child


def main() -> None:
    """Probe what standard input asks for; never raises."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _limit(int(sys.argv[1]))
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request)
    try:
        answer = Answer(measured=_measure_all(request))
    except MemoryError:
        answer = Answer(error="memory")
    except ShoalError as error:
        memory = "alloc" in str(error).lower()
        answer = Answer(error="memory" if memory else str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


def _limit(data_mb: int) -> None:
    """What a hostile or broken model may take: memory, CPU time, disk, and no core dump."""
    resource.setrlimit(resource.RLIMIT_DATA, (data_mb << 20, data_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _measure_all(request: Request) -> list[Measured]:
    import_ort()
    folder = Path(request.folder)
    manifest = bundle.read_manifest(folder)
    golden = bundle.read_golden(folder, manifest)
    recent = np.frombuffer(request.recent, np.float32).reshape(-1, len(manifest.features))
    said_beside = _beside(request, recent) if len(recent) else None
    return [
        _measure(request, manifest, name, golden, recent, said_beside) for name in request.variants
    ]


def _measure(
    request: Request,
    manifest: Manifest,
    name: str,
    golden: bundle.Golden,
    recent: F32,
    said_beside: F32 | None,
) -> Measured:
    session, load_ms = _load(Path(request.folder), manifest, name, request.session)
    said = session.run(golden.inputs)
    want = golden.outputs.get(name)
    if want is None or want.shape != said.shape:
        raise ModelError(f"{name}: answers {list(said.shape)}, the bundle has no golden output so")
    p50_ms, p99_ms = _timed(session, golden.inputs, request.p99_ms)
    error = np.abs(said - want) / np.maximum(_ATOL_OF, np.abs(want))
    regression = manifest.task == "regression"
    return Measured(
        variant=name,
        worst_error=float(np.max(error)) if np.isfinite(said).all() else 1e9,
        labels_differ=0 if regression else _differ(said, want),
        golden_rows=len(want),
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        rss_mb=rss_mb(),
        load_ms=load_ms,
        disagree=_disagree(session, recent, said_beside, regression),
    )


def _load(
    folder: Path, manifest: Manifest, name: str, options: SessionOptions
) -> tuple[OrtSession, float]:
    start = time.perf_counter()
    path = folder / manifest.variant(name).file.name
    session = OrtSession(path, options, manifest.input, manifest.output)
    return session, (time.perf_counter() - start) * 1e3


def _timed(session: OrtSession, inputs: F32, p99_ms: float) -> tuple[float, float]:
    """Median and 99th percentile of one-row runs, milliseconds, of the best round."""
    best = (float("inf"), float("inf"))
    session.run(inputs[:1])
    for _ in range(ROUNDS):
        p50, p99 = np.percentile(_round(session, inputs, p99_ms), [50, 99])
        best = min(best, (float(p99), float(p50)))
        if best[0] <= p99_ms or best[1] > p99_ms:
            break  # within the budget, or a median over it: more rounds change nothing
    return best[1], best[0]


def _round(session: OrtSession, inputs: F32, p99_ms: float) -> list[float]:
    """Milliseconds of up to RUNS runs; fewer when even the quickest is over the budget."""
    took: list[float] = []
    for i in range(RUNS):
        row = inputs[i % len(inputs)][None, :]
        start = time.perf_counter()
        session.run(row)
        took.append((time.perf_counter() - start) * 1e3)
        if len(took) == _ENOUGH and min(took) > p99_ms:
            break
    return took


def _beside(request: Request, recent: F32) -> F32 | None:
    """What the serving release says to the same rows; None when it cannot be asked."""
    try:
        folder = Path(request.beside)
        manifest = bundle.read_manifest(folder)
        session, _ = _load(folder, manifest, request.beside_variant, request.session)
        return session.run(recent)
    except ShoalError:
        return None


def _disagree(session: OrtSession, recent: F32, said_beside: F32 | None, regression: bool) -> float:
    if said_beside is None or regression:
        return -1.0
    said = session.run(recent)
    return _differ(said, said_beside) / len(recent) if said.shape == said_beside.shape else -1.0


def _differ(a: F32, b: F32) -> int:
    return int((a.argmax(1) != b.argmax(1)).sum())


def rss_mb() -> float:
    """Resident memory of this process, MB; 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
