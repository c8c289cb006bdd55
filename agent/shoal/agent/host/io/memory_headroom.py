"""How much memory one more process may take before the kernel presses on the agent's service."""

import math
import re
from pathlib import Path

from shoal.agent.host.io.pressure import group_of, opened, read

_AVAILABLE = re.compile(rb"^MemAvailable: +(\d+) kB", re.MULTILINE)
_OWN = re.compile(rb"^anon (\d+)$", re.MULTILINE)


class Room:
    """MB, at a call, from descriptors kept open; 0 where the kernel does not say.

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
        """Of what systemd lets the service have (MemoryHigh), what it does not hold; files that
        the kernel has cached for it do not count, for they make room."""
        high, held = read(self._high).strip(), _OWN.search(read(self._held))
        if not high.isdigit() or not held:
            return math.inf
        return (int(high) - int(held[1])) / 2**20
