"""Child processes: their request in memory, their limits, and their end with the agent."""

import ctypes
import os
import resource
import signal
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1


def memory_file(data: bytes = b"") -> BinaryIO:
    """A file in memory that a child process reads from its start.

    Through a pipe a request can be lost: Popen.communicate that timed out before a slow child had
    read it does not send the rest when it is called again, and child and parent wait forever.
    A file on disk would leave secrets there.
    """
    file = os.fdopen(os.memfd_create("request"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(*, data_mb: int, cpu_s: int, file_bytes: int) -> None:
    """Limit memory, CPU time and file size of a hostile or broken model; no core dump."""
    resource.setrlimit(resource.RLIMIT_DATA, (data_mb << 20, data_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
