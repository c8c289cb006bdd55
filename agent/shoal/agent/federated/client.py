"""A device in federated rounds: decide, journal, act. The states are in rounds.py.

What a round brings is fetched, trained and measured in a sandbox by a process of its own; nothing
of it can be served: no slot, no loader and no order is within reach here.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from shoal import wire
from shoal.agent.dependencies import Ports
from shoal.agent.federated.eligibility import Condition, check_graph, judge
from shoal.agent.federated.evaluation import Measuring, refusal_of
from shoal.agent.federated.gateway_upload import Handover
from shoal.agent.federated.idle import Quiet
from shoal.agent.federated.machine import (
    LIVE,
    Effect,
    Event,
    Note,
    busy_with,
    means,
    noted,
    on_start,
    step,
)
from shoal.agent.federated.ports import LearningPorts, Made
from shoal.agent.federated.round_jobs import Done, Job, Kind, Studies
from shoal.agent.federated.secagg_session import Hiding
from shoal.agent.federated.upload import PAUSE_S, Sending
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault
from shoal.agent.installed.round_record import Part, Participation, State
from shoal.agent.serving.served_model import Serving
from shoal.errors import (
    ConflictError,
    LinkError,
    RefusedError,
    ShoalError,
    StorageError,
    TrustError,
)
from shoal.federated import messages
from shoal.federated.config import Config, text_of

_log = logging.getLogger(__name__)

#: Seconds: first and longest pause before work that the network broke off is taken up again.
RETRY_S, RETRY_MAX_S = 2.0, 60.0


class World(NamedTuple):
    """What learning uses of the agent around it.

    say      an answer to the controller, now or not at all; whether it went
    post     hands a Done over to the control loop
    floors   versions of release metadata seen before
    """

    say: Callable[[bytes, messages.Answer], bool]
    post: Callable[[Done], None]
    fault: Callable[[Fault], None]
    serving: Mapping[str, Serving]
    eased: Callable[[], bool]
    floors: Callable[[], Mapping[str, float]]


class Learning:
    """One device's part in rounds. Everything but the jobs happens on the control loop."""

    def __init__(
        self, device: str, ports: Ports, own: LearningPorts, clock: DeviceClock, world: World
    ) -> None:
        self._device, self._ports, self._own = device, ports, own
        self._clock, self._world, self._limits = clock, world, own.limits
        self._quiet = Quiet(
            own.limits, own.quiet_hz, serving=world.serving, load=ports.load, eased=world.eased,
            monotonic=ports.monotonic,
        )  # fmt: skip
        self._studies = Studies(own, world, clock, lambda: self._quiet.hold)
        self._known = Participation()
        self._hiding: Hiding | None = None
        self._sending: Sending | None = None
        self._job: Job | None = None
        self._checking: Job | None = None
        self._again_s, self._tries = 0.0, 0
        self._measuring = Measuring(self._studies, own.limits, self._condition)
        self._handover = Handover(device, own, clock, self._begin, world.fault)
        self._ending: messages.Close | None = None
        self._votes: dict[str, bytes] = {}

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Take up what was under way when the power failed."""
        if self._own.rows.lost:
            self._world.fault(Fault("rows-damaged", self._own.rows.lost))
        self._known = self._recalled()
        part = self._known.part
        self._own.sandbox.clean(part.attempt if part else b"")
        if part is not None and part.state in LIVE:
            self._advance(part, *on_start(part))
        elif part is not None and part.state is State.OVER:
            self._act(part, Effect.KEEP if part.keeps else Effect.DROP)

    def _recalled(self) -> Participation:
        """As the journal says; a journal that was lost gives no new budget."""
        known, spent = self._ports.journal.participation(), self._own.sandbox.spent()
        if spent.rho > known.ledger.rho:
            return msgspec.structs.replace(known, ledger=spent)
        return known

    def tick(self) -> float:
        """Whatever is due; seconds until it wants to be called again."""
        self._quiet.look()
        self._flush()
        part = self._known.part
        if part is not None and part.state in (*LIVE, State.REFUSED):
            if self._clock() > part.config.plan.deadline_s:
                detail = "the round's deadline passed"
                self._advance(part, Event.LATE, Note(self._clock(), "late", detail))
            elif part.state is State.TRAINING and self._job is None and self._again_s:
                self._train_again(part)
            elif part.state is State.SENT and self._job is None and self._handover.due():
                self._send(part)
        return self._send_some()

    def _flush(self) -> None:
        """Rows to the disk; when it refuses they wait, and the round goes on."""
        try:
            if self._own.rows.due():
                self._own.rows.flush()
        except StorageError as error:
            self._world.fault(Fault("disk-full", str(error)))

    def stop(self) -> None:
        """End what is under way; the journal takes it up at the next start."""
        for job in (self._job, self._checking):
            if job is not None:
                job.stopped = True
        self._own.rows.flush()

    @property
    def line(self) -> str:
        """What it does now, for a person; "" for nothing."""
        if self._job is not None and self._job.kind is Kind.MEASURE:
            return f"measures round {self._job.label}"
        part = self._known.part
        if part is None or part.state not in LIVE:
            return ""
        plan, doing = part.config.plan, part.state.lower()
        rests = f", resting: {self._quiet.hold}" if self._job and self._quiet.hold else ""
        return f"takes part in round {plan.round} of {plan.task}: {doing}{rests}"

    def facts(self) -> dict[str, Any]:
        """What is told of it: rows by model, rounded down to a power of two; how many others it
        wants in a sum with it, so that it is not asked in vain."""
        rows = {
            model: _rounded(self._rows_of(model, ()))
            for model, served in self._world.serving.items()
            if served.engine is not None
        }
        mains = self._own.mains()
        limits = self._limits
        return {"enabled": limits.enabled, "rows": rows, "mains": mains, "cohort": limits.cohort}

    # ------------------------------------------------------------------ what came in

    def hear(self, call: wire.RoundCall) -> None:
        """Something that the controller said; what is out of order changes nothing."""
        said, attempt = call.said, call.attempt
        if isinstance(said, messages.Measure):
            self._asked_to_measure(attempt, said)
            return
        part = self._known.part
        if part is None or part.attempt != attempt:
            if isinstance(said, messages.Invite):
                self._invited(attempt, said)
            elif isinstance(said, messages.Dismiss):
                self._let_go(attempt)
            return
        self._hear_of(part, said)

    def finished(self, done: Done) -> None:
        """A job ended."""
        if done.job is self._job:
            self._job = None
        if done.job is self._checking:
            self._checking = None
        if done.job.stopped:
            return
        if done.job.kind is Kind.CHECK:
            self._checked(done)
        elif done.job.kind is Kind.MEASURE:
            self._has_measured(done)
        elif done.job.kind in (Kind.HAND, Kind.SUM):
            self._handed(done)
        else:
            self._worked(done)

    def _hear_of(self, part: Part, said: messages.Call) -> None:
        event = means(said)
        if event is None:
            return
        if isinstance(said, messages.Deal) and self._hiding is not None:
            self._hiding.deal(said.boxes)
        if isinstance(said, messages.Start) and part.secure and self._hiding is not None:
            try:
                self._hiding.share(said.roster)
            except ShoalError as error:
                self._refuse(part, error)
                return
        if isinstance(said, messages.Start):
            self._handover.told(part, said.way or None)
        if isinstance(said, messages.Close):
            self._ending = said
        if isinstance(said, messages.Pass):
            self._votes = said.votes
        if isinstance(said, messages.Resend) and part.state is State.SENT:
            self._send(part, said.missing)
            return
        reason = said.reason if isinstance(said, messages.Dismiss) else ""
        try:
            self._advance(part, event, Note(self._clock(), reason))
        except ConflictError as error:
            _log.debug("%s", error)

    # ------------------------------------------------------------------ invitations

    def _invited(self, attempt: bytes, said: messages.Invite) -> None:
        if self._checking is not None and self._checking.attempt == attempt:
            return
        job = self._checking = Job(Kind.CHECK, attempt, said)
        self._spawn(job, lambda job: self._studies.check(job, said.signed))

    def _checked(self, done: Done) -> None:
        attempt, found = done.job.attempt, done.result
        if isinstance(done.error, LinkError):
            _log.info("an invitation waits: %s", done.error)  # the controller says it again
            return
        try:
            if done.error is not None:
                raise done.error
            assert isinstance(found, Config)
            assert isinstance(done.job.said, messages.Invite)
            self._join(attempt, found, done.job.said)
        except ShoalError as error:
            if isinstance(error, TrustError) and not isinstance(error, RefusedError):
                said = f"an invitation to a round: {error}"
                self._world.fault(Fault(error.code, said, "critical"))
            self._world.say(attempt, refusal_of(error))

    def _join(self, attempt: bytes, config: Config, said: messages.Invite) -> None:
        now, before = self._clock(), self._known.part
        plan = config.plan
        if config.purpose != "train" or plan.attempt != attempt:
            raise RefusedError("the config is not that of this invitation", "misdirected")
        if busy_with(before, config, now):
            raise RefusedError("it takes part in a round of another task", "in-another-round")
        check_graph(config.graph.sha256, self._limits)
        _check_terms(config)
        size, ledger = config.theta.length // 4, self._known.ledger
        spent = judge(plan, size, self._limits, self._condition(config), ledger, now)
        if before is not None and before.state is not State.OVER:
            self._advance(before, Event.LATE, Note(now, "superseded"))
        self._hiding = self._hide(config, text_of(said.signed))
        part = Part(attempt=attempt, config=config, urls=said.urls, since_s=now, spent=spent)
        self._save(part)
        self._act(part, Effect.JOIN)

    def _hide(self, config: Config, text: str) -> Hiding | None:
        if config.plan.secure is None:
            return None
        own, least = self._own, self._limits.cohort
        return Hiding(self._device, config, text, least, own.credentials, own.entropy)

    def _condition(self, config: Config) -> Condition:
        return Condition(
            rows=self._rows_of(config.model, config.features),
            idle=not self._quiet.busy,
            mains=self._own.mains(),
            celsius=self._quiet.celsius,
            last=self._known.last.get(config.plan.task, 0),
        )

    def _rows_of(self, model: str, features: tuple[str, ...]) -> int:
        wanted = features or self._studies.columns(model)
        return self._own.rows.count(model, wanted) if wanted else 0

    # ------------------------------------------------------------------ the part

    def _advance(self, part: Part, event: Event, note: Note) -> None:
        """Durable first, then act; ConflictError when the part cannot take the event."""
        after, effect = step(part, event, note)
        if after is not part:
            self._save(after)
            _log.info("round %s: %s %s", _named(after), after.state, after.detail)
        if effect is not None:
            self._act(after, effect)

    def _save(self, part: Part) -> None:
        known = noted(self._known, part)
        if known.ledger != self._known.ledger:
            self._own.sandbox.spend(known.ledger)
        self._ports.journal.save_participation(known)
        self._known = known

    def _act(self, part: Part, effect: Effect) -> None:
        try:
            _EFFECTS[effect](self, part)
        except StorageError:
            raise  # the disk may recover: the caller repeats the effect
        except ShoalError as error:
            self._refuse(part, error)

    def _refuse(self, part: Part, error: ShoalError) -> None:
        said = refusal_of(error)
        self._advance(part, Event.REFUSED, Note(self._clock(), said.reason, said.detail))

    def _say_join(self, part: Part) -> None:
        advert = self._hiding.advert if self._hiding is not None else None
        self._world.say(part.attempt, messages.Join(advert=advert))

    def _say_boxes(self, part: Part) -> None:
        if self._hiding is not None and part.secure:
            self._world.say(part.attempt, messages.Boxes(boxes=self._hiding.boxes))

    def _train(self, part: Part) -> None:
        self._say_boxes(part)
        self._train_again(part)

    def _train_again(self, part: Part) -> None:
        if self._job is not None or self._clock() < self._again_s:
            self._again_s = self._again_s or self._clock()
            return
        self._begin(Kind.TRAIN, part.attempt, lambda job: self._studies.train(job, part), part)

    def _mask(self, part: Part) -> None:
        masks = self._hiding.masks() if self._hiding is not None else []
        if masks:
            self._begin(
                Kind.MASK, part.attempt, lambda job: self._studies.mask(job, part, masks), part
            )

    def _send(self, part: Part, missing: list[int] | None = None) -> None:
        if self._handover.takes(part):
            return
        up = self._handover.up(part)
        if self._sending is None or self._sending.saved != up.saved:
            missing = missing if self._own.door is None else None  # they may be another's pieces
            self._sending = Sending(
                up.saved,
                lambda start, length: self._own.sandbox.piece(part.attempt, start, length, up.name),
                self._own.room,
                lambda chunk: self._world.say(part.attempt, messages.Piece(chunk=chunk)),
            )
        if missing or not self._sending.waits:
            self._sending.ask(missing or ())

    def _send_some(self) -> float:
        """A piece of what waits to go up; seconds until the next."""
        part = self._known.part
        if part is None or self._sending is None or not self._sending.waits:
            return float("inf")
        try:
            return PAUSE_S if self._sending.some() else float("inf")
        except StorageError as error:
            self._refuse(part, error)
        return float("inf")

    def _vote(self, part: Part) -> None:
        if self._hiding is not None and self._ending is not None:
            signature = self._hiding.vote(self._ending.ending)
            self._world.say(part.attempt, messages.Vote(signature=signature))

    def _open(self, part: Part) -> None:
        if self._hiding is None:
            self._world.say(part.attempt, messages.Refuse(reason="restarted"))
            return
        shares = self._hiding.open(self._votes)
        self._world.say(part.attempt, messages.Shares(shares=shares))

    def _say_refusal(self, part: Part) -> None:
        self._drop(part)
        self._world.say(part.attempt, messages.Refuse(reason=part.reason, detail=part.detail))

    def _keep(self, part: Part) -> None:
        self._forget()
        self._own.sandbox.end(part.attempt, part.config.plan.task, keep=True)

    def _drop(self, part: Part) -> None:
        self._forget()
        self._own.sandbox.end(part.attempt, part.config.plan.task, keep=False)

    def _forget(self) -> None:
        """What is in memory of a part that ended; its secrets first."""
        job = self._job
        if job is not None and job.kind is not Kind.MEASURE:
            job.stopped, self._job = True, None
        self._handover.forget()
        self._hiding = self._sending = self._ending = None
        self._votes, self._again_s, self._tries = {}, 0.0, 0

    # ------------------------------------------------------------------ jobs

    def _begin(self, kind: Kind, attempt: bytes, work: Callable[[Job], Any], said: Any) -> None:
        under_way = self._job
        if under_way is not None:
            if under_way.kind is not Kind.MEASURE or kind is Kind.MEASURE:
                return  # it is asked for again
            under_way.stopped = True  # measuring gives way: the controller asks again
        job = self._job = Job(kind, attempt, said)
        self._again_s = 0.0
        self._spawn(job, work)

    def _spawn(self, job: Job, work: Callable[[Job], Any]) -> None:
        self._ports.spawn(lambda: self._world.post(self._studies.tried(job, work)))

    def _let_go(self, attempt: bytes) -> None:
        """A round that it has no part in is over: what is under way for it ends."""
        for job in (self._job, self._checking):
            if job is not None and job.attempt == attempt:
                job.stopped = True

    def _worked(self, done: Done) -> None:
        """Training or masking ended: with a contribution, with numbers, or not at all."""
        part, made = self._known.part, done.result
        if part is None or part.attempt != done.job.attempt or part.state not in LIVE:
            return
        if isinstance(done.error, LinkError):
            self._tries += 1
            pause = min(RETRY_MAX_S, RETRY_S * 2 ** min(self._tries - 1, 10))
            self._again_s = self._clock() + pause * self._ports.random.random()
            return
        if done.error is not None:
            self._refuse(part, done.error)
            return
        assert isinstance(made, Made)
        event = Event.HIDDEN if done.job.kind is Kind.MASK else Event.LEARNT
        if made.contribution is None:
            event = Event.ENCODED
        self._advance(part, event, Note(self._clock(), contribution=made.contribution))

    def _handed(self, done: Done) -> None:
        """Its gateway has the contribution, or not; or it has made its site's sum."""
        part = self._known.part
        if part is not None and self._handover.ended(part, done):
            self._send(part)

    def _asked_to_measure(self, attempt: bytes, said: messages.Measure) -> None:
        answer = self._measuring.answered(attempt, said)
        if answer is not None:
            self._world.say(attempt, answer)
            return
        self._begin(Kind.MEASURE, attempt, lambda job: self._measuring.work(job, said), said)

    def _has_measured(self, done: Done) -> None:
        attempt, part = done.job.attempt, self._known.part
        if part is None or part.attempt != attempt or part.state not in LIVE:
            self._own.sandbox.end(attempt, "", keep=False)
        answer = self._measuring.ended(done)
        if answer is not None:
            self._world.say(attempt, answer)


_EFFECTS: dict[Effect, Callable[[Learning, Part], None]] = {
    Effect.JOIN: Learning._say_join,
    Effect.TRAIN: Learning._train,
    Effect.SHARE: Learning._say_boxes,
    Effect.MASK: Learning._mask,
    Effect.SEND: Learning._send,
    Effect.VOTE: Learning._vote,
    Effect.OPEN: Learning._open,
    Effect.REFUSE: Learning._say_refusal,
    Effect.KEEP: Learning._keep,
    Effect.DROP: Learning._drop,
}


def _check_terms(config: Config) -> None:
    """RefusedError for terms of a strategy that this agent does not know."""
    terms = config.plan.learning.terms
    if unknown := sorted(set(terms) - {"mu", "shift"}):
        hint = "update the agent"
        raise RefusedError(f"terms {', '.join(unknown)} are unknown here", "other-terms", hint)
    if terms.get("shift") and config.control is None:
        raise RefusedError("SCAFFOLD without the server's control variate", "other-terms")


def _rounded(count: int) -> int:
    return 1 << (count.bit_length() - 1) if count else 0


def _named(part: Part) -> str:
    return f"{part.config.plan.round} of {part.config.plan.task}"
