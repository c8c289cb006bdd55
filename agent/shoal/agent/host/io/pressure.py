"""Sensors of the machine: stalls (PSI), temperature, the Pi's throttle bits, memory, mains power.

Stalls (PSI) are read from the agent's own cgroup, which exists only as a systemd service. Started
by hand, the cgroup would contain other programs of the session, so none are read.
"""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from shoal.agent.host.ports import Load

_SOME = re.compile(rb"some avg10=([0-9.]+)")
_EVENTS = re.compile(rb"^(?:high|max|oom) (\d+)$", re.MULTILINE)
#: Bits of the Raspberry Pi firmware's throttle word that mean "now": under-voltage, clock capped,
#: throttled, at the soft limit of heat. raspberrypi.com/documentation, vcgencmd get_throttled.
THROTTLED_NOW = 0xF
_ASK_S, _PATIENCE_S = 30.0, 2.0
_AVAILABLE = re.compile(rb"^MemAvailable: +(\d+) kB", re.MULTILINE)
_OWN = re.compile(rb"^anon (\d+)$", re.MULTILINE)


class PressureSampler:
    """Returns one Load a call, from descriptors kept open.

    proc, sys   where the kernel's files are
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        group = group_of(proc, sys)
        self._cpu = opened(group / "cpu.pressure")
        self._memory = opened(group / "memory.pressure")
        self._events = opened(group / "memory.events")
        self._zones = [opened(p) for p in sorted(sys.glob("class/thermal/thermal_zone*/temp"))]
        self._word = opened(sys / "devices/platform/soc/soc:firmware/get_throttled")
        self._tool = shutil.which("vcgencmd") if self._word < 0 else None
        self._monotonic, self._asked_s, self._said = monotonic, float("-inf"), b""

    def __call__(self) -> Load:
        temperatures = [number(read(zone), 1e-3) for zone in self._zones]
        return Load(
            cpu_stall_pct=_share(read(self._cpu)),
            memory_stall_pct=_share(read(self._memory)),
            temp_c=max(temperatures, default=-1.0),
            throttled=self.throttled(),
            memory_events=sum(map(int, _EVENTS.findall(read(self._events)))),
        )

    def throttled(self) -> bool:
        """Whether the firmware of a Pi throttles it now."""
        output = read(self._word) or self._ask()
        try:
            return bool(int(output.rpartition(b"=")[2], 16) & THROTTLED_NOW)
        except ValueError:
            return False

    def _ask(self) -> bytes:
        """Output of vcgencmd where the kernel has no file for it; run every half minute at most."""
        now = self._monotonic()
        if self._tool and now - self._asked_s >= _ASK_S:
            self._asked_s = now
            try:
                ask = [self._tool, "get_throttled"]
                self._said = subprocess.run(ask, capture_output=True, timeout=_PATIENCE_S).stdout
            except (OSError, subprocess.SubprocessError):
                self._tool = None
        return self._said


class MemoryHeadroom:
    """Memory that one more process may use before the kernel throttles the agent's service.

    MB at each call, from descriptors kept open; 0 where the kernel does not report it.

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


def on_mains(sys: Path = Path("/sys")) -> bool | None:
    """False on battery, True on mains; None where sysfs has no power supply, as on most boards.

    Source: kernel.org, ABI/testing/sysfs-class-power.
    """
    supplies = [_supply(path) for path in sorted(sys.glob("class/power_supply/*"))]
    if any(kind in ("Mains", "USB") and online == "1" for kind, online, _ in supplies):
        return True
    if any(kind == "Battery" and status == "Discharging" for kind, _, status in supplies):
        return False
    plugged = [online == "1" for kind, online, _ in supplies if kind == "Mains"]
    return any(plugged) if plugged else None


def _supply(path: Path) -> tuple[str, str, str]:
    """type, online, status."""

    def one(name: str) -> str:
        try:
            return (path / name).read_text().strip()
        except OSError:
            return ""

    return one("type"), one("online"), one("status")


def number(text: bytes, scale: float) -> float:
    """A number in a kernel file; -1 for none."""
    try:
        return int(text) * scale
    except ValueError:
        return -1.0


def read(descriptor: int) -> bytes:
    """Current content of a kernel file that is kept open; empty for none."""
    if descriptor < 0:
        return b""
    try:
        return os.pread(descriptor, 512, 0)
    except OSError:
        return b""


def opened(path: Path) -> int:
    """A descriptor to `read` from again and again; -1 where there is no such file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def group_of(proc: Path, sys: Path) -> Path:
    """The service's cgroup (version 2); a path that does not exist outside of a service."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line[3:] for line in lines if line.startswith("0::")), "")
    return sys / "fs/cgroup" / own.strip("/") if own.endswith(".service") else sys / "none"


def _share(text: bytes) -> float:
    found = _SOME.search(text)
    return float(found[1]) if found else -1.0
