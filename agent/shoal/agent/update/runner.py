"""The updates of one device at work: decide, journal, act, for each model in a lane of its own.

What may happen is update.py's table, what an effect does is effects.py's. Here a record is made
durable, its effect is launched off the control loop, and the outcome is taken back in.
"""

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from shoal import wire
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.record import Record, State
from shoal.agent.serving.served_model import Serving
from shoal.agent.telemetry.reporter import Identity, Voice
from shoal.agent.update import effects, machine
from shoal.agent.update.acceptance import Watch
from shoal.agent.update.download_window import Pace
from shoal.agent.update.effects import Desk, Outcome
from shoal.agent.update.in_flight import Job, Lane
from shoal.agent.update.machine import Effect, Event, Note
from shoal.agent.update.ports import UpdatePorts
from shoal.agent.update.session_health import judge_all
from shoal.errors import AbsentError, ShoalError, StorageError, TrustError, WireError
from shoal.manifest import check_model
from shoal.trust import Order, verify_orders

_log = logging.getLogger(__name__)

#: Seconds: first and longest pause before an effect is tried again.
RETRY_S, RETRY_MAX_S = 2.0, 300.0


class Finished(NamedTuple):
    """An effect has ended."""

    model: str
    job: Job
    outcome: Outcome


class World(NamedTuple):
    """What the rest of the agent does for its updates.

    serving    the model's, made when there is none
    health     of the machine, now
    inventory  says what is on the device
    post       hands the end of an effect over to the control loop
    """

    serving: Callable[[str], Serving]
    health: Callable[[], wire.Health]
    inventory: Callable[[], object]
    post: Callable[[Finished], None]


class Updates:
    """All models of one device; everything but the effects runs on the control loop.

    director_root   whom assignments must be signed by: TUF root.json
    records         model -> where it stands
    floors          below which nothing is accepted any more
    """

    def __init__(
        self,
        identity: Identity,
        ports: UpdatePorts,
        voice: Voice,
        clock: DeviceClock,
        pace: Pace,
        world: World,
        *,
        floors: Floors,
        director_root: bytes,
    ) -> None:
        self.records: dict[str, Record] = {}
        self.floors, self.director_root = floors, director_root
        self._identity, self._ports, self._voice = identity, ports, voice
        self._clock, self.pace, self._world = clock, pace, world
        self._lanes: dict[str, Lane] = {}
        self._desired: dict[str, Order] | None = None
        self._payload, self._urls = b"", dict[str, str]()

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Serve at once what the journal says is good, then take up what was under way."""
        self.records = self._ports.journal.records()
        busy = [m for m, record in self.records.items() if record.state not in machine.RESTING]
        self._ports.slots.sweep(busy)
        self._adopt()
        for record in self.records.values():
            self._serve_good(record)
        self._recall_assignment()
        for record in list(self.records.values()):
            self._voice.update(record)
            self._take_up(record)
            if record.state is not State.OBSERVING:
                self._ports.sessions.end(record.model)

    def tick(self) -> None:
        """What is due for each model."""
        for model in {*self.records, *(self._desired or {})}:
            self._consider(model)

    def stop(self) -> None:
        """Effects that are under way need not go on."""
        for lane in self._lanes.values():
            if lane.job:
                lane.job.stopped = True

    def rests(self, model: str) -> bool:
        """Whether no update of this model is under way."""
        record = self.records.get(model)
        return record is not None and record.state in machine.RESTING and self._lane(model).rests

    @property
    def settled(self) -> bool:
        """Whether nothing is under way, and nothing wanted that has not been tried."""
        wanted = self._desired or {}
        return all(
            self.rests(model) and machine.decide(self.records[model], wanted.get(model)) is None
            for model in {*self.records, *wanted}
        )

    # ------------------------------------------------------------------ what came in

    def assigned(self, message: wire.Assignment, payload: bytes) -> None:
        """What the director wants from now on. Raises TrustError, WireError, StorageError."""
        orders = verify_orders(
            message.signed,
            director_root=self.director_root,
            device=self._identity.device,
            floor=self.floors.assignment,
            now_s=self._clock(),
        )
        signed_s = self._clock.believed(orders.signed_s)
        floors = self.floors.raised(assignment=orders.version, time_s=signed_s)
        if payload != self._payload:
            self._ports.journal.save_assignment(payload, floors)
        self.floors, self._payload, self._urls = floors, payload, message.urls
        self._ports.peers.update(message.peers or {}, message.generations or {})
        self._clock.vouch(signed_s)
        self._desired = {check_model(order.model): order for order in orders.orders}
        for lane in self._lanes.values():
            lane.not_before = float("-inf")  # it may carry new addresses

    def finished(self, finished: Finished) -> None:
        """An effect has ended: what it came to is journalled, and acted on."""
        model, job, outcome = finished
        lane, record = self._lane(model), self.records[model]
        if outcome.floors:
            self.floors = self.floors.raised(
                counters=outcome.floors.counters, metadata=outcome.floors.metadata
            )
            self._ports.journal.save_floors(self.floors)
        if outcome.event is not None and record is job.record:
            note = msgspec.structs.replace(outcome.note, at_s=self._clock())
            self._advance(record, outcome.event, note, ended=job)
        if lane.job is job:
            lane.job = None
        if outcome.closed is not None:
            self._voice.add(outcome.closed)
        self._say(outcome.faults)
        if record is job.record and outcome.event is None:
            self._unmoved(model, job, outcome)

    # ------------------------------------------------------------------ at the start

    def _adopt(self) -> None:
        """What the disk holds and the journal has lost serves on, and so does its floor."""
        for slot in self._ports.slots.found():
            if slot.model not in self.records:
                self.floors = self.floors.raised(counters={slot.model: slot.counter})
                self._ports.journal.save_floors(self.floors)
                self.records[slot.model] = Record(model=slot.model, serving=slot)
                self._ports.journal.save(self.records[slot.model])

    def _serve_good(self, record: Record) -> None:
        """Load what is known to be good; what is only on trial waits for its effect."""
        good = record.trial if record.state is State.COMMITTING else record.serving
        for slot in (good, record.spare):
            if slot is None:
                continue
            try:
                self._ports.slots.verify(slot, self._identity.profile.name)
                engine = self._ports.loader.load(slot, self._identity.profile)
            except ShoalError as error:
                detail = f"{slot.release} in slot {slot.slot}: {error}"
                self._voice.fault(Fault("slot-damaged", detail, "critical"))
                continue
            self._world.serving(record.model).swap(engine, self._world.health())
            return

    def _recall_assignment(self) -> None:
        """What was wanted before the power failed; unknown, not nothing, if it has expired."""
        payload = self._ports.journal.assignment()
        if not payload:
            return
        try:
            message = wire.decode_down("assignment", payload)
            if isinstance(message, wire.Assignment):
                self._payload, self._urls = payload, message.urls
                self._ports.peers.update(message.peers or {}, message.generations or {})
                self.assigned(message, payload)
        except (WireError, TrustError) as error:
            _log.info("the assignment of before the start does not hold: %s", error)

    def _take_up(self, record: Record) -> None:
        if (record.state, Event.STARTED) in machine.TRANSITIONS:
            event, note = machine.on_start(record, self._clock())
            self._advance(record, event, note)

    # ------------------------------------------------------------------ what is due

    def _consider(self, model: str) -> None:
        """What is due for one model, now."""
        try:
            self._decide(model)
            self._observe(model)
            self._launch(model)
        except StorageError as error:
            self._voice.fault(Fault("disk-full", str(error), "critical"))

    def _decide(self, model: str) -> None:
        record, now = self.records.get(model) or Record(model=model), self._clock()
        if self._desired is not None:
            order = self._desired.get(model)
            event = machine.decide(record, order)
            if event is Event.ASSIGNED:
                self._lane(model).tries = 0
                self._advance(record, event, Note(at_s=now, order=order))
            elif event is Event.CANCEL:
                why = f"superseded by {order.release}" if order else "the order was withdrawn"
                self._advance(record, event, Note(at_s=now, cause="canceled", detail=why))
        record = self.records.get(model) or record
        late = record.order is not None and 0 < record.order.deadline_s < now
        if late and record.state in machine.CANCELABLE:
            detail = f"not done by its deadline; it was {record.state.name}"
            self._advance(record, Event.LATE, Note(at_s=now, cause="deadline", detail=detail))

    def _observe(self, model: str) -> None:
        record, lane, now = self.records[model], self._lane(model), self._clock()
        if record.state is not State.OBSERVING or lane.watch is None or record.trial is None:
            return
        own, said = self._world.serving(model).vitals, self._ports.sessions.read()
        verdict = judge_all(lane.watch, own, said, record.trial, self._clock.monotonic())
        if verdict is None:
            return
        event = Event.HEALTHY if verdict.passed else Event.UNHEALTHY
        note = Note(at_s=now, cause=verdict.cause, detail=verdict.detail, facts=verdict.facts)
        self._advance(record, event, note)

    def _launch(self, model: str) -> None:
        """Start the pending effect, unless the model's last one still has to end."""
        lane, record, now = self._lane(model), self.records[model], self._clock()
        early = lane.pending is Effect.CHECK and record.order and now < record.order.not_before_s
        shut = lane.pending is Effect.DOWNLOAD and now < self.pace.hours.opens_s(now)
        waits = self._clock.monotonic() < lane.not_before
        if lane.pending is None or lane.job or waits or early or shut:
            return
        job = lane.job = Job(lane.pending, record)
        lane.pending = None
        desk = self._desk(model, job)

        def run() -> None:
            self._world.post(Finished(model, job, effects.perform(job.effect, job.record, desk)))

        self._ports.spawn(run)

    def _unmoved(self, model: str, job: Job, outcome: Outcome) -> None:
        """The effect ended and the record stays: to be watched, to be tried again, or at rest."""
        lane, now = self._lane(model), self._clock()
        if job.effect is Effect.WATCH:
            before, since = self._world.serving(model).before, self._clock.monotonic()
            lane.watch = Watch(since_s=since, until_s=since + self.pace.observe_s, before=before)
            self._world.inventory()
        elif job.effect is Effect.DOWNLOAD and not self.pace.hours.open(now):
            lane.pending = job.effect
        elif outcome.again:
            lane.tries += 1
            if outcome.tries and lane.tries >= outcome.tries:
                self._advance(
                    job.record, Event.BROKE, msgspec.structs.replace(outcome.note, at_s=now)
                )
                return
            pause = min(RETRY_MAX_S, RETRY_S * 2 ** min(lane.tries - 1, 10))
            lane.pending = job.effect
            lane.not_before = self._clock.monotonic() + pause * self._ports.random.random()
            self._voice.fault(Fault(outcome.note.cause, outcome.note.detail, "info"))

    def _advance(self, record: Record, event: Event, note: Note, ended: Job | None = None) -> None:
        """Journal what `event` makes of the record, then act. ended: the job that it came of."""
        after, effect = machine.step(record, event, note)
        self._ports.journal.save(after)  # durable first
        self.records[record.model] = after
        lane = self._lane(record.model)
        lane.pending, lane.watch, lane.not_before = effect, None, float("-inf")
        lane.tries = lane.tries if after.state is record.state else 0
        if lane.job is not None:
            lane.job.stopped = True
        if ended is not None and lane.job is ended and after.state not in machine.TERMINAL:
            lane.job = None
            self._launch(record.model)  # its work does not wait for what is said of it
        if after.state is not record.state:
            if record.state is State.OBSERVING:
                self._ports.sessions.end(record.model)
            _log.info("%s: %s %s", after.model, after.state.name, after.detail)
            self._voice.update(after)
        if after.state in machine.TERMINAL:
            self._world.inventory()

    def _desk(self, model: str, job: Job) -> Desk:
        return Desk(
            ports=self._ports,
            health=self._world.health,
            ring=self._identity.ring,
            profile=self._identity.profile,
            floors=self.floors,
            url=self._url,
            serving=self._world.serving(model),
            stop=lambda: job.stopped or self._shut(job.effect),
            now_s=self._clock(),
            tries=self._lane(model).tries,
        )

    def _shut(self, effect: Effect) -> bool:
        return effect is Effect.DOWNLOAD and not self.pace.hours.open(self._clock())

    def _url(self, sha256: str) -> str:
        try:
            return self._urls[sha256]
        except KeyError:
            raise AbsentError("address for", sha256, "the controller sends it anew") from None

    def _say(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self._voice.fault(fault)

    def _lane(self, model: str) -> Lane:
        return self._lanes.setdefault(model, Lane())
