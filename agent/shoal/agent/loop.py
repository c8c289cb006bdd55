"""Decide, journal, act: the agent's core, synchronous and without a world of its own.

Everything that happens comes in by `post` (from any thread); `tick` works it off. A fleet in
memory runs the very same core on a virtual clock.
"""

import collections
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from shoal import wire
from shoal.agent import effects, update
from shoal.agent.clock import DeviceClock
from shoal.agent.easing import Eased, Easing
from shoal.agent.effects import Desk, Outcome
from shoal.agent.faults import Fault
from shoal.agent.frames import FeedHealth
from shoal.agent.hours import Pace
from shoal.agent.lane import Job, Lane
from shoal.agent.ports import Ports
from shoal.agent.probation import Watch, judge_observation
from shoal.agent.serving import Serving
from shoal.agent.standing import ModelStanding, Standing, model_standing
from shoal.agent.telling import Identity, Voice
from shoal.agent.update import Effect, Event, Note, Record, State
from shoal.errors import AbsentError, ShoalError, StorageError, TrustError, WireError
from shoal.manifest import check_model
from shoal.trust import Order, verify_orders

_log = logging.getLogger(__name__)

#: Seconds: longest sleep between ticks, first and longest pause before an effect is tried again.
LONGEST_S, RETRY_S, RETRY_MAX_S = 1.0, 2.0, 300.0


class Heard(NamedTuple):
    """A message from the broker."""

    topic: str
    payload: bytes


class Connection(NamedTuple):
    up: bool


class Trouble(NamedTuple):
    """A fault that another thread met."""

    fault: Fault


class Rooted(NamedTuple):
    """The director has a new root, signed by the one before."""

    director_root: bytes


class _Finished(NamedTuple):
    model: str
    job: Job
    outcome: Outcome


class Agent:
    """One device.

    director_root   whom assignments must be signed by: TUF root.json
    wake            called after every post, so that a sleeping loop ticks
    """

    def __init__(
        self,
        identity: Identity,
        ports: Ports,
        *,
        director_root: bytes,
        pace: Pace = Pace(),  # noqa: B008 (immutable)
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.identity, self.ports, self.pace = identity, ports, pace
        self.endpoint = ""
        self.restart_asked = False
        self.serving: dict[str, Serving] = {}
        self.feeds: Callable[[], list[FeedHealth]] = list
        self._director_root, self.wake = director_root, wake
        self._inbox: collections.deque[Any] = collections.deque()
        self._floors = ports.journal.floors()
        self.clock = DeviceClock(
            wall=ports.wall, monotonic=ports.monotonic, floor_s=self._floors.time_s
        )
        self._records: dict[str, Record] = {}
        self._lanes: dict[str, Lane] = {}
        self._desired: dict[str, Order] | None = None
        self._payload, self._urls = b"", dict[str, str]()
        self.voice = Voice(identity, ports, self.clock)
        self._window_s, self._jitter = pace.window_s, ports.random.random()
        self.voice.window_s = pace.window_s
        self.easing = Easing(
            ports, identity.profile, fault=lambda it: self.post(Trouble(it)), post=self.post
        )
        self._jitter_s, self._window_end, self._status_at = 0.0, 0.0, 0.0
        self._later: list[tuple[float, Any]] = []

    # ------------------------------------------------------------------ from other threads

    def post(self, item: Heard | Connection | Trouble | Rooted | Eased | _Finished) -> None:
        """Say that something happened."""
        self._inbox.append(item)
        self.wake()

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Serve at once what the journal says is good, then take up what was under way."""
        if self.ports.journal.lost:
            self.voice.fault(Fault("journal-lost", self.ports.journal.lost, "critical"))
        self._records = self.ports.journal.records()
        self._adopt()
        for record in self._records.values():
            self._serve_good(record)
        self._recall_assignment()
        for model, record in list(self._records.items()):
            self.voice.update(record)
            self._take_up(model, record)
        self._schedule_window()
        self.ports.loader.trim()

    def tick(self) -> float:
        """Work off what happened and what is due; seconds until it wants to be called again."""
        while self._inbox:
            self._take(self._inbox.popleft())
        now = self.clock()
        for item in [item for at, item in self._later if at <= now]:
            self._take(item)
        self._later = [(at, item) for at, item in self._later if at > now]
        for model in {*self._records, *(self._desired or {})}:
            self._consider(model)
        self.easing.tick(self.serving, self._rests)
        self._close_windows()
        self.voice.due()
        idle = min(LONGEST_S, self._window_end - self.clock())
        return 0.0 if self._inbox else max(0.0, idle)

    def stop(self) -> None:
        """Hand over what is in memory, and say goodbye: for a clean stop."""
        for lane in self._lanes.values():
            if lane.job:
                lane.job.stopped = True
        self._window_end = 0.0
        self._close_windows()
        self.voice.due()
        self.voice.status(online=False)

    def standing(self) -> Standing:
        """How the device stands, for a person."""
        return Standing(
            device=self.identity.device,
            site=self.identity.site,
            profile=self.identity.profile.name,
            ring=self.identity.ring,
            agent=self.identity.version,
            now_s=self.clock(),
            running=True,
            connected=self.voice.connected,
            connection_since_s=self.voice.since_s,
            clock_synced=self.clock.synced,
            endpoint=self.endpoint,
            waiting=self.ports.outbox.waiting,
            models=[self._model_standing(record) for record in self._records.values()],
            faults=list(self.voice.told),
            health=msgspec.structs.asdict(self._health()),
            feeds=self.feeds(),
            level=self.easing.adaptation.level.name,
        )

    # ------------------------------------------------------------------ what came in

    def _take(self, item: Any) -> None:
        try:
            if isinstance(item, Heard):
                self._hear(item)
            elif isinstance(item, Connection):
                self.voice.connection(item.up)
                self.inventory()
            elif isinstance(item, Trouble):
                self.voice.fault(item.fault)
            elif isinstance(item, Rooted):
                self._director_root = item.director_root
            elif isinstance(item, Eased):
                self._eased(item)
            else:
                self._finished(item)
        except (WireError, TrustError) as error:
            severity = "critical" if isinstance(error, TrustError) else "warning"
            self.voice.fault(Fault(error.code, str(error), severity))
        except StorageError as error:
            self._later.append((self.clock() + RETRY_S, item))
            self.voice.fault(Fault("disk-full", str(error), "critical"))

    def _hear(self, heard: Heard) -> None:
        kind = heard.topic.rpartition("/")[2]
        message = wire.decode_down(kind, heard.payload)
        if isinstance(message, wire.Assignment):
            self._assignment(message, heard.payload)
        elif isinstance(message, wire.Ack):
            self.voice.acked(message)
        elif isinstance(message, wire.Budget):
            self._budget(message)
        elif isinstance(message, wire.Command):
            self._command(message)

    def _assignment(self, message: wire.Assignment, payload: bytes) -> None:
        orders = verify_orders(
            message.signed,
            director_root=self._director_root,
            device=self.identity.device,
            floor=self._floors.assignment,
            now_s=self.clock(),
        )
        floors = self._floors.raised(assignment=orders.version, time_s=orders.signed_s)
        if payload != self._payload:
            self.ports.journal.save_assignment(payload, floors)
        self._floors, self._payload, self._urls = floors, payload, message.urls
        self.clock.vouch(orders.signed_s)
        self._desired = {check_model(order.model): order for order in orders.orders}
        for lane in self._lanes.values():
            lane.not_before = 0.0  # it may carry new addresses

    def _budget(self, budget: wire.Budget) -> None:
        if budget.window_s >= 1.0 and (budget.window_s, budget.jitter_s) != (
            self._window_s,
            self._jitter_s,
        ):
            self._window_s, self._jitter_s = budget.window_s, budget.jitter_s
            self.voice.window_s = budget.window_s
            self.voice.pause_s = self._jitter * budget.jitter_s
            self._schedule_window()

    def _command(self, command: wire.Command) -> None:
        if command.expires_at_s < self.clock():
            return
        if command.verb == "report":
            self.inventory()
        elif command.verb == "log-level":
            logging.getLogger("shoal").setLevel(str(command.args.get("level", "INFO")).upper())
        elif command.verb == "restart":
            self.restart_asked = True
        else:
            detail = f"command {command.verb[:40]!r}: update the agent"
            self.voice.fault(Fault("unknown-command", detail))

    # ------------------------------------------------------------------ updates

    def _adopt(self) -> None:
        """What the disk holds and the journal has lost serves on, and so does its floor."""
        for slot in self.ports.slots.found():
            if slot.model not in self._records:
                self._floors = self._floors.raised(counters={slot.model: slot.counter})
                self.ports.journal.save_floors(self._floors)
                self._records[slot.model] = Record(model=slot.model, serving=slot)
                self.ports.journal.save(self._records[slot.model])

    def _serve_good(self, record: Record) -> None:
        """Load what is known to be good; what is only on trial waits for its effect."""
        good = record.trial if record.state is State.COMMITTING else record.serving
        for slot in (good, record.spare):
            if slot is None:
                continue
            try:
                self.ports.slots.verify(slot, self.identity.profile.name)
                engine = self.ports.loader.load(slot, self.identity.profile)
            except ShoalError as error:
                detail = f"{slot.release} in slot {slot.slot}: {error}"
                self.voice.fault(Fault("slot-damaged", detail, "critical"))
                continue
            self._serving(record.model).swap(engine, self._health())
            return

    def _recall_assignment(self) -> None:
        """What was wanted before the power failed; unknown, not nothing, if it has expired."""
        payload = self.ports.journal.assignment()
        if not payload:
            return
        try:
            message = wire.decode_down("assignment", payload)
            if isinstance(message, wire.Assignment):
                self._payload, self._urls = payload, message.urls
                self._assignment(message, payload)
        except (WireError, TrustError) as error:
            _log.info("the assignment of before the start does not hold: %s", error)

    def _take_up(self, model: str, record: Record) -> None:
        if (record.state, Event.STARTED) in update.TRANSITIONS:
            event, note = update.on_start(record, self.clock())
            self._advance(record, event, note)

    def _consider(self, model: str) -> None:
        """What is due for one model, now."""
        try:
            self._decide(model)
            self._observe(model)
            self._launch(model)
        except StorageError as error:
            self.voice.fault(Fault("disk-full", str(error), "critical"))

    def _decide(self, model: str) -> None:
        record, now = self._records.get(model) or Record(model=model), self.clock()
        if self._desired is not None:
            order = self._desired.get(model)
            event = update.decide(record, order)
            if event is Event.ASSIGNED:
                self._lane(model).tries = 0
                self._advance(record, event, Note(at_s=now, order=order))
            elif event is Event.CANCEL:
                why = f"superseded by {order.release}" if order else "the order was withdrawn"
                self._advance(record, event, Note(at_s=now, cause="canceled", detail=why))
        record = self._records.get(model) or record
        late = record.order is not None and 0 < record.order.deadline_s < now
        if late and record.state in update.CANCELABLE:
            detail = f"not done by its deadline; it was {record.state.name}"
            self._advance(record, Event.LATE, Note(at_s=now, cause="deadline", detail=detail))

    def _observe(self, model: str) -> None:
        record, lane, now = self._records[model], self._lane(model), self.clock()
        if record.state is not State.OBSERVING or lane.watch is None:
            return
        verdict = judge_observation(lane.watch, self._serving(model).vitals, now)
        if verdict is None:
            return
        event = Event.HEALTHY if verdict.passed else Event.UNHEALTHY
        note = Note(at_s=now, cause=verdict.cause, detail=verdict.detail, facts=verdict.facts)
        self._advance(record, event, note)

    def _launch(self, model: str) -> None:
        """Start the pending effect, unless the model's last one still has to end."""
        lane, record, now = self._lane(model), self._records[model], self.clock()
        early = lane.pending is Effect.CHECK and record.order and now < record.order.not_before_s
        if lane.pending is Effect.DOWNLOAD:
            lane.not_before = max(lane.not_before, self.pace.hours.opens_s(now))
        if lane.pending is None or lane.job or now < lane.not_before or early:
            return
        job = lane.job = Job(lane.pending, record)
        lane.pending = None
        desk = self._desk(model, job)

        def run() -> None:
            self.post(_Finished(model, job, effects.perform(job.effect, job.record, desk)))

        self.ports.spawn(run)

    def _finished(self, finished: _Finished) -> None:
        model, job, outcome = finished
        lane, record = self._lane(model), self._records[model]
        if outcome.floors:
            self._floors = self._floors.raised(
                counters=outcome.floors.counters, metadata=outcome.floors.metadata
            )
            self.ports.journal.save_floors(self._floors)
        if outcome.event is not None and record is job.record:
            note = msgspec.structs.replace(outcome.note, at_s=self.clock())
            self._advance(record, outcome.event, note)
        lane.job = None
        if outcome.closed is not None:
            self.voice.add(outcome.closed)
        for fault in outcome.faults:
            self.voice.fault(fault)
        if record is job.record and outcome.event is None:
            self._unmoved(model, job, outcome)

    def _unmoved(self, model: str, job: Job, outcome: Outcome) -> None:
        """The effect ended and the record stays: to be watched, to be tried again, or at rest."""
        lane, now = self._lane(model), self.clock()
        if job.effect is Effect.WATCH:
            before = self._serving(model).before
            lane.watch = Watch(since_s=now, until_s=now + self.pace.observe_s, before=before)
            self.inventory()
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
            lane.not_before = now + pause * self.ports.random.random()
            self.voice.fault(Fault(outcome.note.cause, outcome.note.detail, "info"))

    def _advance(self, record: Record, event: Event, note: Note) -> None:
        after, effect = update.step(record, event, note)
        self.ports.journal.save(after)  # durable first
        self._records[record.model] = after
        lane = self._lane(record.model)
        lane.pending, lane.watch, lane.not_before = effect, None, 0.0
        if lane.job:
            lane.job.stopped = True
        if after.state is not record.state:
            lane.tries = 0
            _log.info("%s: %s %s", after.model, after.state.name, after.detail)
            self.voice.update(after)
        if after.state in update.TERMINAL:
            self.inventory()

    def _desk(self, model: str, job: Job) -> Desk:
        return Desk(
            ports=self.ports,
            ring=self.identity.ring,
            profile=self.identity.profile,
            floors=self._floors,
            url=self._url,
            serving=self._serving(model),
            stop=lambda: job.stopped or self._shut(job.effect),
            now_s=self.clock(),
        )

    def _shut(self, effect: Effect) -> bool:
        return effect is Effect.DOWNLOAD and not self.pace.hours.open(self.clock())

    def _url(self, sha256: str) -> str:
        try:
            return self._urls[sha256]
        except KeyError:
            raise AbsentError("address for", sha256, "the controller sends it anew") from None

    # ------------------------------------------------------------------ what goes out

    def _schedule_window(self) -> None:
        """Windows end at multiples of their length, each device's a little later."""
        now, length = self.clock(), self._window_s
        late = self._jitter * self._jitter_s
        self._window_end = ((now - late) // length + 1) * length + late

    def _close_windows(self) -> None:
        if self.clock() < self._window_end:
            return
        health = self._health()
        for serving in self.serving.values():
            report = serving.collect(health)
            if report is not None:
                self.voice.add(report)
        self._schedule_window()
        self.voice.heartbeat()
        self.ports.loader.trim()

    def inventory(self) -> wire.Inventory:
        """What is on the device, told to the controller."""
        engines = [serving.engine for serving in self.serving.values()]
        slots = [engine.slot for engine in engines if engine is not None]
        return self.voice.inventory(slots, self._floors.flat(), self.endpoint)

    def _health(self) -> wire.Health:
        found = self.ports.health()
        throttled = found.throttled or self.easing.eased
        return msgspec.structs.replace(found, clock_synced=self.clock.synced, throttled=throttled)

    def _rests(self, model: str) -> bool:
        """Whether no update of this model is under way."""
        record = self._records.get(model)
        quiet = record is not None and record.state in {State.IDLE, *update.TERMINAL}
        return quiet and self._lane(model).rests

    def _eased(self, item: Eased) -> None:
        report = self.easing.finish(item, self._serving(item.model))
        if report is not None:
            self.voice.add(report)

    def _model_standing(self, record: Record) -> ModelStanding:
        serving = self.serving.get(record.model)
        slot = serving.engine.slot if serving and serving.engine else None
        vitals = serving.vitals if serving else None
        return model_standing(
            record,
            slot,
            requests=vitals.requests if vitals else 0,
            errors=vitals.errors if vitals else 0,
        )

    def _lane(self, model: str) -> Lane:
        return self._lanes.setdefault(model, Lane())

    def _serving(self, model: str) -> Serving:
        if model not in self.serving:
            self.serving[model] = Serving(
                model, clock=self.clock, timer=self.ports.timer, lock=self.ports.lock()
            )
        return self.serving[model]
