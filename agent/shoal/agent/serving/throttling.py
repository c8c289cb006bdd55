"""Doing what the level asks: sources at a lower rate, sessions with fewer threads or cheaper."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from shoal.agent.dependencies import Ports
from shoal.agent.host.faults import Fault
from shoal.agent.installed.record import Slot
from shoal.agent.serving.served_model import Engine, Serving
from shoal.agent.serving.throttle_levels import Adaptation, Level
from shoal.errors import ShoalError
from shoal.profile import Profile
from shoal.wire import WindowReport

#: Seconds between two measurements.
SAMPLE_S = 5.0


class Eased(NamedTuple):
    """An engine that was loaded for another level; None when it could not be."""

    model: str
    instead_of: Engine
    engine: Engine | None


class Easing:
    """One device's adaptation at work. Everything but loading happens on the control loop.

    post   hands an Eased over to the control loop
    """

    def __init__(
        self,
        ports: Ports,
        profile: Profile,
        *,
        fault: Callable[[Fault], None],
        post: Callable[[Eased], None],
    ) -> None:
        self.adaptation = Adaptation()
        self._ports, self._profile, self._fault, self._post = ports, profile, fault, post
        self._own: dict[str, Slot] = {}
        self._ways: dict[str, tuple[str, str, int]] = {}
        self._loading: set[str] = set()
        self._due_s = 0.0

    @property
    def rate(self) -> float:
        """Share of what sources give that is answered."""
        return self.adaptation.level.rate

    @property
    def eased(self) -> bool:
        """Whether windows are to be tagged: what is seen now is not how it usually is."""
        return self.adaptation.number > 0

    def tick(self, serving: Mapping[str, Serving], rests: Callable[[str], bool]) -> None:
        """Measure when it is time, and change what has to be. rests: no update is under way."""
        now = self._ports.monotonic()
        if now < self._due_s:
            return
        self._due_s = now + SAMPLE_S
        before = self.adaptation.number
        level = self.adaptation.step(self._ports.load(), now)
        if self.adaptation.number > before:
            why = ", ".join(self.adaptation.why)
            self._fault(Fault("pressure", f"this device is {why}: now at level {level.name!r}"))
        for model, served in serving.items():
            if served.engine is not None and model not in self._loading and rests(model):
                self._ease(model, served.engine, level)

    def finish(self, eased: Eased, serving: Serving) -> WindowReport | None:
        """Let the engine serve, unless something else does by now; the report of its window."""
        self._loading.discard(eased.model)
        if eased.engine is None or serving.engine is not eased.instead_of:
            return None
        closed = serving.swap(eased.engine, self._ports.health())
        serving.retire()
        return closed

    def _ease(self, model: str, engine: Engine, level: Level) -> None:
        own = self._own.get(model)
        if own is None or (own.release, own.sha256) != (engine.slot.release, engine.slot.sha256):
            own = self._own[model] = engine.slot
            self._ways.pop(model, None)
        slot, profile = wanted(engine, own, level, self._profile)
        threads = profile.session.intra_op_num_threads
        way = (slot.sha256, slot.variant, threads)
        usual = (own.sha256, own.variant, self._profile.session.intra_op_num_threads)
        if way == self._ways.get(model, usual):
            return
        self._ways[model] = way
        self._loading.add(model)
        self._ports.spawn(lambda: self._load(model, engine, slot, profile))

    def _load(self, model: str, engine: Engine, slot: Slot, profile: Profile) -> None:
        loader, loaded = self._ports.loader, None
        try:
            loaded = loader.load(slot, profile)
        except ShoalError as error:
            self._fault(Fault("pressure", f"{slot.release} as {slot.variant}: {error}"))
        self._post(Eased(model, engine, loaded))
        if loaded is not None:
            loader.settle(slot, profile)


def wanted(engine: Engine, own: Slot, level: Level, profile: Profile) -> tuple[Slot, Profile]:
    """The slot as it should serve at `level`, and the profile to load it with."""
    slot, session = own, profile.session
    if level.cheapest and own.timings_us:
        variant = min(own.timings_us, key=lambda name: own.timings_us[name])
        sha256 = engine.manifest.variant(variant).file.sha256
        slot = msgspec.structs.replace(own, variant=variant, model_sha256=sha256)
    if level.threads:
        threads = min(level.threads, session.intra_op_num_threads)
        session = msgspec.structs.replace(session, intra_op_num_threads=threads)
    return slot, msgspec.structs.replace(profile, session=session)
