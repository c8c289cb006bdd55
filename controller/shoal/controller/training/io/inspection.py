"""Inspection of an untrusted ONNX file, in a child process with limits.

    python -m shoal.controller.training.io.inspection    a Request on stdin, an answer on stdout

A file of 300 bytes can loop for ever or ask for gigabytes; the child ends then, and the caller has
a ModelError. It has no secrets: only the paths of the file, its data files and the sample.

A large model is never read whole: onnxruntime maps its weights from the file and the data files.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from shoal import task_outputs
from shoal.controller.releases.records import ModelFacts, TaskReport
from shoal.controller.training.io import limited_child
from shoal.controller.training.jobs import Inspection, TaskDeclaration
from shoal.errors import ModelError, SettingError, ShoalError
from shoal.validation_errors import decode_errors_as

#: CPU seconds and MB of memory beside the weights that an inspection may take.
CPU_S, DATA_MB = 9, 768
#: Memory for each byte of a file up to so many MB: the file, its parsed form, onnxruntime's, its
#: optimised one; and for each byte of more and of data files: the mapped one, which counts because
#: it may be written to, the packed one, and one more.
_PER_STORED, _STORED_MB, _PER_MAPPED = 6, 512, 3
#: MB of weights from which on free memory is looked at before; what is needed beside the weights.
_LARGE_MB, _BESIDE_MB = 128, 256
#: CPU seconds more to measure a model by its task.
_TASK_S = 60
#: CPU seconds more for each 100 MB of file; wall seconds for each CPU second.
_PER_100_MB_S, _WALL = 10, 4
#: Items whose outputs are looked at to tell what they may mean.
_LOOKED_AT = 8


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """verb: "facts" reads and loads; "tensors" runs; "rows" runs zeros (3, features).

    data    name that the model calls a data file -> its path
    steps   path of declared steps, which become part of the model first; "" for none
    declared  what is claimed of it; None for nothing
    """

    verb: Literal["facts", "tensors", "rows"]
    path: str
    name: str
    data: dict[str, str] = {}
    sample: str = ""
    kinds: dict[str, str] = {}
    features: int = 0
    steps: str = ""
    declared: TaskDeclaration | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One field is set, or the error with its hint. setting: it is one of the file of steps."""

    facts: ModelFacts | None = None
    inspection: Inspection | None = None
    error: str = ""
    hint: str = ""
    setting: bool = False


def read_facts(
    path: Path, name: str, data: Mapping[str, Path] = {}, steps: Path | None = None
) -> ModelFacts:
    """Facts of a file that this onnxruntime loads; ModelError, naming `name`, for any other.

    data    the files that it keeps weights in, by the names that it calls them; none for most
    steps   a file of declared steps: the facts are those of the model that they are part of;
            SettingError for one that cannot be read
    """
    answer = _ask(
        Request(verb="facts", path=str(path), name=name, data=_named(data), steps=_text(steps))
    )
    assert answer.facts is not None
    return answer.facts


def inspect(
    path: Path,
    name: str,
    sample: Path | None = None,
    data: Mapping[str, Path] = {},
    steps: Path | None = None,
    kinds: Mapping[str, str] = {},
    declared: TaskDeclaration | None = None,
) -> Inspection:
    """Run a model of tensors: its signature, golden vectors, references, cost, and how well it does
    its task.

    sample   .npz: an array for each input, items along its first axis; None to make inputs up
    kinds    what inputs are, as a person says: tensor_kinds.parse_kinds
    data     as read_facts
    steps    a file of declared steps that become part of the model; None for none
    declared what is claimed of it; it is measured on the sample, where that has labels

    ModelError, naming `name`, when it cannot be served, or when the claim does not fit it.
    """
    answer = _ask(
        Request(
            verb="tensors", path=str(path), name=name, data=_named(data), sample=_text(sample),
            steps=_text(steps), kinds=dict(kinds), declared=declared,
        )
    )  # fmt: skip
    assert answer.inspection is not None
    return answer.inspection


def check_rows(path: Path, name: str, features: int, data: Mapping[str, Path] = {}) -> ModelFacts:
    """Facts of a model that runs for three rows of zeros; ModelError for any other."""
    answer = _ask(
        Request(verb="rows", path=str(path), name=name, data=_named(data), features=features)
    )
    assert answer.facts is not None
    return answer.facts


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)


def _named(data: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in data.items()}


def _ask(request: Request) -> Answer:
    """The child's answer; ModelError when it refused the file or met a limit."""
    file_mb, *data_mbs = (
        Path(path).stat().st_size / (1 << 20) for path in (request.path, *request.data.values())
    )
    stored_mb = file_mb + sum(data_mbs)
    read_mb = min(file_mb, _STORED_MB)
    cpu_s = CPU_S + int(_PER_100_MB_S * stored_mb / 100)
    cpu_s += _TASK_S if request.declared is not None else 0
    data_mb = DATA_MB + math.ceil(_PER_STORED * read_mb + _PER_MAPPED * (stored_mb - read_mb))
    if request.verb == "tensors":
        _check_memory(request.name, stored_mb)
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, str(cpu_s), str(data_mb), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=limited_child.environment(),
    )
    with child:
        try:
            output, _ = child.communicate(msgspec.json.encode(request), timeout=_WALL * cpu_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise _too_slow(request.name, cpu_s) from None
    if child.returncode < 0 or not output:
        raise _died(request.name, child.returncode, cpu_s, data_mb)
    with decode_errors_as(lambda cause: ModelError(f"{request.name}: inspection: {cause}")):
        answer = msgspec.json.decode(output, type=Answer)
    if answer.error == "memory":
        raise _too_large(request.name, data_mb)
    if answer.error:
        raise (SettingError if answer.setting else ModelError)(answer.error, answer.hint)
    return answer


def _check_memory(name: str, stored_mb: float) -> None:
    """ModelError where a large model would not fit into this machine's free memory."""
    free_mb, need_mb = available_mb(), stored_mb + _BESIDE_MB
    if stored_mb >= _LARGE_MB and 0 <= free_mb < need_mb:
        raise ModelError(
            f"to run {name} takes about {need_mb:.0f} MB of memory, and the controller has "
            f"{free_mb:.0f} MB free",
            "end other programs there, or import it again later",
        )


def available_mb() -> float:
    """MB of memory that this machine has left for processes; -1 where that is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 1024
    return -1.0


def _died(name: str, status: int, cpu_s: int, data_mb: int) -> ModelError:
    if -status in (signal.SIGXCPU, signal.SIGALRM):
        return _too_slow(name, cpu_s)
    if -status in (signal.SIGKILL, signal.SIGABRT):
        return _too_large(name, data_mb)
    died = signal.Signals(-status).name if status < 0 else f"status {status}"
    return ModelError(f"{name} crashes onnxruntime ({died})", "export it again")


def _too_slow(name: str, cpu_s: int) -> ModelError:
    return ModelError(
        f"{name} was not done after {cpu_s} s of CPU",
        "a loop that never ends? a device could not run it either",
    )


def _too_large(name: str, data_mb: int) -> ModelError:
    return ModelError(
        f"{name} needs more than {data_mb} MB of memory",
        "give a --sample with smaller items, or use a smaller model",
    )


# ---- in the child


def main() -> None:
    """Answer the one request; never raises."""
    cpu_s, data_mb, parent = map(int, sys.argv[1:4])
    limited_child.limit(cpu_s=cpu_s, data_mb=data_mb, file_bytes=0, parent=parent)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        answer = _answer(request)
    except MemoryError:
        answer = Answer(error="memory")
    except SettingError as error:
        answer = Answer(error=error.message, hint=error.hint, setting=True)
    except ShoalError as error:
        memory = "bad_alloc" in error.message or "Failed to allocate" in error.message
        answer = Answer(error="memory" if memory else error.message, hint=error.hint)
    except Exception as error:  # noqa: BLE001 a bug of a library refuses one file, no more
        answer = Answer(error=f"{request.name}: {type(error).__name__}: {error!s:.300}")
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    os._exit(0)  # without unloading libraries


def _answer(request: Request) -> Answer:
    from shoal.controller.training.io import (
        composed_model,
        data_files,
        model_checks,
        runtime,
        zip_maps,
    )  # fmt: skip

    path, name = Path(request.path), request.name
    data = {called: Path(where) for called, where in request.data.items()}
    if request.verb == "rows":
        model, left_out = model_checks.read_model(path, name), 0
        notes = []
    elif request.steps:
        model, left_out, data = composed_model.read_whole(path, name, data), 0, {}
        notes = zip_maps.flatten(model)
    else:
        model, left_out = model_checks.read_outline(path, name)
        notes = zip_maps.flatten(model)
    zip_maps.check_size(path, name, notes)
    sizes = {called: where.stat().st_size for called, where in data.items()}
    facts = model_checks.check_model(model, name, model_checks.Stored(path.name, left_out, sizes))
    if request.steps:
        model, facts, more = _with_steps(model, facts, request)
        notes = [*notes, *more]
    folder = data_files.folder_of([path, *data.values()])
    data_files.point_to(model, data | {path.name: path}, folder)
    changed = notes or left_out or data or request.steps
    file: Path | bytes = model.SerializeToString() if changed else path
    del model
    if request.verb == "facts":
        runtime.open_session(file, name, folder=folder, only_check=True)
        return Answer(facts=facts)
    session = runtime.open_session(file, name, folder=folder)
    if request.verb == "rows":
        _run_zeros(session, facts, request.features)
        return Answer(facts=facts)
    inspection = _inspect(session, facts, request)
    return Answer(inspection=msgspec.structs.replace(inspection, notes=[*notes, *inspection.notes]))


def _with_steps(
    model: Any, facts: ModelFacts, request: Request
) -> tuple[Any, ModelFacts, list[str]]:
    """The model with its steps, its facts, and notes."""
    from shoal.controller.training.io import composed_model, model_checks
    from shoal.controller.training.steps import declaration

    steps = declaration.parse(Path(request.steps).read_bytes())
    raised, notes = composed_model.raise_opset(model, steps.opset, request.name)
    if notes and request.verb == "tensors":
        notes += _compare_raised(model, raised, facts, request.name)
    composed = composed_model.compose(raised, steps, request.name)
    return composed, model_checks.check_model(composed, request.name), notes


def _compare_raised(model: Any, raised: Any, facts: ModelFacts, name: str) -> list[str]:
    """A note on how far the raised model was compared; ModelError when it answers otherwise."""
    from shoal.controller.training.io import runtime, tensor_runs

    before, after = (runtime.open_session(m.SerializeToString(), name) for m in (model, raised))
    return tensor_runs.compare(before, after, facts, name)


def _run_zeros(session: Any, facts: ModelFacts, features: int) -> None:
    """Run three rows of zeros; where they do not fit, the import says what is wrong."""
    if len(facts.inputs) == 1 and facts.inputs[0].type == "FP32":
        with contextlib.suppress(Exception):
            session.run(None, {facts.inputs[0].name: np.zeros((3, features), np.float32)})


def _inspect(session: Any, facts: ModelFacts, request: Request) -> Inspection:
    from shoal.controller.training import tensor_references
    from shoal.controller.training.io import model_checks, samples, tensor_runs
    from shoal.controller.training.steps import declaration

    model_checks.check_servable(facts, request.name)
    items = samples.read_sample(Path(request.sample), facts.inputs) if request.sample else []
    said = request.kinds
    if request.steps:
        said = declaration.parse(Path(request.steps).read_bytes()).kinds | said
    measured = tensor_runs.measure(session, facts, request.name, items)
    task, proposed = _task_of(session, facts, request, measured)
    sketching = tensor_references.sketching_of(
        measured.signature,
        items,
        measured.answers if items else [],
        said,
        task.meaning if task is not None else None,
    )
    return Inspection(
        facts=facts,
        signature=sketching.signature,
        references=sketching.references,
        golden=measured.golden,
        notes=[*measured.notes, *sketching.notes, *proposed],
        run_ms=measured.run_ms,
        rss_mb=_peak_mb(),
        task=task,
        items=len(items),
    )


def _task_of(
    session: Any, facts: ModelFacts, request: Request, measured: Any
) -> tuple[TaskReport | None, list[str]]:
    """What is claimed and how far it is true; or notes that propose what could be claimed."""
    from shoal.controller.training import task_declaration

    signature, answers = measured.signature, measured.answers
    firsts = [task_outputs.items_first(signature, one) for one in answers[:_LOOKED_AT]]
    seen = task_declaration.look_at(signature, firsts)
    if request.declared is None:
        return None, task_declaration.proposals(seen)
    from shoal.controller.training.io import task_evaluation, tensor_runs

    one = request.declared
    declared = task_declaration.complete(one.word, one.settings, one.labels, seen)
    declared.task.check(signature)
    model = task_evaluation.Model(
        tensor_runs.runner_of(session, request.name), signature, facts, measured.run_ms
    )
    sample = Path(request.sample) if request.sample else None
    return task_evaluation.report_of(model, declared, sample), []


def _peak_mb() -> float:
    """Largest resident memory of this process, MB; ru_maxrss has the parent's after a fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
