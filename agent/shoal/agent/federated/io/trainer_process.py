"""The trainer: local training in a process with a lower priority than inference.

`python -m shoal.agent.federated.io.trainer_process` reads a SandboxJob (MessagePack) from standard
input and writes an Answer (JSON) to standard output. It has limits of memory, CPU and file size,
the lowest priority, one thread, and ends with the agent. While training has to pause it is
stopped (SIGSTOP), and continued afterwards.

The process reads the sandbox, the task's folder and the device's rows, and writes to the sandbox
only. It has no key, no network address and no slot.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shoal.agent.federated import trainer
from shoal.agent.federated.io import sandbox
from shoal.agent.federated.io.row_buffer import BUFFER, read_examples
from shoal.agent.federated.ports import CONTRIBUTION, NUMBERS
from shoal.agent.federated.trainer import Rows, Tensor, TrainingJob, TrainingResult
from shoal.agent.host.io.child_process import die_with_parent, limit, memory_file
from shoal.agent.installed.record import SavedUpdate
from shoal.agent.serving.io.session import ENVIRONMENT
from shoal.durable import write_durable
from shoal.errors import LinkError, RefusedError, ShoalError
from shoal.federated.compression import compress, with_feedback
from shoal.federated.distributed import encode_privately
from shoal.federated.masks import U32, add_mask
from shoal.federated.messages import Contribution, Measured
from shoal.federated.noise import Draws, bounded
from shoal.params import F32, norm_of
from shoal.validation_errors import decode_errors_as

#: Seconds between two polls of the child; bytes that a file may have beside a multiple of theta's.
_POLL_S, _FILE = 0.1, 64 << 20
_NICEST = 19
#: The multiple of theta's length.
_TIMES = 4
_BAD_GRAPH = "bad-graph"


class SandboxJob(msgspec.Struct, frozen=True, kw_only=True):
    """A training job with its folders: of the attempt and of the task; and the file of rows."""

    work: TrainingJob
    folder: str
    task: str
    buffer: str


def sandboxed(folder: Path, attempt: bytes, work: TrainingJob) -> SandboxJob:
    """A job with its folders below the learning folder."""
    return SandboxJob(
        work=work,
        folder=str(sandbox.rounds_folder(folder, attempt.hex()).absolute()),
        task=str(sandbox.task_folder(folder, work.config.plan.task).absolute()),
        buffer=str((folder / BUFFER).absolute()),
    )


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The result, or the reason and a sentence for an error."""

    result: TrainingResult | None = None
    reason: str = ""
    detail: str = ""


class SubprocessTrainer:
    """Runs each job in a process with limits. See ports.Trainer.

    folder     the learning folder, see sandbox.py
    memory_mb, cpu_s   that one job may use
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], *, memory_mb: int, cpu_s: float
    ) -> None:
        self._folder, self._environment = folder, environment
        self._memory_mb, self._cpu_s = memory_mb, cpu_s

    def run(
        self,
        attempt: bytes,
        job: TrainingJob,
        pause_reason: Callable[[], str],
        cancelled: Callable[[], bool],
    ) -> TrainingResult:
        """Run a job; RefusedError: why it failed; LinkError: it was cancelled."""
        request_job = sandboxed(self._folder, attempt, job)
        file = _FILE + _TIMES * job.config.theta.length
        limits = [str(os.getpid()), str(self._memory_mb), str(int(self._cpu_s)), str(file)]
        with (
            memory_file(msgspec.msgpack.encode(request_job)) as request,
            subprocess.Popen(
                [sys.executable, "-m", "shoal.agent.federated.io.trainer_process", *limits],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment | ENVIRONMENT,
                cwd=request_job.folder,
            ) as child,
        ):
            output, status = _wait(child, pause_reason, cancelled)
        return _result(output, status, self._memory_mb, self._cpu_s)


def _wait(
    child: "subprocess.Popen[bytes]", pause_reason: Callable[[], str], cancelled: Callable[[], bool]
) -> tuple[bytes, int]:
    """Output and status of the child; LinkError when it was cancelled, and killed."""
    paused = False
    try:
        while not cancelled():
            try:
                output, _ = child.communicate(timeout=_POLL_S)
                return output, child.returncode
            except subprocess.TimeoutExpired:
                pass
            if bool(pause_reason()) != paused:
                paused = not paused
                child.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    raise LinkError("training was cancelled")


def _result(output: bytes, status: int, memory_mb: int, cpu_s: float) -> TrainingResult:
    if status == -signal.SIGXCPU:
        raise RefusedError(f"training took more than {cpu_s:g} s of CPU", "too-slow")
    if status == -signal.SIGKILL:
        raise RefusedError("training was killed: out of memory", "little-memory")
    ended = f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
    died = RefusedError(f"the trainer {ended} without an answer", "trainer-died")
    with decode_errors_as(lambda _: died):
        answer = msgspec.json.decode(output, type=Answer)
    if answer.reason == "little-memory":
        hint = "raise learning.memory_mb in agent.toml, or leave this model out"
        raise RefusedError(f"out of memory at {memory_mb} MB", answer.reason, hint)
    if answer.result is None:
        raise RefusedError(answer.detail, answer.reason)
    return answer.result


# ---------------------------------------------------------------------------- in the child


def main() -> None:
    """Run the job on standard input; never raises."""
    parent, memory_mb, cpu_s, file = map(int, sys.argv[1:5])
    die_with_parent()
    if os.getppid() != parent:
        return  # the parent died first
    _lower_priority()
    limit(data_mb=memory_mb, cpu_s=cpu_s, file_bytes=file)
    sys.stdout.buffer.write(msgspec.json.encode(_answer(sys.stdin.buffer.read())))


def _answer(request: bytes) -> Answer:
    try:
        job = msgspec.msgpack.decode(request, type=SandboxJob)
        return Answer(result=run_job(job))
    except MemoryError:
        return Answer(reason="little-memory")
    except RefusedError as error:
        return Answer(reason=error.reason, detail=str(error))
    except ShoalError as error:
        short = _short_of_memory(error)
        return Answer(reason="little-memory" if short else error.code, detail=str(error))
    except Exception as error:  # noqa: BLE001 onnxruntime's have no base of their own
        short = _short_of_memory(error)
        detail = f"{type(error).__name__}: {error}"[:500]
        return Answer(reason="little-memory" if short else _BAD_GRAPH, detail=detail)


def _short_of_memory(error: Exception) -> bool:
    """Libraries report it in different words; a library that cannot even be loaded raises an
    ImportError, and Python's parser a SyntaxError."""
    words = ("alloc", "memory", "new thread", "map segment")
    unloaded = isinstance(error, ImportError | SyntaxError)
    return unloaded or any(word in str(error).lower() for word in words)


def _lower_priority() -> None:
    """Lowest CPU priority, and first to be killed when memory is short."""
    os.nice(_NICEST)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # not writable here: the limit of memory still holds


# ---------------------------------------------------------------------------- its jobs


class TrainingContext:
    """Graph, rows and parameters of one job."""

    def __init__(self, job: SandboxJob) -> None:
        self.job, self.config = job, job.work.config
        self.folder, self._task = Path(job.folder), Path(job.task)
        self.run, self.spec, x, y = sandbox.open_graph(self.folder / "graph.onnx")
        self.size = self.config.theta.length // 4
        if self.spec.size != self.size:
            raise RefusedError(
                f"theta has {self.size} numbers, {self.spec.size} in the graph", _BAD_GRAPH
            )
        self.theta = self.given("theta")
        self.rows = self._rows(x, y)

    def latest(self, name: str) -> F32 | None:
        """State saved by this round, else by an earlier one; None without any."""
        made = sandbox.read_vector(self.folder / sandbox.NEXT / name, self.size)
        return made if made is not None else self.previous(name)

    def previous(self, name: str) -> F32 | None:
        """State saved by an earlier round; None without any."""
        return sandbox.read_vector(self._task / name, self.size)

    def save(self, name: str, values: F32) -> None:
        """Save state for the task's next round."""
        sandbox.write_vector(self.folder / sandbox.NEXT / name, values)

    def given(self, name: str) -> F32:
        """A vector of this round; RefusedError unless it is finite and of the model's size."""
        found = sandbox.read_vector(self.folder / name, self.size)
        if found is None or not np.isfinite(found).all():
            raise RefusedError(f"{name} of this round is not {self.size} numbers", _BAD_GRAPH)
        return found

    def _rows(self, x: Tensor, y: Tensor) -> Rows:
        work, features = self.job.work, self.job.work.features
        found = read_examples(Path(self.job.buffer), self.config.model, features)
        rows = trainer.rows_of(found.x, found.labels, work.labels, self.spec, x, y)
        if not len(rows.y):
            raise RefusedError("none of its rows has a label of this model", "few-rows")
        return rows


def run_job(job: SandboxJob) -> TrainingResult:
    """Train, mask or evaluate; RefusedError, ModelError."""
    return {"train": train, "mask": mask, "measure": evaluate}[job.work.kind](job)


def train(job: SandboxJob) -> TrainingResult:
    """Train, and write the contribution; secure: the integers, still without masks."""
    context = TrainingContext(job)
    plan, began = context.config.plan, time.process_time()
    order = np.random.default_rng(list(job.work.seed))
    draws = Draws(hashlib.sha256(b"shoal/draws" + job.work.seed).digest())
    loss = 0.0
    if plan.secure is None:
        loss = trainer.mean_loss(context.run, context.spec, context.theta, context.rows)
    delta, control, steps = _trained(context, order)
    if not np.isfinite(delta).all() or not np.isfinite(loss):
        raise RefusedError("training diverged: its numbers are not finite", "diverged")
    made = TrainingResult(
        rows=len(context.rows.y), loss=loss, steps=steps, norm=norm_of(delta),
        seconds=time.process_time() - began, rss_mb=_peak_mb(),
    )  # fmt: skip
    if plan.secure is not None:
        write_durable(context.folder / NUMBERS, _encoded(context, delta, draws, order).tobytes())
        return made
    update = Contribution(
        update=_compressed(context, delta, draws), examples=made.rows, loss=loss,
        control=b"" if control is None else compress(control, plan.compression, draws),
        steps=steps, seconds=made.seconds,
    )  # fmt: skip
    return msgspec.structs.replace(made, contribution=_save(context.folder, update))


def mask(job: SandboxJob) -> TrainingResult:
    """Add the masks, write the contribution, and delete the unmasked integers."""
    folder = Path(job.folder)
    numbers = np.fromfile(folder / NUMBERS, "<u4").astype(np.uint32, copy=False)
    for one in job.work.masks:
        add_mask(numbers, one.seed, one.sign)
    saved = _save(folder, Contribution(update=numbers.astype("<u4", copy=False).tobytes()))
    (folder / NUMBERS).unlink()
    return TrainingResult(contribution=saved, rss_mb=_peak_mb())


def evaluate(job: SandboxJob) -> TrainingResult:
    """Metrics of theta on this device's rows, in total and by class; and of its personal model."""
    context = TrainingContext(job)

    def metrics(theta: F32, rows: Rows) -> Any:
        return trainer.evaluate(context.run, theta, rows)

    classes = trainer.by_class(context.rows, job.work.labels)
    own = context.latest("ditto" if context.config.ditto else "personal")
    if own is not None and not context.config.ditto:
        own = trainer.personalised(context.theta, own, context.config.personal)
    measured = Measured(
        whole=metrics(context.theta, context.rows),
        classes={name: metrics(context.theta, rows) for name, rows in list(classes.items())[:1024]},
        personal=None if own is None else metrics(own, context.rows),
    )
    return TrainingResult(measured=measured, rows=len(context.rows.y), rss_mb=_peak_mb())


def _trained(context: TrainingContext, order: "np.random.Generator") -> tuple[F32, F32 | None, int]:
    """The update, SCAFFOLD's change of c_i, and the number of steps."""
    plan, spec = context.config.plan, context.spec
    terms = plan.learning.terms
    shared = context.given("control") if terms.get("shift") else None
    own = None if shared is None else context.previous("control")
    own = np.zeros_like(context.theta) if own is None else own
    term = trainer.GradientTerms(
        mu=float(terms.get("mu", 0.0)),
        shift=None if shared is None else shared - own,
    )
    personal = context.config.personal
    start = trainer.personalised(context.theta, context.previous("personal"), personal)
    learned = trainer.train(context.run, spec, start, context.rows, plan.learning, term, order)
    delta = (learned.theta - start).astype(np.float32)
    control = None
    if shared is not None and np.isfinite(delta).all():
        after = trainer.control_after(own, shared, delta, learned.steps, plan.learning.lr)
        context.save("control", after)
        control = after - own
    if personal:
        context.save("personal", learned.theta)
        for first, stop in personal:
            delta[first:stop] = 0
    if context.config.ditto:
        _train_ditto(context, order)
    return delta, control, learned.steps


def _train_ditto(context: TrainingContext, order: "np.random.Generator") -> None:
    """The device's own model, pulled towards the shared one. Li et al., "Ditto", 2021."""
    own = context.previous("ditto")
    term = trainer.GradientTerms(mu=context.config.ditto, anchor=context.theta)
    start = context.theta if own is None else own
    learning = context.config.plan.learning
    after = trainer.train(context.run, context.spec, start, context.rows, learning, term, order)
    if np.isfinite(after.theta).all():
        context.save("ditto", after.theta)


def _compressed(context: TrainingContext, delta: F32, draws: Draws) -> bytes:
    """The update clipped, with local noise, and compressed."""
    plan = context.config.plan
    if plan.privacy is not None or plan.compression.kind != "top-k":
        return compress(bounded(delta, plan.privacy, draws), plan.compression, draws)
    residual = context.previous("residual")
    residual = np.zeros_like(delta) if residual is None else residual
    compensated = with_feedback(delta, residual, plan.compression, draws)
    context.save("residual", compensated.residual.astype(np.float32))
    return compensated.packed


def _encoded(
    context: TrainingContext, delta: F32, draws: Draws, random: "np.random.Generator"
) -> U32:
    """The update as integers, followed by its weight."""
    plan, privacy = context.config.plan, context.config.plan.privacy
    assert plan.secure is not None
    scale = plan.secure.scale
    if privacy is not None and privacy.where == "distributed":
        return encode_privately(delta, privacy, scale, plan.least, draws)
    delta = bounded(delta, privacy, draws)
    return scale.encode(delta, min(len(context.rows.y), scale.weight), random)


def _save(folder: Path, contribution: Contribution) -> SavedUpdate:
    data = msgspec.msgpack.encode(contribution)
    write_durable(folder / CONTRIBUTION, data, 0o600)
    return SavedUpdate(digest=hashlib.sha256(data).digest(), length=len(data))


def _peak_mb() -> float:
    """Peak resident memory of this process, MB; 0 without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return 0.0


if __name__ == "__main__":
    main()
