"""The trainer: local training in a process of its own, which inference goes before.

`python -m shoal.agent.federated.io.trainer_process` reads a Job (MessagePack) from standard input
and writes an Answer
(JSON) to standard output. It has limits of memory, CPU and file size, the lowest priority, one
thread, and ends with the agent. While the models here have work to do it is stopped (SIGSTOP), and
goes on where it was.
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

#: Seconds between two looks at the child; bytes of a file that it may write beside theta's.
_LOOK_S, _FILE = 0.1, 64 << 20
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NICEST = 19
#: Times the length of theta that a file of the trainer's may have.
_TIMES = 4


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; or why nothing did, as a reason and a sentence."""

    made: TrainingResult | None = None
    reason: str = ""
    detail: str = ""


class SubprocessTrainer:
    """Runs work with limits of its own.

    folder     of learning, see sandbox.py
    memory_mb, cpu_s   that one piece of work may take
    """

    def __init__(
        self, folder: Path, environment: dict[str, str], *, memory_mb: int, cpu_s: float
    ) -> None:
        self._folder, self._environment = folder, environment
        self._memory_mb, self._cpu_s = memory_mb, cpu_s

    def run(
        self, attempt: bytes, work: TrainingJob, hold: Callable[[], str], stop: Callable[[], bool]
    ) -> TrainingResult:
        """What came of the work; RefusedError: why nothing did; LinkError: it was taken back."""
        from shoal.agent.federated.io.trainer_main import SandboxJob

        here = rounds_folder(self._folder, attempt.hex())
        job = SandboxJob(
            work=work,
            folder=str(here.absolute()),
            task=str(task_folder(self._folder, work.config.plan.task).absolute()),
            buffer=str((self._folder / BUFFER).absolute()),
        )
        file = _FILE + _TIMES * work.config.theta.length
        limits = [str(os.getpid()), str(self._memory_mb), str(int(self._cpu_s)), str(file)]
        with (
            memory_file(msgspec.msgpack.encode(job)) as request,
            subprocess.Popen(
                [sys.executable, "-m", "shoal.agent.federated.io.trainer_process", *limits],
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment | ENVIRONMENT,
                cwd=here,
            ) as child,
        ):
            said, status = _watched(child, hold, stop)
        return _understood(said, status, self._memory_mb, self._cpu_s)


def _watched(
    child: "subprocess.Popen[bytes]", hold: Callable[[], str], stop: Callable[[], bool]
) -> tuple[bytes, int]:
    """What the child said and how it ended; LinkError when it was taken back, and killed."""
    held = False
    try:
        while not stop():
            try:
                said, _ = child.communicate(timeout=_LOOK_S)
                return said, child.returncode
            except subprocess.TimeoutExpired:
                pass
            if bool(hold()) != held:
                held = not held
                child.send_signal(signal.SIGSTOP if held else signal.SIGCONT)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    raise LinkError("training was taken back")


def _understood(said: bytes, status: int, memory_mb: int, cpu_s: float) -> TrainingResult:
    if status == -signal.SIGXCPU:
        raise RefusedError(f"training took more than {cpu_s:g} s of CPU", "too-slow")
    if status == -signal.SIGKILL:
        raise RefusedError("training was killed: out of memory", "little-memory")
    try:
        answer = msgspec.json.decode(said, type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        ended = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
        raise RefusedError(f"the trainer {ended} and said nothing", "trainer-died") from error
    if answer.reason == "little-memory":
        hint = "raise learning.memory_mb in agent.toml, or leave this model out"
        raise RefusedError(f"out of memory at {memory_mb} MB", answer.reason, hint)
    if answer.made is None:
        raise RefusedError(answer.detail, answer.reason)
    return answer.made


# ---------------------------------------------------------------------------- in the child


def main() -> None:
    """Do what standard input asks for; never raises."""
    parent, memory_mb, cpu_s, file = map(int, sys.argv[1:5])
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before it could be followed
    _yield_to_others()
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
        return Answer(made=work[job.work.kind](job))
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
    """Libraries have many words for it. One that is not even loaded has none of its own, and
    Python's parser calls it an error of syntax."""
    words = ("alloc", "memory", "new thread", "map segment")
    unread = isinstance(error, ImportError | SyntaxError)
    return unread or any(word in str(error).lower() for word in words)


def _yield_to_others() -> None:
    """Last in the queue for a CPU, first to go when memory is short."""
    os.nice(_NICEST)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # not there, or not ours to write: the limit of memory holds all the same


def _limit(memory_mb: int, cpu_s: int, file: int) -> None:
    """What a hostile or broken graph may take: memory, CPU, disk, and no core dump."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
