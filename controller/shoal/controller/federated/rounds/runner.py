"""What the engine does about rounds: journal first, then act, and everything may be done again.

`take` is given what devices say, `step` does what is due. What devices send is on the disk before
anything follows from it; the marks are written down with the next state, or by the next step. A new
Course on the same folder goes on where the last one was killed: journal and files say all that
matters, and what was said to devices and not answered is said again.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from cryptography import x509
from sqlalchemy import select

from shoal import topics, wire
from shoal.controller.federated.aggregation import aggregation, evaluation, row_claims
from shoal.controller.federated.checkpoints import round_quarantine
from shoal.controller.federated.planning import excluded_devices, scheduling, tasks
from shoal.controller.federated.ports import Files
from shoal.controller.federated.rounds import (
    controller_messages,
    device_messages,
    dismissal,
    journal,
    machine,
    rows,
)
from shoal.controller.federated.rounds.active_round import Live
from shoal.controller.federated.rounds.machine import Event, Mark, State
from shoal.controller.federated.secagg.session import Circle
from shoal.controller.host.context import Context
from shoal.controller.store.tables import device, federated_round, federated_task
from shoal.errors import LinkError, ShoalError, StorageError

_log = logging.getLogger(__name__)

#: (device, message): LinkError when it cannot be taken now.
Post = Callable[[str, wire.RoundCall], None]


class Course:
    """All rounds that run. One thread at a time.

    strays   answers to no round that runs, since the engine started
    """

    def __init__(self, ctx: Context, files: Files, post: Post) -> None:
        self._ctx, self._files, self._post = ctx, files, post
        self._lives: dict[str, Live] = {}
        self._unwritten: set[str] = set()
        self.strays = 0

    def take(self, messages: Iterable[tuple[str, bytes]]) -> bool:
        """(topic, payload) of round answers, as they came; one that is wrong harms no other.

        Whether a round has ended with them: then a step is due. StorageError when the disk refuses
        to keep them: none of them has been heard.
        """
        self._look()
        touched: dict[str, machine.Round] = {}
        try:
            with self._files.together():
                for answer in _readable(messages):
                    live = self._asked_by(answer)
                    if live is None:
                        self.strays += 1
                        continue
                    touched.setdefault(live.id, live.now)
                    self._hear(live, answer)
        except StorageError:
            for ident in touched:  # in memory is more than on the disk: they are taken up anew
                del self._lives[ident]
            raise
        lives = [self._lives[ident] for ident in touched]
        self._unwritten |= {one.id for one in lives if one.now is not touched[one.id]}
        for live in lives:
            self._go_on(live)
        return any(live.now.state in machine.ENDED for live in lives)

    def step(self) -> None:
        """Everything that is due: decisions, rounds to begin, what is to be said."""
        tasks.sweep(self._ctx)
        self._look()
        for live in list(self._lives.values()):
            self._go_on(live)
        for ident in self._unwritten & set(self._lives):
            self._keep(self._lives[ident])
        if scheduling.begin_due(self._ctx):
            self._look()
            for live in [one for one in self._lives.values() if one.now.state is State.PLANNED]:
                self._go_on(live)
        dismissal.dismiss(self._ctx, self._files, self._post, running=set(self._lives))

    # --- what devices say ---------------------------------------------------------------------

    def _asked_by(self, answer: wire.RoundAnswer) -> Live | None:
        """The round that an answer is to."""
        for live in self._lives.values():
            if answer.device in live.now.marks and (
                live.attempt_of(answer.device) == answer.attempt
            ):
                return live
        return None

    def _hear(self, live: Live, answer: wire.RoundAnswer) -> None:
        now_s = self._ctx.clock()
        try:
            ignored = device_messages.take(live, answer.device, answer.attempt, answer.said, now_s)
        except StorageError:
            raise
        except Exception:  # noqa: BLE001 - whatever a device may make a parser do, it does to itself
            _log.exception("round %s: an answer of %s", live.id, answer.device)
            ignored = device_messages.put_out(live, answer.device, answer.attempt, now_s)
        if ignored:
            live.ignored[ignored] += 1
        else:
            controller_messages.answered(live, answer.device, now_s)

    # --- going on -----------------------------------------------------------------------------

    def _look(self) -> None:
        """Which rounds run: new ones are taken up as the journal has them."""
        running = federated_round.c.ended_at == 0
        with self._ctx.store.read() as db:
            found = list(db.scalars(select(federated_round.c.id).where(running)))
            new = [rows.round_row(db, ident) for ident in found if ident not in self._lives]
            their = {row.task: rows.task_of(rows.task_row(db, row.task)) for row in new}
        self._lives = {ident: one for ident, one in self._lives.items() if ident in found}
        for row in new:
            live = Live(row, their[row.task], self._files, self._authorities)
            live.sites = self._sites(live)
            with self._ctx.store.read() as db:
                live.claims = row_claims.known(db, live.task.model, live.now.marks)
            device_messages.recall(live)
            try:
                live.bound = controller_messages.bound(self._ctx, live)
                self._act(live)
            except OSError as error:
                live.broken = f"{type(error).__name__}: {error!s:.300}"
            self._lives[live.id] = live

    def _sites(self, live: Live) -> dict[str, str]:
        """Of the devices of a round, where a gateway may speak for others of its site."""
        if not live.task.plan.gateways:
            return {}
        query = select(device.c.name, device.c.site).where(device.c.name.in_(live.now.marks))
        with self._ctx.store.read() as db:
            return {row.name: row.site for row in db.execute(query)}

    @functools.cached_property
    def _authorities(self) -> list[x509.Certificate]:
        """Of the device CA; empty where there is none: then nobody's advert is believed."""
        path = self._ctx.folder / "pki" / "ca.pem"
        return x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else []

    def _go_on(self, live: Live) -> None:
        """A round that cannot go on ends the next time, and stops no other."""
        try:
            while (following := self._following(live)) is not None:
                event, reason = following
                self._move(live, event, reason)
            self._tell(live)
        except LinkError as error:
            _log.debug("round %s: %s", live.id, error)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug, or a blob that is gone
            _log.exception("round %s cannot go on", live.id)
            live.broken = f"{type(error).__name__}: {error!s:.300}"

    def _following(self, live: Live) -> tuple[Event, str] | None:
        """What comes next: an event and a reason; None: wait."""
        if live.now.state in machine.ENDED:
            return None
        if live.broken:
            live.result["detail"] = live.broken
            return Event.BROKE, "cannot-go-on"
        if why := self._why_not(live):
            return Event.BROKE, why
        if live.now.state is State.PLANNED:
            return (Event.ASKED if live.now.purpose == "evaluate" else Event.OPENED), ""
        if live.now.state is State.AGGREGATING:
            return self._aggregate(live)
        if live.circle is not None and self._circle_closes(live, live.circle):
            return Event.REVEALED, ""
        decided = machine.decide(live.now, self._ctx.clock())
        if decided is not None and live.now.state in (State.RECRUITING, State.TRAINING):
            self._without_decommissioned(live)
            decided = machine.decide(live.now, self._ctx.clock())
        return decided

    def _why_not(self, live: Live) -> str:
        """Why a round that runs is not wanted any more."""
        table, task = federated_round, federated_task
        query = select(table.c.poisoned, task.c.state, task.c.checkpoint)
        joined = query.join_from(table, task, task.c.name == table.c.task)
        with self._ctx.store.read() as db:
            found = db.execute(joined.where(table.c.id == live.id)).one()
        if found.poisoned:
            return round_quarantine.BROKEN_OFF
        if live.now.purpose == "evaluate":
            return ""
        if found.state == rows.STOPPED:
            return "aborted"
        return "superseded" if found.checkpoint != live.theta else ""

    def _circle_closes(self, live: Live, circle: Circle) -> bool:
        """Deal boxes or pass votes on when it is time; whether all shares that will come are in."""
        pace, now_s = live.now.pace, self._ctx.clock()
        if live.now.state is State.TRAINING and circle.dealt is None:
            joined = set(live.now.having(Mark.JOINED))
            if (
                joined <= circle.shared
                or now_s > live.now.deadline_s - pace.train_s + pace.unmask_s
            ):
                silent = set(circle.deal())
                live.left(sorted(silent & joined), "no-boxes")
                self._keep(live)
        elif live.now.state is State.UNMASKING:
            waiting = set(live.now.having(Mark.UPDATED))
            half_s = live.now.deadline_s - pace.unmask_s / 2
            if circle.passed is None and (waiting <= circle.voted or now_s > half_s):
                circle.pass_on()
            return circle.passed is not None and not waiting & set(circle.passed)
        return False

    def _without_decommissioned(self, live: Live) -> None:
        """Who left the fleet is out, with its update where that can be seen."""
        names = live.now.having(Mark.INVITED, Mark.JOINED)
        names += [] if live.plan.secure else live.now.having(Mark.UPDATED)
        gone = select(device.c.name).where(device.c.name.in_(names), device.c.state != "enrolled")
        with self._ctx.store.read() as db:
            left = list(db.scalars(gone))
        if left:
            live.left(left, "decommissioned")

    def _aggregate(self, live: Live) -> tuple[Event, str]:
        try:
            made = aggregation.aggregate(self._ctx, live)
        except StorageError:
            raise
        except ShoalError as error:
            live.result |= {"detail": str(error)} | excluded_devices.of(error)
            return Event.BROKE, "cannot-aggregate"
        except Exception as error:  # noqa: BLE001 - a strategy may be anybody's
            _log.exception("round %s: %s failed", live.id, live.plan.strategy)
            live.result["detail"] = f"{live.plan.strategy}: {type(error).__name__}: {error!s:.300}"
            return Event.BROKE, "strategy-failed"
        live.checkpoint, live.memory, live.facts = made.checkpoint, made.memory, made.facts
        live.result |= {"loss": made.loss, "bytes": made.bytes, "next_clip": made.next_clip}
        every = live.task.plan.evaluate
        return (Event.AGGREGATED if every and live.now.number % every == 0 else Event.FINISHED), ""

    # --- journal, then effects ----------------------------------------------------------------

    def _move(self, live: Live, event: Event, reason: str = "") -> None:
        after, _ = machine.step(live.now, event, self._ctx.clock(), reason)
        if event is Event.MEASURED:
            self._merge_measures(live)
        with self._ctx.store.write() as db:
            made: dict[str, Any] = {"checkpoint": live.checkpoint, "memory": live.memory}
            if live.facts is not None:
                journal.keep_participations(db, live.id, live.facts)
            journal.write(db, self._ctx, live, after, **made)
        live.now, live.facts = after, None
        self._unwritten.discard(live.id)
        _log.info("round %s is %s %s", live.id, after.state, reason)
        self._act(live)

    def _keep(self, live: Live) -> None:
        with self._ctx.store.write() as db:
            journal.write(db, self._ctx, live, live.now)
        self._unwritten.discard(live.id)

    def _act(self, live: Live) -> None:
        """What the state asks for beside words; done again after a start."""
        if live.now.state is State.RECRUITING and not live.files.has(live.id, "begun"):
            live.files.put(live.id, "begun", "", b"")
        if live.plan.secure is None or live.now.state not in (State.TRAINING, State.UNMASKING):
            return
        if live.circle is None:
            joined = live.now.having(Mark.JOINED)
            live.circle = Circle.open(live.id, live.terms, live.files, joined)
        if live.now.state is State.UNMASKING:
            live.circle.end(live.now.having(Mark.UPDATED))

    def _merge_measures(self, live: Live) -> None:
        said = {
            name: evaluation.decode(live.files.get(live.id, "measured", name) or b"")
            for name in live.now.having(Mark.MEASURED)
        }
        query = select(device.c.name, device.c.site, device.c.profile)
        with self._ctx.store.read() as db:
            there = db.execute(query.where(device.c.name.in_(said)))
            places = {row.name: evaluation.Place(row.site, row.profile) for row in there}
        found = evaluation.merged(said, places)
        live.result |= msgspec.to_builtins({"measured": found.whole, "slices": found.slices})

    def _tell(self, live: Live) -> None:
        """LinkError when the link does not take it: it is said the next time."""
        for due in controller_messages.due(self._ctx, live):
            call = wire.RoundCall(attempt=live.attempt_of(due.device), said=due.call)
            self._post(due.device, call)
            live.nudges[due.device] = due.nudge


def _readable(messages: Iterable[tuple[str, bytes]]) -> Iterator[wire.RoundAnswer]:
    """Those that are what their topic says."""
    for topic, payload in messages:
        try:
            name, kind = topics.parse_up(topic)
            message = wire.decode_up(kind, payload)
        except ShoalError as error:
            _log.warning("round answer on %s: %s", topic[:200], error)
            continue
        if isinstance(message, wire.RoundAnswer) and message.device == name:
            yield message
