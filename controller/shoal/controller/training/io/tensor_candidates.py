"""Variants of a model of tensors, made and measured in a child process with limits.

    python -m shoal.controller.training.io.tensor_candidates    a Request on stdin, Events on stdout

A quantizer that crashes, hangs or asks for too much memory costs its candidate, no more: the child
is started again for the others.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from shoal.controller.releases import verdicts
from shoal.controller.releases.records import ModelFacts, VariantReport, Verdict
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import limited_child
from shoal.controller.training.io.agreement import Comparison, comparison_of_task
from shoal.controller.training.jobs import Inspection, ReportProgress
from shoal.errors import ModelError, ShoalError
from shoal.golden import LIMIT, GoldenTensors, Vector
from shoal.profile import load_profiles
from shoal.signature import Signature
from shoal.tasks import Task, outputs_of
from shoal.tensors import StoredTensor
from shoal.validation_errors import decode_errors_as

#: Items that a sample must have, and of which at most so many calibrate, and as many judge.
LEAST_ITEMS, MOST_ITEMS = 8, 64
#: MB of a file above which no variants are made.
_LARGEST_MB = 256
#: Seconds for all candidates; CPU seconds of a child, and wall seconds for each.
LIMIT_S, _CPU_S, _WALL = 120.0, 300, 3
#: MB of memory of the child, and for each MB of the file; MB of a file that it writes.
_DATA_MB, _PER_STORED, _FILE_MB = 1_024, 14, 64
#: Milliseconds of one run above which fewer items are run: as many as take so many seconds.
_ITEMS_S = 20.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """path: the file that serves as fp32; folder: where variants go; skipped: not to be tried;
    task: what its outputs mean, None where nothing is claimed."""

    path: str
    name: str
    sample: str
    folder: str
    facts: ModelFacts
    signature: Signature
    golden: bytes
    most_items: int
    task: Task | None = None
    skipped: dict[str, str] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """golden: for each vector, variant -> its outputs."""

    reports: list[VariantReport]
    verdicts: list[Verdict]
    golden: list[dict[str, dict[str, StoredTensor]]]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the child is doing, or its result, or why it has none."""

    share: float = 0.0
    step: str = ""
    trying: str = ""
    result: Result | None = None
    error: str = ""


Send = Callable[[Event], None]


class TensorVariants(NamedTuple):
    """Reports of every candidate, fp32 first, verdicts, and what is in the release: files by name,
    and golden vectors (content of golden.msgpack)."""

    reports: list[VariantReport]
    verdicts: list[Verdict]
    files: dict[str, bytes]
    golden: bytes


def judge_candidates(
    served: bytes | Path,
    fp32: VariantReport,
    found: Inspection,
    name: str,
    sample: Path | None,
    progress: ReportProgress,
    *,
    whole: bool = True,
) -> TensorVariants:
    """Make and measure the variants of a model of tensors that some profile wants.

    served   the file of variant fp32, and its report
    sample   items of the author's own; without LEAST_ITEMS of them no variant is made
    whole    all weights are in the file
    """
    if not whole:
        return _none(fp32, found, "not tried for a model that keeps weights in other files")
    if sample is None:
        return _none(fp32, found, "no sample was given to measure it by (--sample FILE.npz)")
    if found.items < LEAST_ITEMS:
        return _none(fp32, found, f"{LEAST_ITEMS} items of a sample are needed to measure it by, "
                                  f"it has {found.items}")  # fmt: skip
    if fp32.size > _LARGEST_MB << 20:
        return _none(fp32, found, f"not tried for a file of more than {_LARGEST_MB} MB")
    with tempfile.TemporaryDirectory(prefix="variants-") as folder:
        path = served
        if isinstance(path, bytes):
            path = Path(folder) / "served.onnx"
            path.write_bytes(served)  # type: ignore[arg-type]
        request = Request(
            path=str(path), name=name, sample=str(sample), folder=folder,
            facts=found.facts, signature=found.signature, golden=found.golden,
            task=found.task.meaning if found.task else None,
            most_items=max(LEAST_ITEMS // 2, min(MOST_ITEMS, int(1e3 * _ITEMS_S / found.run_ms))),
        )  # fmt: skip
        result = _ask(request, progress)
        if isinstance(result, str):
            return _none(fp32, found, result)
        files = {
            report.name: (Path(folder) / f"{report.name}.onnx").read_bytes()
            for report in result.reports
            if not report.dropped and report.name != FP32
        }
    reports = [fp32 if report.name == FP32 else report for report in result.reports]
    return TensorVariants(reports, result.verdicts, files, _with_variants(found.golden, result))


def _none(fp32: VariantReport, found: Inspection, why: str) -> TensorVariants:
    """fp32 alone."""
    profiles = load_profiles()
    names = dict.fromkeys(n for p in profiles.values() for n in p.variants if n != FP32)
    judged = verdicts.judge_tensors(
        {FP32: fp32}, dict.fromkeys(names, why), found.facts.memory_mb, profiles
    )
    unmade = [
        VariantReport(name=n, sha256="", size=0, metrics={}, cosine=0.0, dropped=why) for n in names
    ]
    return TensorVariants([fp32, *unmade], judged, {}, found.golden)


def _with_variants(golden: bytes, result: Result) -> bytes:
    """The vectors with the variants' outputs: the first ones that fit."""
    vectors = msgspec.msgpack.decode(golden, type=GoldenTensors).vectors
    whole = [
        Vector(inputs=vector.inputs, outputs={**vector.outputs, **outputs})
        for vector, outputs in zip(vectors, result.golden, strict=True)
    ]
    while len(data := GoldenTensors(vectors=whole).to_bytes()) > LIMIT and len(whole) > 1:
        whole.pop()
    return data


def _ask(request: Request, progress: ReportProgress) -> Result | str:
    """The result, or why there is none; a candidate that ends the child is left out of the next."""
    for _ in range(len(load_profiles()) + 1):
        last = Event()
        child = _start(request)
        timer = threading.Timer(_WALL * _CPU_S, child.kill)
        timer.start()
        try:
            last = _follow(child, request, progress)
        finally:
            timer.cancel()
            child.kill()
            child.wait()
        if last.result is not None:
            return last.result
        if last.error:
            return last.error
        if not last.trying or last.trying in request.skipped:
            return f"measuring it ended ({_ended(child.returncode)})"
        why = f"making it ended the process ({_ended(child.returncode)})"
        request = msgspec.structs.replace(request, skipped={**request.skipped, last.trying: why})
    return "making variants ended the process again and again"


def _ended(status: int) -> str:
    if -status == signal.SIGXCPU:
        return f"{_CPU_S} s of CPU used"
    if -status == signal.SIGKILL:
        return f"out of memory, or of {_WALL * _CPU_S} s"
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _start(request: Request) -> "subprocess.Popen[bytes]":
    stored_mb = Path(request.path).stat().st_size / (1 << 20)
    data_mb = _DATA_MB + math.ceil(_PER_STORED * stored_mb)
    file_bytes = (_FILE_MB << 20) + math.ceil(2 * stored_mb) * (1 << 20)
    limits = [str(number) for number in (_CPU_S, data_mb, file_bytes, os.getpid())]
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=limited_child.environment() | {"TMPDIR": request.folder},
    )
    assert child.stdin is not None
    try:
        child.stdin.write(msgspec.json.encode(request))
        child.stdin.close()
    except BrokenPipeError:
        pass
    return child


def _follow(child: "subprocess.Popen[bytes]", request: Request, progress: ReportProgress) -> Event:
    """The last event, with the candidate that was being tried."""
    trying, last = "", Event()
    assert child.stdout is not None
    for line in child.stdout:
        with decode_errors_as(lambda cause: ModelError(f"{request.name}: variants: {cause}")):
            last = msgspec.json.decode(line, type=Event)
        trying = last.trying or trying
        if last.step:
            progress(0.1 + 0.75 * min(1.0, max(0.0, last.share)), last.step)
    return msgspec.structs.replace(last, trying=trying)


# ---- in the child


def main() -> None:
    """Answer the one request; never raises."""
    cpu_s, data_mb, file_bytes, parent = map(int, sys.argv[1:5])
    limited_child.limit(cpu_s=cpu_s, data_mb=data_mb, file_bytes=file_bytes, parent=parent)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    # Libraries print: events alone go to the pipe.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(event: Event) -> None:
        pipe.write(msgspec.json.encode(event) + b"\n")
        pipe.flush()

    try:
        send(_answer(request, send))
    except ShoalError as error:
        send(Event(error=error.message))
    os._exit(0)  # without unloading libraries


def _answer(request: Request, send: Send) -> Event:
    from onnx import ModelProto

    from shoal.controller.training.io import comparison, samples
    from shoal.controller.training.io.candidates import Trial
    from shoal.controller.training.io.quantize import Quantizer
    from shoal.controller.training.io.tensor_measures import Sample, TensorMeasures

    items = samples.read_sample(Path(request.sample), request.facts.inputs)
    vectors = msgspec.msgpack.decode(request.golden, type=GoldenTensors).vectors
    sample = Sample(
        items[0::2][: request.most_items],
        items[1::2][: request.most_items],
        [vector.arrays() for vector in vectors],
    )
    del items
    data = Path(request.path).read_bytes()
    compared = [*vectors[0].outputs[FP32]]
    measures = TensorMeasures(
        data,
        request.signature,
        sample,
        compared,
        request.facts.memory_mb,
        comparison.read_cpu(),
        _comparison(request, compared),
    )
    model = ModelProto.FromString(data)
    trial = Trial(
        model,
        Quantizer(model, measures.feeds),
        measures,
        measures.given,
        lambda share, step: send(Event(share=share, step=step)),
        skipped=request.skipped,
        limit_s=LIMIT_S,
        trying=lambda name: send(Event(trying=name)),
    )
    judged = trial.run()
    golden: list[dict[str, dict[str, StoredTensor]]] = [{} for _ in vectors]
    for name, made in judged.files.items():
        (Path(request.folder) / f"{name}.onnx").write_bytes(made)
        for at, outputs in enumerate(measures.golden_of(judged.reports[name], made)):
            golden[at][name] = outputs
    reports = list(judged.reports.values())
    return Event(result=Result(reports=reports, verdicts=judged.verdicts, golden=golden))


def _comparison(request: Request, compared: Sequence[str]) -> Comparison | None:
    """That of the task; None for that of its numbers, where it has none or answers at random."""
    task = request.task
    if task is None or not set(outputs_of(task)) <= set(compared):
        return None
    return comparison_of_task(task, request.signature)


if __name__ == "__main__":
    main()
