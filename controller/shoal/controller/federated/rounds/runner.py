"""Runs federated rounds: journal first, then act; everything may be repeated after a restart.

What devices send is on disk before anything follows from it. Marks are journaled with the next
state, or by the next `step`. A new RoundRunner on the same folder resumes every round from journal
and files, and sends again what devices have not answered.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator

import msgspec
from cryptography import x509
from sqlalchemy import select

from shoal import topics, wire
from shoal.controller.federated.aggregation import aggregation, checkpoint_files, evaluation
from shoal.controller.federated.checkpoints import round_quarantine
from shoal.controller.federated.planning import scheduling, tasks
from shoal.controller.federated.ports import Files
from shoal.controller.federated.rounds import (
    active_round,
    machine,
    round_messages,
    rows,
)
from shoal.controller.federated.rounds.active_round import ActiveRound
from shoal.controller.federated.rounds.machine import Effect, Event, Mark, State
from shoal.controller.federated.secagg.session import SecAggSession
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device, federated_round, federated_task
from shoal.errors import LinkError, ShoalError, StorageError

_log = logging.getLogger(__name__)

#: (device, message): LinkError when it cannot be sent now.
Post = Callable[[str, wire.RoundCall], None]
#: Event that ends a state, and its reason.
Outcome = tuple[Event, str]


class RoundRunner:
    """Runs every active round, on one thread. A round from its first state to its last:

        PLANNED        invite          its devices
        RECRUITING     collect         devices that join
        TRAINING       collect         updates; under secure aggregation, key shares first
        UNMASKING      close_secagg    votes, then the shares that open the sum
        AGGREGATING    aggregate       updates to the next checkpoint
        EVALUATING     evaluate        the checkpoint on the devices
        DONE, FAILED   finish          dismiss the devices, delete the files

    `receive` takes device messages, `step` everything that is due by the clock; both call `run`.

    unmatched   messages of no active round, since the process started
    """

    def __init__(self, ctx: Context, files: Files, post: Post) -> None:
        self._ctx, self._files, self._post = ctx, files, post
        self._active: dict[str, ActiveRound] = {}
        self._unwritten: set[str] = set()
        self.unmatched = 0
        self._stages: dict[State, Callable[[ActiveRound], Outcome | None]] = {
            State.PLANNED: self.invite,
            State.RECRUITING: self.collect,
            State.TRAINING: self.collect,
            State.UNMASKING: self.close_secagg,
            State.AGGREGATING: self.aggregate,
            State.EVALUATING: self.evaluate,
        }

    def receive(self, received: Iterable[tuple[str, bytes]]) -> bool:
        """Take (topic, payload) of round messages; an invalid one affects its own device only.

        Whether a round ended, so that a step is due. StorageError when the disk refuses to keep
        them: then none of them counts.
        """
        self._load()
        before: dict[str, machine.RoundRecord] = {}
        try:
            with self._files.together():
                for message in _decoded(received):
                    active = self._round_of(message)
                    if active is None:
                        self.unmatched += 1
                        continue
                    before.setdefault(active.id, active.record)
                    self._receive(active, message)
        except StorageError:
            for ident in before:  # memory is ahead of the disk: load these rounds again
                del self._active[ident]
            raise
        found = [self._active[ident] for ident in before]
        self._unwritten |= {one.id for one in found if one.record is not before[one.id]}
        for active in found:
            self.run(active)
        return any(active.record.state in machine.ENDED for active in found)

    def step(self) -> bool:
        """Do everything that is due: decisions, new rounds, repeated requests, dismissals. Whether
        a round runs: time alone makes something due in it."""
        tasks.sweep(self._ctx)
        self._load()
        for active in list(self._active.values()):
            self.run(active)
        for ident in self._unwritten & set(self._active):
            self._save(self._active[ident])
        if scheduling.start_due(self._ctx):
            self._load()
            for active in list(self._active.values()):
                if active.record.state is State.PLANNED:
                    self.run(active)
        self.finish()
        return bool(self._active or self._unwritten)

    # --- one round, from top to bottom --------------------------------------------------------

    def run(self, active: ActiveRound) -> None:
        """Advance a round until it has to wait, then send what is due to its devices.

        An error fails this round at its next run, and no other round.
        """
        try:
            while (outcome := self._outcome(active)) is not None:
                self._move(active, *outcome)
            self._send(active)
        except LinkError as error:
            _log.debug("round %s: %s", active.id, error)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug, or a blob that is gone
            _log.exception("round %s cannot continue", active.id)
            active.error = f"{type(error).__name__}: {error!s:.300}"

    def _outcome(self, active: ActiveRound) -> Outcome | None:
        """Event that ends the round's state now; None to wait."""
        if active.record.state in machine.ENDED:
            return None
        if active.error:
            active.result["detail"] = active.error
            return Event.FAILED, "cannot-go-on"
        if reason := self._cancelled(active):
            return Event.FAILED, reason
        return self._stages[active.record.state](active)

    def invite(self, active: ActiveRound) -> Outcome:
        """Open the round: its devices are invited, or asked to evaluate only."""
        trains = active.record.purpose == "train"
        return (Event.OPENED if trains else Event.EVALUATION_OPENED), ""

    def collect(self, active: ActiveRound) -> Outcome | None:
        """Wait for joins, then for updates; leave out devices that left the fleet."""
        if active.secagg is not None and active.secagg.sharers is None:
            self._close_sharing(active, active.secagg)
        if machine.decide(active.record, self._ctx.clock()) is None:
            return None
        self._drop_decommissioned(active)
        return machine.decide(active.record, self._ctx.clock())

    def close_secagg(self, active: ActiveRound) -> Outcome | None:
        """Collect votes for half of the time, send them on, then wait for the voters' shares."""
        record, secagg = active.record, active.secagg
        assert secagg is not None
        waiting = set(record.with_mark(Mark.UPDATED))
        half_s = record.deadline_s - record.pace.unmask_s / 2
        if secagg.voters is None and (waiting <= secagg.voted or self._ctx.clock() > half_s):
            secagg.close_voting()
        if secagg.voters is not None and not waiting & set(secagg.voters):
            return Event.REVEALED, ""
        return machine.decide(record, self._ctx.clock())

    def aggregate(self, active: ActiveRound) -> Outcome:
        """Make the next checkpoint of the collected updates."""
        try:
            result = aggregation.aggregate(self._ctx, active)
        except StorageError:
            raise
        except ShoalError as error:
            active.result |= {"detail": str(error)} | scheduling.excluded_by(error)
            return Event.FAILED, "cannot-aggregate"
        except Exception as error:  # noqa: BLE001 - a strategy may be a plugin
            _log.exception("round %s: %s failed", active.id, active.plan.strategy)
            cause = f"{type(error).__name__}: {error!s:.300}"
            active.result["detail"] = f"{active.plan.strategy}: {cause}"
            return Event.FAILED, "strategy-failed"
        active.checkpoint, active.memory, active.facts = (
            result.checkpoint, result.memory, result.facts
        )  # fmt: skip
        active.result |= {
            "loss": result.loss, "bytes": result.bytes, "next_clip": result.next_clip
        }  # fmt: skip
        every = active.task.plan.evaluate
        evaluates = every and active.record.number % every == 0
        return (Event.AGGREGATED if evaluates else Event.FINISHED), ""

    def evaluate(self, active: ActiveRound) -> Outcome | None:
        """Wait for the devices' measurements, then merge them."""
        outcome = machine.decide(active.record, self._ctx.clock())
        if outcome is None or outcome[0] is not Event.MEASURED:
            return outcome
        measured = {
            name: evaluation.decode(active.files.get(active.id, "measured", name) or b"")
            for name in active.record.with_mark(Mark.MEASURED)
        }
        query = select(device.c.name, device.c.site, device.c.profile)
        with self._ctx.store.read() as db:
            found = db.execute(query.where(device.c.name.in_(measured)))
            places = {row.name: evaluation.Place(row.site, row.profile) for row in found}
        merged = evaluation.merge(measured, places)
        active.result |= msgspec.to_builtins({"measured": merged.whole, "slices": merged.slices})
        return outcome

    def finish(self) -> None:
        """Dismiss the devices of every ended round, then delete its files; retried without link."""
        for ident in self._files.rounds():
            if ident in self._active:
                continue
            with self._ctx.store.read() as db:
                query = select(federated_round).where(federated_round.c.id == ident)
                row = db.execute(query).first()
                calls = list(round_messages.dismissals(db, row)) if row is not None else []
            try:
                for name, call in calls:
                    self._post(name, call)
            except LinkError as error:
                _log.debug("round %s is over, its devices are dismissed later: %s", ident, error)
                continue
            self._files.forget(ident)
            if row is not None:
                checkpoint_files.forget_old_states(self._ctx, row.task, row.number)

    # --- journal, then effects ----------------------------------------------------------------

    def _move(self, active: ActiveRound, event: Event, reason: str) -> None:
        after, effect = machine.step(active.record, event, self._ctx.clock(), reason)
        self._save(active, after)
        active.record, active.facts = after, None
        _log.info("round %s is %s %s", active.id, after.state, reason)
        self._act(active, effect)

    def _save(self, active: ActiveRound, after: machine.RoundRecord | None = None) -> None:
        with self._ctx.store.write() as db:
            active_round.write_journal(db, self._ctx, active, after or active.record)
        self._unwritten.discard(active.id)

    def _act(self, active: ActiveRound, effect: Effect | None) -> None:
        """Effects on the round's files; those of other states are in the methods above."""
        if effect is Effect.INVITE and not active.files.has(active.id, "begun"):
            active.files.put(active.id, "begun", "", b"")
        if active.plan.secure is None or effect not in (Effect.TRAIN, Effect.UNMASK):
            return
        if active.secagg is None:
            joined = active.record.with_mark(Mark.JOINED)
            active.secagg = SecAggSession.open(active.id, active.terms, active.files, joined)
        if effect is Effect.UNMASK:
            active.secagg.fix_survivors(active.record.with_mark(Mark.UPDATED))

    def _send(self, active: ActiveRound) -> None:
        """LinkError when the link refuses a message: it is sent by the next run."""
        for due in round_messages.due(self._ctx, active):
            attempt = active.record.attempt_of(due.device)
            self._post(due.device, wire.RoundCall(attempt=attempt, said=due.call))
            active.requests[due.device] = due.request

    # --- what interrupts a state --------------------------------------------------------------

    def _cancelled(self, active: ActiveRound) -> str:
        """Why a round must not continue; "" mostly."""
        table, task = federated_round, federated_task
        query = select(table.c.poisoned, task.c.state, task.c.checkpoint)
        joined = query.join_from(table, task, task.c.name == table.c.task)
        with self._ctx.store.read() as db:
            found = db.execute(joined.where(table.c.id == active.id)).one()
        if found.poisoned:
            return round_quarantine.CANCELLED
        if active.record.purpose == "evaluate":
            return ""
        if found.state == rows.STOPPED:
            return "aborted"
        return "superseded" if found.checkpoint != active.theta else ""

    def _close_sharing(self, active: ActiveRound, secagg: SecAggSession) -> None:
        """Close key sharing when every device has shared, or its time is over."""
        record = active.record
        joined = set(record.with_mark(Mark.JOINED))
        over_s = record.deadline_s - record.pace.train_s + record.pace.unmask_s
        if joined <= secagg.shared or self._ctx.clock() > over_s:
            silent = set(secagg.close_sharing())
            active.mark_lost(sorted(silent & joined), "no-boxes")
            self._save(active)

    def _drop_decommissioned(self, active: ActiveRound) -> None:
        """Leave out devices that left the fleet, with their updates unless these are masked."""
        names = active.record.with_mark(Mark.INVITED, Mark.JOINED)
        names += [] if active.plan.secure else active.record.with_mark(Mark.UPDATED)
        query = select(device.c.name).where(device.c.name.in_(names), device.c.state != "enrolled")
        with self._ctx.store.read() as db:
            gone = list(db.scalars(query))
        if gone:
            active.mark_lost(gone, "decommissioned")

    # --- active rounds, and the one that a message belongs to ---------------------------------

    def _load(self) -> None:
        """Drop rounds that have ended; load those that are new, and repeat their state's effect."""
        running = federated_round.c.ended_at == 0
        with self._ctx.store.read() as db:
            found = list(db.scalars(select(federated_round.c.id).where(running)))
            new = [
                ActiveRound(db, rows.round_row(db, ident), self._files, self._authorities)
                for ident in found
                if ident not in self._active
            ]
        self._active = {ident: one for ident, one in self._active.items() if ident in found}
        for active in new:
            round_messages.restore_marks(active)
            try:
                active.secagg_id = round_messages.secagg_id(self._ctx, active)
                _, effect = machine.step(active.record, Event.RESTARTED, self._ctx.clock())
                self._act(active, effect)
            except OSError as error:
                active.error = f"{type(error).__name__}: {error!s:.300}"
            self._active[active.id] = active

    @functools.cached_property
    def _authorities(self) -> list[x509.Certificate]:
        """Certificates of the device CA; empty without one, so that no advert verifies."""
        path = self._ctx.folder / "pki" / "ca.pem"
        return x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else []

    def _round_of(self, message: wire.RoundAnswer) -> ActiveRound | None:
        for active in self._active.values():
            if message.device in active.record.marks and (
                active.record.attempt_of(message.device) == message.attempt
            ):
                return active
        return None

    def _receive(self, active: ActiveRound, message: wire.RoundAnswer) -> None:
        name, now_s = message.device, self._ctx.clock()
        try:
            ignored = round_messages.receive(active, name, message.attempt, message.said, now_s)
        except StorageError:
            raise
        except Exception:  # noqa: BLE001 - contain a parser's failure to the device that caused it
            _log.exception("round %s: a message of %s", active.id, name)
            round_messages.refuse(active, name, now_s, round_messages.BAD_ANSWER)
            ignored = round_messages.BAD_ANSWER
        if ignored:
            active.ignored[ignored] += 1
        else:
            round_messages.postpone(active, name, now_s)


def _decoded(received: Iterable[tuple[str, bytes]]) -> Iterator[wire.RoundAnswer]:
    """Messages whose sender is the device of their topic."""
    for topic, payload in received:
        try:
            name, kind = topics.parse_up(topic)
            message = wire.decode_up(kind, payload)
        except ShoalError as error:
            _log.warning("round message on %s: %s", topic[:200], error)
            continue
        if isinstance(message, wire.RoundAnswer) and message.device == name:
            yield message
