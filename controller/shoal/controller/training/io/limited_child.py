"""Limits of child processes that handle untrusted ONNX files."""

import contextlib
import ctypes
import os
import resource
import signal

from shoal.controller.host.io.process_limits import leave_network
from shoal.profile import FURTHER

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
#: Environment variables that a child is given; it has no secrets.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", FURTHER)


def environment() -> dict[str, str]:
    """Environment of a child."""
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | threads


def limit(*, cpu_s: int, data_mb: int, file_bytes: int, parent: int) -> None:
    """Limit this process, which ends with `parent`; it has no network where that is possible."""
    leave_network()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_DATA, (data_mb << 20, data_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
