"""Health of the process and the machine, from /proc with descriptors kept open: 30 us a sample."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.agent.host.io.pressure import opened, read
from shoal.agent.host.ports import Load
from shoal.wire import Health

_PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20
_TICKS = os.sysconf("SC_CLK_TCK")


class HealthSampler:
    """One Health a call; cpu_pct is the mean since the call before.

    disk   a folder on the disk to measure
    load   temperature and throttling by the firmware
    memory MB that may still be used, 0 where it is unknown: pressure.MemoryHeadroom
    """

    def __init__(
        self,
        disk: Path,
        monotonic: Callable[[], float],
        load: Callable[[], Load],
        memory: Callable[[], float],
    ) -> None:
        self._disk, self._monotonic, self._load, self._memory = disk, monotonic, load, memory
        self._statm = opened(Path("/proc/self/statm"))
        self._stat = opened(Path("/proc/self/stat"))
        self._used, self._at = self._cpu_s(), monotonic()

    def __call__(self) -> Health:
        used, at = self._cpu_s(), self._monotonic()
        share = (used - self._used) / (at - self._at) if at > self._at else 0.0
        self._used, self._at = used, at
        statm = read(self._statm).split()
        load, free = self._load(), self._memory()
        return Health(
            rss_mb=round(int(statm[1]) * _PAGE, 1) if len(statm) > 1 else -1,
            cpu_pct=round(100 * share, 1),
            temp_c=round(load.temp_c, 1),
            disk_free_mb=self._disk_free_mb(),
            throttled=load.throttled,
            memory_free_mb=max(0.0, round(free, 1)) if free else msgspec.UNSET,
        )

    def _cpu_s(self) -> float:
        fields = read(self._stat).rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS if len(fields) > 12 else 0.0

    def _disk_free_mb(self) -> float:
        try:
            return round(shutil.disk_usage(self._disk).free / 2**20, 1)
        except OSError:
            return -1
