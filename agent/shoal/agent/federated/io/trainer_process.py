"""The trainer: local training in a process with a lower priority than inference.

`python -m shoal.agent.federated.io.trainer_process` reads a SandboxJob (MessagePack) from standard
input and writes an Answer (JSON) to standard output. It has limits of memory, CPU and file size,
the lowest priority, one thread, and ends with the agent. While training has to pause it is
stopped (SIGSTOP), and continued afterwards.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.agent.federated.io.row_buffer import BUFFER
from shoal.agent.federated.io.sandbox import rounds_folder, task_folder
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.host.io.memory_file import memory_file
from shoal.agent.serving.io.session import ENVIRONMENT
from shoal.errors import LinkError, RefusedError, ShoalError

#: Seconds between two polls of the child; bytes that a file may have beside a multiple of theta's.
_POLL_S, _FILE = 0.1, 64 << 20
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NICEST = 19
#: The multiple of theta's length.
_TIMES = 4


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
        from shoal.agent.federated.io.trainer_main import SandboxJob

        here = rounds_folder(self._folder, attempt.hex())
        sandboxed = SandboxJob(
            work=job,
            folder=str(here.absolute()),
            task=str(task_folder(self._folder, job.config.plan.task).absolute()),
            buffer=str((self._folder / BUFFER).absolute()),
        )
        file = _FILE + _TIMES * job.config.theta.length
        limits = [str(os.getpid()), str(self._memory_mb), str(int(self._cpu_s)), str(file)]
        with (
            memory_file(msgspec.msgpack.encode(sandboxed)) as request,
            subprocess.Popen(
                [sys.executable, "-m", "shoal.agent.federated.io.trainer_process", *limits],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment | ENVIRONMENT,
                cwd=here,
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
    try:
        answer = msgspec.json.decode(output, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        ended = f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
        raise RefusedError(f"the trainer {ended} without an answer", "trainer-died") from error
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
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent died first
    _lower_priority()
    _limit(memory_mb, cpu_s, file)
    sys.stdout.buffer.write(msgspec.json.encode(_answer(sys.stdin.buffer.read())))


def _answer(request: bytes) -> Answer:
    try:
        from shoal.agent.federated.io import trainer_main

        job = msgspec.msgpack.decode(request, type=trainer_main.SandboxJob)
        work = {
            "train": trainer_main.train,
            "mask": trainer_main.mask,
            "measure": trainer_main.evaluate,
        }
        return Answer(result=work[job.work.kind](job))
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
        return Answer(reason="little-memory" if short else "bad-graph", detail=detail)


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


def _limit(memory_mb: int, cpu_s: int, file: int) -> None:
    """Limit memory, CPU and file size of a hostile or broken graph; no core dump."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
