"""Updates of one device: for each model, one attempt at a time.

One step of an attempt is `_advance`: `machine.step` names the next state and effect, the journal
saves the record, then the effect (effects.py) runs off the control loop. Its result comes back to
`_on_effect_done`, which takes the next step. All else runs on the control loop.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from shoal import wire
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault, disk_fault, ended
from shoal.agent.host.jobs import Job, Submit, Worker
from shoal.agent.installed.floors import Floors
from shoal.agent.installed.record import Record, Slot, State
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.telemetry.reporter import Identity, Reporter
from shoal.agent.update import effects, machine
from shoal.agent.update.acceptance import Watch, judge_all
from shoal.agent.update.effects import EffectContext, EffectResult
from shoal.agent.update.epochs import EpochWatch
from shoal.agent.update.machine import Effect, Event, Note
from shoal.agent.update.ports import UpdatePorts, UpdateSettings
from shoal.agent.update.recovery import recover
from shoal.errors import AbsentError, BundleError, ShoalError, StorageError, TrustError, WireError
from shoal.orders import Order
from shoal.trust import director_signers, verify_orders

_log = logging.getLogger(__name__)

#: Seconds: first and longest pause before an effect is tried again.
RETRY_S, RETRY_MAX_S = 2.0, 300.0


class EffectJob(Job):
    """A running effect, for the record as it was when the effect started."""

    def __init__(self, effect: Effect, record: Record) -> None:
        super().__init__(f"{effect.name} of {record.model}")
        self.effect, self.record = effect, record


class Attempt:
    """What is in memory of one model's update: pending effect, running job, observation.

    not_before, due_s and the watch are in monotonic seconds.

    due_s   when the order is late at the latest, where the controller's time is unknown
    waits   why the effect is tried again
    resumes whether it is to be continued after a start of the agent
    """

    def __init__(self, record: Record, worker: Worker[EffectJob]) -> None:
        self.record, self.worker = record, worker
        self.pending: Effect | None = None
        self.tries = 0
        self.not_before, self.due_s = float("-inf"), float("inf")
        self.waits, self.resumes = Note(), False
        self.watch: Watch | None = None

    @property
    def idle(self) -> bool:
        """Whether no update of the model is pending or running."""
        return self.record.state in machine.RESTING and not (self.worker.current or self.pending)


class Callbacks(NamedTuple):
    """The agent around its updates.

    serving    the served model of a name, created when there is none
    health     of the machine, now
    inventory  reports what is on the device
    post       runs a function on the control loop
    """

    serving: Callable[[str], ServedModel]
    health: Callable[[], wire.Health]
    inventory: Callable[[], object]
    post: Submit


class Updates:
    """The updates of all models of one device.

    director_root   TUF root.json with the keys that sign assignments
    floors          versions and counters below which nothing is accepted
    """

    def __init__(
        self,
        identity: Identity,
        ports: UpdatePorts,
        reporter: Reporter,
        clock: DeviceClock,
        settings: UpdateSettings,
        callbacks: Callbacks,
        *,
        floors: Floors,
        director_root: bytes,
    ) -> None:
        self.floors, self.director_root = floors, director_root
        self._identity, self._ports, self._reporter = identity, ports, reporter
        self._clock, self._settings, self._callbacks = clock, settings, callbacks
        self._attempts: dict[str, Attempt] = {}
        self._desired: dict[str, Order] | None = None
        self._payload, self._urls, self._signed_s = b"", dict[str, str](), 0.0
        self._epochs: dict[str, int] = {}
        self._epoch_watch = EpochWatch(ports, clock, callbacks.post, self._learn)

    @property
    def records(self) -> list[Record]:
        """The record of each model, in the order of the journal."""
        return [attempt.record for attempt in list(self._attempts.values())]

    @property
    def settled(self) -> bool:
        """Whether every order of the newest assignment has been attempted, and nothing runs."""
        wanted = self._desired or {}
        return (
            all(
                attempt.idle and machine.decide(attempt.record, wanted.get(model)) is None
                for model, attempt in self._attempts.items()
            )
            and wanted.keys() <= self._attempts.keys()
        )

    def is_idle(self, model: str) -> bool:
        """Whether this model is known and no update of it is pending or running."""
        attempt = self._attempts.get(model)
        return attempt is not None and attempt.idle

    # ------------------------------------------------------------------ start and stop

    def start(self) -> None:
        """Load the committed release of each model and resume interrupted updates."""
        records = self._ports.journal.records()
        self._ports.slots.sweep([m for m, r in records.items() if r.state not in machine.RESTING])
        self._attempts = {model: self._attempt(record) for model, record in records.items()}
        self._adopt_slots()
        for attempt in self._attempts.values():
            attempt.record = self._serve_committed(attempt.record)
        self._restore_assignment()
        for attempt in self._attempts.values():
            self._reporter.update(attempt.record)
            attempt.resumes = True
            try:
                self._resume(attempt)
            except StorageError as error:  # `tick` tries again
                self._reporter.fault(disk_fault(str(error)))
            if attempt.record.state is not State.OBSERVING:
                self._ports.sessions.end(attempt.record.model)

    def follow_director(self, root: bytes) -> None:
        """Verify assignments by a new root of the director from now on."""
        self.director_root = root

    def stop(self) -> None:
        """Cancel the running effects."""
        self._epoch_watch.stop()
        for attempt in self._attempts.values():
            attempt.worker.cancel()

    def _attempt(self, record: Record) -> Attempt:
        return Attempt(record, Worker(self._ports.spawn, self._callbacks.post))

    def _adopt_slots(self) -> None:
        """Keep serving slots that the journal has lost, and raise their floors again.

        Only what signed metadata beside the slot proves; the rest is fetched again when the
        controller orders it.
        """
        identity, ports = self._identity, self._ports
        for found in ports.slots.found():
            if found.model in self._attempts:
                continue
            slot, faults = recover(found, ports, identity.profile.name, identity.ring)
            for detail in faults:
                self._reporter.fault(Fault("slot-unproven", detail, "critical"))
            if slot is None:
                continue
            self.floors = self.floors.raised(counters={slot.model: slot.counter})
            record = Record(model=slot.model, serving=slot)
            with contextlib.suppress(StorageError):  # it serves whatever the disk says
                ports.journal.save_floors(self.floors)
                ports.journal.save(record)
            self._attempts[slot.model] = self._attempt(record)

    def _serve_committed(self, record: Record) -> Record:
        """Load the committed slot, or the spare one; a trial is loaded by its effect.

        A model that is being removed is not loaded again, nor a spare that was revoked. Returns the
        record without the slots that are damaged; what is damaged is fetched again.
        """
        if record.state is State.REMOVING:
            return record
        if record.spare is not None and self.floors.is_revoked(record.spare.release):
            record = msgspec.structs.replace(record, spare=None)
        committed = record.trial if record.state is State.COMMITTING else record.serving
        for slot in (committed, record.spare):
            if slot is None:
                continue
            try:
                self._ports.slots.verify(slot, self._identity.profile.name)
                engine = self._ports.loader.load(slot, self._identity.profile)
            except ShoalError as error:
                detail = f"{slot.release} in slot {slot.slot}: {error}"
                self._reporter.fault(Fault("slot-damaged", detail, "critical"))
                if isinstance(error, BundleError):
                    record = self._drop_damaged(record, slot)
                continue
            self._callbacks.serving(record.model).swap(engine, self._callbacks.health())
            break
        return record

    def _drop_damaged(self, record: Record, slot: Slot) -> Record:
        """Forget a damaged slot, and lead programs away from it; the record that remains."""
        after = machine.without_damaged(record, slot)
        try:
            if after is not record:
                self._ports.journal.save(after)
                if slot == record.serving:
                    self._ports.slots.point(record.model, after.serving)
        except StorageError as error:
            self._reporter.fault(disk_fault(str(error)))
        return after

    def _restore_assignment(self) -> None:
        """Take the journal's assignment as the desired state, unless it has expired."""
        payload = self._ports.journal.assignment()
        if not payload:
            return
        try:
            message = wire.decode_down("assignment", payload)
            if isinstance(message, wire.Assignment):
                self._payload, self._urls = payload, message.urls
                self._ports.peers.update(message.peers or {}, message.generations or {})
                self.on_assignment(message, payload)
        except (WireError, TrustError) as error:
            _log.info("the assignment in the journal is not valid: %s", error)

    def _resume(self, attempt: Attempt) -> None:
        """Continue the attempt that the journal has, once after a start."""
        if not attempt.resumes:
            return
        if (attempt.record.state, Event.STARTED) in machine.TRANSITIONS:
            self._advance(attempt, *machine.on_start(attempt.record, self._clock()))
        attempt.resumes = False

    # ------------------------------------------------------------------ the desired state

    def on_assignment(self, message: wire.Assignment, payload: bytes) -> None:
        """Verify an assignment and journal it; `tick` acts on it.

        Raises TrustError, WireError, StorageError.
        """
        director = director_signers(self.director_root)
        orders = verify_orders(
            message.signed,
            director_root=self.director_root,
            device=self._identity.device,
            floor=self.floors.of_assignments(director),
            now_s=self._clock(),
        )
        signed_s = self._clock.clamp(orders.signed_s)
        floors = self.floors.raised(time_s=signed_s).ordered(orders.version, director)
        if payload != self._payload:
            self._ports.journal.save_assignment(payload, floors)
        self.floors, self._payload, self._urls = floors, payload, message.urls
        self._ports.peers.update(message.peers or {}, message.generations or {})
        self._clock.raise_floor(signed_s)
        self._desired = {order.model: order for order in orders.orders}
        self._signed_s, self._epochs = orders.signed_s, orders.epochs
        for attempt in self._attempts.values():
            attempt.not_before = float("-inf")  # its URLs may be new

    def tick(self) -> None:
        """Start, cancel, time out, judge and launch what is due for each model."""
        for model in self._desired or {}:
            if model not in self._attempts:
                self._attempts[model] = self._attempt(Record(model=model))
        for attempt in self._attempts.values():
            try:
                self._resume(attempt)
                self._follow_order(attempt)
                self._check_deadline(attempt)
                self._observe(attempt)
                self._launch(attempt)
            except StorageError as error:
                self._reporter.fault(disk_fault(str(error)))
        self._epoch_watch.tick(self._epochs, self.floors)

    def _follow_order(self, attempt: Attempt) -> None:
        """Start or cancel an attempt where the desired order asks for it."""
        if self._desired is None:
            return
        order, now = self._desired.get(attempt.record.model), self._clock()
        event = machine.decide(attempt.record, order)
        if event is Event.ASSIGNED:
            attempt.tries, attempt.waits, attempt.due_s = 0, Note(), float("inf")
            self._advance(attempt, event, Note(at_s=now, order=order))
        elif event is Event.CANCEL:
            why = _superseded(order) if order else "the order was withdrawn"
            self._advance(attempt, event, Note(at_s=now, cause="canceled", detail=why))

    def _check_deadline(self, attempt: Attempt) -> None:
        record, now = attempt.record, self._clock()
        if record.state in machine.CANCELABLE and self._is_late(attempt):
            detail = f"not done by its deadline; it was {record.state.name}"
            cause, why = "deadline", attempt.waits
            if why.cause == "clock":
                cause, detail = why.cause, f"{detail}: {why.detail}"
            self._advance(attempt, Event.LATE, Note(at_s=now, cause=cause, detail=detail))

    def _is_late(self, attempt: Attempt) -> bool:
        """Whether the deadline has passed by the controller's clock.

        Where its time is unknown: whether as long has passed since the order was received here, or
        the agent started, as the controller allowed when it signed.
        """
        order = attempt.record.order
        if order is None or not order.deadline_s:
            return False
        if attempt.due_s == float("inf"):
            allowed_s = max(0.0, order.deadline_s - self._signed_s)
            attempt.due_s = self._clock.monotonic() + allowed_s
        late = self._clock.is_past(order.deadline_s)
        return self._clock.monotonic() > attempt.due_s if late is None else late

    def _observe(self, attempt: Attempt) -> None:
        """Commit or roll back a trial once its observation has a verdict."""
        record, watch = attempt.record, attempt.watch
        if record.state is not State.OBSERVING or watch is None or record.trial is None:
            return
        own, reports = self._callbacks.serving(record.model).vitals, self._ports.sessions.read()
        verdict = judge_all(watch, own, reports, record.trial, self._clock.monotonic())
        if verdict is not None:
            event = Event.HEALTHY if verdict.passed else Event.UNHEALTHY
            self._advance(attempt, event, verdict.note(self._clock()))

    # ------------------------------------------------------------------ one step

    def _advance(self, attempt: Attempt, event: Event, note: Note, *, launch: bool = False) -> None:
        """Step, save, then launch the effect and report the state.

        launch   whether the next effect starts at once: it does not wait for the report
        """
        before = attempt.record
        after, effect = machine.step(before, event, note)
        self._ports.journal.save(after)  # durable first
        attempt.record = after
        attempt.pending, attempt.watch, attempt.not_before = effect, None, float("-inf")
        attempt.tries = attempt.tries if after.state is before.state else 0
        attempt.worker.cancel()
        if launch and after.state not in machine.TERMINAL:
            self._launch(attempt)
        if after.state is not before.state:
            if before.state is State.OBSERVING:
                self._ports.sessions.end(after.model)
            _log.info("%s: %s %s", after.model, after.state.name, after.detail)
            self._reporter.update(after)
        if after.state in machine.TERMINAL:
            self._callbacks.inventory()
        if after.state is State.SUCCEEDED:
            self._reporter.fault(ended("slot-damaged"))

    def _launch(self, attempt: Attempt) -> None:
        """Start the pending effect once its time has come and the previous job has ended."""
        effect, record, now = attempt.pending, attempt.record, self._clock.corrected()
        early = effect is Effect.CHECK and record.order and now < record.order.not_before_s
        closed = effect is Effect.DOWNLOAD and now < self._settings.hours.opens_s(now)
        waits = self._clock.monotonic() < attempt.not_before
        if effect is None or attempt.worker.current or waits or early or closed:
            return
        attempt.pending, job = None, EffectJob(effect, record)
        context = self._context(attempt, job)
        attempt.worker.start(
            job,
            lambda job: effects.EFFECTS[effect](record, context),
            lambda job: self._on_effect_done(attempt, job),
        )

    def _on_effect_done(self, attempt: Attempt, job: EffectJob) -> None:
        """Take the result of an effect: the next step, or another try."""
        result = effects.failed(job.effect, job.error) if job.error else job.value
        current = attempt.record is job.record
        if result.floors:
            self._learn(result.floors)
        if result.event is not None and current:
            note = msgspec.structs.replace(result.note, at_s=self._clock())
            self._advance(attempt, result.event, note, launch=True)
        if result.window is not None:
            self._reporter.add(result.window)
        for fault in result.faults:
            self._reporter.fault(fault)
        if result.event is None and current:
            self._continue(attempt, job, result)

    def _learn(self, floors: Floors) -> None:
        """Raise the floors to what an effect or a look at the metadata has verified."""
        raised = self.floors.learned(floors).after(floors.seen)
        if raised != self.floors:
            self.floors = raised
            self._ports.journal.save_floors(raised)

    def _continue(self, attempt: Attempt, job: EffectJob, result: EffectResult) -> None:
        """The state stays: begin the observation, wait for the download window, or try again."""
        if job.effect is Effect.WATCH:
            before = self._callbacks.serving(attempt.record.model).before
            since = self._clock.monotonic()
            until = since + self._settings.observe_s
            attempt.watch = Watch(since_s=since, until_s=until, before=before)
            self._callbacks.inventory()
        elif self._is_closed(job.effect):
            attempt.pending = job.effect
        elif result.retry:
            self._retry(attempt, job, result)

    def _retry(self, attempt: Attempt, job: EffectJob, result: EffectResult) -> None:
        """Try the effect again after a random pause, up to the result's limit of tries."""
        attempt.tries += 1
        if result.tries and attempt.tries >= result.tries:
            note = msgspec.structs.replace(result.note, at_s=self._clock())
            self._advance(attempt, Event.BROKE, note)
            return
        pause = min(RETRY_MAX_S, RETRY_S * 2 ** min(attempt.tries - 1, 10))
        attempt.pending, attempt.waits = job.effect, result.note
        attempt.not_before = self._clock.monotonic() + pause * self._ports.random.random()
        severity = "warning" if result.note.cause == "clock" else "info"
        self._reporter.fault(Fault(result.note.cause, result.note.detail, severity))

    def _context(self, attempt: Attempt, job: EffectJob) -> EffectContext:
        return EffectContext(
            ports=self._ports,
            health=self._callbacks.health,
            ring=self._identity.ring,
            profile=self._identity.profile,
            floors=self.floors,
            url=self._url,
            serving=self._callbacks.serving(attempt.record.model),
            stop=lambda: job.cancelled or self._is_closed(job.effect),
            now_s=self._clock(),
            tries=attempt.tries,
            clock_fault=self._clock.fault,
        )

    def _is_closed(self, effect: Effect) -> bool:
        """Whether the effect is a download outside the hours for downloads."""
        hours = self._settings.hours
        return effect is Effect.DOWNLOAD and not hours.open(self._clock.corrected())

    def _url(self, sha256: str) -> str:
        try:
            return self._urls[sha256]
        except KeyError:
            raise AbsentError("address for", sha256, "the controller sends it anew") from None


def _superseded(order: Order) -> str:
    return f"superseded by {order.release or 'the order to remove the model'}"
