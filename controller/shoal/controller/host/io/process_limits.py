"""Limits of a process that trains or runs foreign models: memory, CPU, file size, no network.

Limits are of the process itself; its children have limits of their own.

Sources: getrlimit(2); unshare(2), user_namespaces(7), network_namespaces(7).
"""

import contextlib
import ctypes
import os
import resource
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
#: Share of the machine's memory that an operation may take where no limit is set.
_SHARE = 0.75
_OPEN_FILES = 4_096


def limit(*, memory_mb: int, cpu_s: int, file_mb: int) -> int:
    """Limit this process; the MB of memory that it now may take.

    memory_mb   0: three quarters of the machine's memory
    cpu_s       CPU seconds, all threads together; 0: no limit
    file_mb     MB of any one file that it writes
    """
    memory_mb = memory_mb or int(_SHARE * _machine_mb())
    most = {
        resource.RLIMIT_DATA: memory_mb << 20,
        resource.RLIMIT_FSIZE: file_mb << 20,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    most |= {resource.RLIMIT_CPU: cpu_s} if cpu_s else {}
    for what, value in most.items():
        hard = resource.getrlimit(what)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (soft, hard))
    return memory_mb


def leave_network() -> bool:
    """Move this process, which has one thread, to a network namespace with no interface.

    False where the system does not allow it: in most containers, or without user namespaces.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) == 0:
            return True
        user, group = os.getuid(), os.getgid()
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            return False
    except (OSError, AttributeError):
        return False
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"),
    ):  # fmt: skip
        with contextlib.suppress(OSError):  # files stay accessible: the kernel knows the user
            Path("/proc/self", name).write_text(text)
    return True


def _machine_mb() -> float:
    """MB of memory of this machine, or of its container where that has less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    with contextlib.suppress(OSError, ValueError):
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()) / 2**20)
    return whole
