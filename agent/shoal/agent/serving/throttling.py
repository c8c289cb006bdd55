"""Throttling under pressure: lower source rate, then fewer threads, then the cheapest variant.

A table of signals, each with a threshold to begin and a lower one to end (hysteresis), and a table
of levels. The level rises after RISE_S with a signal and falls after FALL_S without any, so that
the device does not swing between two. Sources of the thresholds: a Raspberry Pi caps its clock at
80 degrees; PSI, Documentation/accounting/psi.rst.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from shoal.agent.host.faults import Fault, ended
from shoal.agent.host.jobs import Job, Submit, Worker
from shoal.agent.host.ports import HostPorts, Load
from shoal.agent.installed.record import Slot
from shoal.agent.serving.engine import Engine, Loader
from shoal.agent.serving.served_model import ServedModel
from shoal.profile import Profile
from shoal.wire import Health, WindowReport

#: Seconds with a signal until the next level, without any until the previous; between samples.
RISE_S, FALL_S, SAMPLE_S = 15.0, 120.0, 5.0


class Signal(NamedTuple):
    """A measurement, the value from which it is pressure, and the value below which it ends.

    fault   cause of the fault that it is reported as
    """

    name: str
    field: str
    begins: float
    ends: float
    fault: str


SIGNALS = (
    Signal("hot", "temp_c", 80.0, 75.0, "too-hot"),
    Signal("throttled by the firmware", "throttled", 1.0, 1.0, "too-hot"),
    Signal("waiting for the CPU", "cpu_stall_pct", 40.0, 20.0, "pressure"),
    Signal("waiting for memory", "memory_stall_pct", 10.0, 5.0, "short-memory"),
)
_AT_LIMIT = "at its memory limit"
_FAULT_OF = {signal.name: signal.fault for signal in SIGNALS} | {_AT_LIMIT: "short-memory"}


class Level(NamedTuple):
    """Limits at one level.

    rate     share of source frames that are inferred; the endpoint serves everything
    threads  most threads of a run; 0 for the profile's
    cheapest the fastest variant here, instead of the preferred one
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


class ThrottleLevel:
    """The current level and its reasons.

    >>> hot, level = Load(temp_c=82.0), ThrottleLevel()
    >>> [level.step(hot, second).name for second in (0.0, 10.0, 16.0, 32.0)]
    ['full', 'full', 'slower', 'fewer threads']
    >>> level.reasons, level.step(Load(temp_c=70.0), 40.0).name
    (['hot'], 'fewer threads')
    >>> level.step(Load(temp_c=70.0), 161.0).name
    'slower'
    """

    def __init__(self) -> None:
        self.number = 0
        self._signals: set[str] = set()
        self._events: int | None = None
        self._since: float | None = None

    @property
    def current(self) -> Level:
        return LEVELS[self.number]

    @property
    def reasons(self) -> list[str]:
        """Names of the active signals."""
        return sorted(self._signals)

    @property
    def faults(self) -> dict[str, list[str]]:
        """Causes of faults -> names of their active signals."""
        found: dict[str, list[str]] = {}
        for name in self.reasons:
            found.setdefault(_FAULT_OF[name], []).append(name)
        return found

    def step(self, load: Load, now_s: float) -> Level:
        """Take one measurement into account; the level from now on. now_s: monotonic."""
        before = bool(self._signals)
        self._signals = {signal.name for signal in SIGNALS if self._is_active(signal, load)}
        if self._events is not None and load.memory_events > self._events:
            self._signals.add(_AT_LIMIT)
        self._events = load.memory_events
        if self._since is None or before != bool(self._signals):
            self._since = now_s
        if self._signals and now_s - self._since >= RISE_S:
            self._move(1, now_s)
        elif not self._signals and now_s - self._since >= FALL_S:
            self._move(-1, now_s)
        return self.current

    def _is_active(self, signal: Signal, load: Load) -> bool:
        value = float(getattr(load, signal.field))
        return value >= (signal.ends if signal.name in self._signals else signal.begins)

    def _move(self, by: int, now_s: float) -> None:
        self.number = min(max(self.number + by, 0), len(LEVELS) - 1)
        self._since = now_s


class Throttling:
    """Applies one device's level. Everything but loading happens on the control loop.

    health  of the machine and the agent, now
    report  takes the window that a swap of engines ended
    post    runs a function on the control loop
    """

    def __init__(
        self,
        loader: Loader,
        host: HostPorts,
        profile: Profile,
        *,
        health: Callable[[], Health],
        fault: Callable[[Fault], None],
        report: Callable[[WindowReport], object],
        post: Submit,
    ) -> None:
        self.level = ThrottleLevel()
        self._loader, self._host, self._profile = loader, host, profile
        self._health, self._fault, self._report, self._post = health, fault, report, post
        self._installed: dict[str, Slot] = {}
        self._applied: dict[str, tuple[str, str, int]] = {}
        self._workers: dict[str, Worker[Job]] = {}
        self._due_s = 0.0
        self._met: dict[str, float] = {}

    @property
    def rate(self) -> float:
        """Share of source frames that are inferred."""
        return self.level.current.rate

    @property
    def is_active(self) -> bool:
        """Whether windows are tagged as throttled: they are not typical of the release."""
        return self.level.number > 0

    def tick(self, serving: Mapping[str, ServedModel], is_idle: Callable[[str], bool]) -> None:
        """Sample when due and apply the level. is_idle: whether no update of a model runs."""
        now = self._host.monotonic()
        if now < self._due_s:
            return
        self._due_s = now + SAMPLE_S
        before = self.level.number
        level = self.level.step(self._host.load(), now)
        self._report_faults(now, level.name if self.level.number > before else "")
        for model, served in serving.items():
            worker = self._workers.setdefault(model, Worker(self._host.spawn, self._post))
            if served.engine is not None and worker.current is None and is_idle(model):
                self._apply(worker, served, served.engine, level)

    def _report_faults(self, now_s: float, raised_to: str) -> None:
        """Report what the level is raised for, a fault a cause; end those that are over.

        raised_to   name of the level, if it was raised now
        """
        found = self.level.faults
        for cause, names in found.items():
            if raised_to:
                text = f"this device is {', '.join(names)}: now at level {raised_to!r}"
                self._fault(Fault(cause, text))
            if raised_to or cause in self._met:
                self._met[cause] = now_s
        for cause, met_s in list(self._met.items()):
            others_last = found and cause not in found and now_s - met_s >= FALL_S
            if others_last or not self.level.number:
                del self._met[cause]
                self._fault(ended(cause))

    def _apply(
        self, worker: Worker[Job], serving: ServedModel, engine: Engine, level: Level
    ) -> None:
        model, loader = serving.model, self._loader
        own = self._installed.get(model)
        if own is None or (own.release, own.sha256) != (engine.slot.release, engine.slot.sha256):
            own = self._installed[model] = engine.slot
            self._applied.pop(model, None)
        slot, profile = throttled(engine, own, level, self._profile)
        wanted = (slot.sha256, slot.variant, profile.session.intra_op_num_threads)
        usual = (own.sha256, own.variant, self._profile.session.intra_op_num_threads)
        if wanted == self._applied.get(model, usual):
            return
        self._applied[model] = wanted

        def swap(job: Job) -> None:
            """Serve the loaded engine, unless another one serves by now."""
            if job.error is not None:
                self._fault(Fault("pressure", f"{job.name}: {job.error}"))
                return
            if serving.engine is engine:
                closed = serving.swap(job.value, self._health())
                serving.retire()
                if closed is not None:
                    self._report(closed)
            worker.start(Job(job.name), lambda _: loader.settle(slot, profile), lambda _: None)

        name = f"{slot.release} as {slot.variant}"
        worker.start(Job(name), lambda _: loader.load(slot, profile), swap)


def throttled(engine: Engine, own: Slot, level: Level, profile: Profile) -> tuple[Slot, Profile]:
    """The slot as it serves at `level`, and the profile to load it with."""
    slot, session = own, profile.session
    if level.cheapest and own.timings_us:
        variant = min(own.timings_us, key=lambda name: own.timings_us[name])
        sha256 = engine.manifest.variant(variant).file.sha256
        slot = msgspec.structs.replace(own, variant=variant, model_sha256=sha256)
    if level.threads:
        threads = min(level.threads, session.intra_op_num_threads)
        session = msgspec.structs.replace(session, intra_op_num_threads=threads)
    return slot, msgspec.structs.replace(profile, session=session)
