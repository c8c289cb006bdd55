"""Giving way under pressure: slower first, then fewer threads, then the cheaper variant.

A table of signs, each with a threshold to begin and a lower one to end, and a table of levels.
A level is left upwards when a sign has been there for RISE_S, and downwards when none has been
for FALL_S: so the device does not swing between two. Sources of the thresholds: a Raspberry Pi
caps its clock at 80 degrees; PSI, Documentation/accounting/psi.rst.
"""

from typing import NamedTuple

from shoal.agent.host.load import Load

#: Seconds with a sign until the next level, and without any until the one before.
RISE_S, FALL_S = 15.0, 120.0


class Sign(NamedTuple):
    """What is measured, from where on it is pressure, and below what no longer."""

    name: str
    field: str
    begins: float
    ends: float


SIGNS = (
    Sign("hot", "temp_c", 80.0, 75.0),
    Sign("throttled by the firmware", "throttled", 1.0, 1.0),
    Sign("waiting for the CPU", "cpu_stall_pct", 40.0, 20.0),
    Sign("waiting for memory", "memory_stall_pct", 10.0, 5.0),
)


class Level(NamedTuple):
    """What the device does at one level.

    rate     share of what sources give that is answered; the endpoint answers everything
    threads  most threads of a run; 0 for what the profile says
    cheapest the variant that took least time here, instead of the preferred one
    """

    name: str
    rate: float
    threads: int
    cheapest: bool


LEVELS = (
    Level("full", 1.0, 0, False),
    Level("slower", 0.5, 0, False),
    Level("fewer threads", 0.5, 1, False),
    Level("cheaper variant", 0.25, 1, True),
)


class Adaptation:
    """Which level the device is at, and why.

    >>> hot, now = Load(temp_c=82.0), Adaptation()
    >>> [now.step(hot, second).name for second in (0.0, 10.0, 16.0, 32.0)]
    ['full', 'full', 'slower', 'fewer threads']
    >>> now.why, now.step(Load(temp_c=70.0), 40.0).name
    (['hot'], 'fewer threads')
    >>> now.step(Load(temp_c=70.0), 161.0).name
    'slower'
    """

    def __init__(self) -> None:
        self.number = 0
        self._signs: set[str] = set()
        self._events: int | None = None
        self._since: float | None = None

    @property
    def level(self) -> Level:
        return LEVELS[self.number]

    @property
    def why(self) -> list[str]:
        """Names of the signs that are there now."""
        return sorted(self._signs)

    def step(self, load: Load, now_s: float) -> Level:
        """Take one measurement into account; the level from now on. now_s: monotonic."""
        before = bool(self._signs)
        self._signs = {sign.name for sign in SIGNS if self._shows(sign, load)}
        if self._events is not None and load.memory_events > self._events:
            self._signs.add("at its memory limit")
        self._events = load.memory_events
        if self._since is None or before != bool(self._signs):
            self._since = now_s
        if self._signs and now_s - self._since >= RISE_S:
            self._move(1, now_s)
        elif not self._signs and now_s - self._since >= FALL_S:
            self._move(-1, now_s)
        return self.level

    def _shows(self, sign: Sign, load: Load) -> bool:
        value = float(getattr(load, sign.field))
        return value >= (sign.ends if sign.name in self._signs else sign.begins)

    def _move(self, by: int, now_s: float) -> None:
        self.number = min(max(self.number + by, 0), len(LEVELS) - 1)
        self._since = now_s
