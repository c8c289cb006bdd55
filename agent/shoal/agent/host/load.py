"""Load of the machine: stalls, temperature, throttling."""

from typing import NamedTuple


class Load(NamedTuple):
    """The machine's state now; negative where it is unknown.

    cpu_stall_pct, memory_stall_pct   share of the last ten seconds that something waited (PSI)
    temp_c       hottest of the chip
    throttled    the firmware has lowered the clock, or the voltage is too low
    memory_events  how often this service met its own memory limit (cgroup), ever
    """

    cpu_stall_pct: float = -1.0
    memory_stall_pct: float = -1.0
    temp_c: float = -1.0
    throttled: bool = False
    memory_events: int = 0
