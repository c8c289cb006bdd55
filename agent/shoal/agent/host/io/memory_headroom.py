"""Memory that one more process may use before the kernel throttles the agent's service."""

import math
import re
from pathlib import Path

from shoal.agent.host.io.pressure import group_of, opened, read

_AVAILABLE = re.compile(rb"^MemAvailable: +(\d+) kB", re.MULTILINE)
_OWN = re.compile(rb"^anon (\d+)$", re.MULTILINE)


class MemoryHeadroom:
    """MB at each call, from descriptors kept open; 0 where the kernel does not report it.

    proc, sys   where the kernel's files are
    """

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        group = group_of(proc, sys)
        self._machine = opened(proc / "meminfo")
        self._high, self._held = opened(group / "memory.high"), opened(group / "memory.stat")

    def __call__(self) -> float:
        found = _AVAILABLE.search(read(self._machine))
        machine = int(found[1]) / 1024 if found else 0.0
        return min(machine, self._service())

    def _service(self) -> float:
        """MemoryHigh of the service minus its anonymous memory; its page cache is reclaimable."""
        high, held = read(self._high).strip(), _OWN.search(read(self._held))
        if not high.isdigit() or not held:
            return math.inf
        return (int(high) - int(held[1])) / 2**20
