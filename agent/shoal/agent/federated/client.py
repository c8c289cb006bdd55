"""Federated client of a device: journals its part in rounds, and runs one session at a time.

The table of states is in machine.py, an attempt's effects in session.py. A round's files are
fetched, trained on and evaluated in a sandbox by a separate process; no slot, loader or assignment
is within its reach, so nothing of a round can be served.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from shoal import wire
from shoal.agent.federated.eligibility import (
    Condition,
    IdleMonitor,
    check_graph,
    check_terms,
    judge,
    refusal,
)
from shoal.agent.federated.machine import (
    LIVE,
    Effect,
    Event,
    Note,
    busy_with,
    event_of,
    on_start,
    step,
    updated,
)
from shoal.agent.federated.ports import FederatedPorts
from shoal.agent.federated.round_jobs import Evaluation, JobKind, RoundJob, RoundJobs
from shoal.agent.federated.secagg import SecAggSession
from shoal.agent.federated.session import RoundSession
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.faults import Fault
from shoal.agent.host.jobs import Submit
from shoal.agent.installed.record import Participation, RoundRecord, RoundState
from shoal.agent.serving.served_model import ServedModel
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
from shoal.signers import Seen

_log = logging.getLogger(__name__)


class Callbacks(NamedTuple):
    """The agent around the client.

    answer     publishes an answer to the controller; whether it was sent
    post       runs a function on the control loop
    serving    the served models, by name
    throttled  whether the agent has throttled itself
    seen       versions of release metadata accepted so far
    """

    answer: Callable[[bytes, messages.DeviceMessage], bool]
    post: Submit
    fault: Callable[[Fault], None]
    serving: Mapping[str, ServedModel]
    throttled: Callable[[], bool]
    seen: Callable[[], Seen]


class RoundClient:
    """One device in federated rounds. All but the jobs runs on the control loop."""

    def __init__(
        self, device: str, ports: FederatedPorts, clock: DeviceClock, callbacks: Callbacks
    ) -> None:
        self._device, self._ports, self._limits = device, ports, ports.limits
        self._clock, self._callbacks = clock, callbacks
        self._idle = IdleMonitor(
            ports.limits, ports.quiet_hz, serving=callbacks.serving, load=ports.load,
            throttled=callbacks.throttled, monotonic=ports.monotonic,
        )  # fmt: skip
        self._jobs = RoundJobs(
            ports, callbacks.serving, callbacks.seen, clock,
            pause_reason=lambda: self._idle.pause_reason, post=callbacks.post,
        )  # fmt: skip
        self._evaluation = Evaluation(
            self._jobs, ports.limits, condition=self._condition, finished=self._evaluated,
            answer=callbacks.answer,
        )  # fmt: skip
        self._known = Participation()
        self._session: RoundSession | None = None

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Resume the round that the journal holds."""
        if self._ports.rows.lost:
            self._callbacks.fault(Fault("rows-damaged", self._ports.rows.lost))
        self._known = self._restored()
        record = self._known.part
        self._ports.sandbox.clean(record.attempt if record else b"")
        if record is None:
            return
        self._session = self._new_session(record, None)
        if record.state in LIVE:
            self._advance(record, *on_start(record))
        elif record.state is RoundState.OVER:
            self._act(record, Effect.KEEP if record.keeps else Effect.DISCARD)

    def _restored(self) -> Participation:
        """From the journal; losing it gives no new privacy budget."""
        known, spent = self._ports.journal.participation(), self._ports.sandbox.spent()
        if spent.rho > known.ledger.rho:
            return msgspec.structs.replace(known, ledger=spent)
        return known

    def tick(self) -> float:
        """Do what is due; seconds until the next call."""
        self._idle.sample()
        self._flush_rows()
        record = self._known.part
        if (
            record is not None
            and record.state is not RoundState.OVER
            and self._clock() > record.config.plan.deadline_s
        ):
            detail = "the round's deadline passed"
            self._advance(record, Event.EXPIRED, Note(self._clock(), "late", detail))
        return self._session.tick() if self._session is not None else float("inf")

    def _flush_rows(self) -> None:
        """Write buffered rows; when the disk refuses, they stay in memory."""
        try:
            if self._ports.rows.due():
                self._ports.rows.flush()
        except StorageError as error:
            self._callbacks.fault(Fault("disk-full", str(error)))

    def stop(self) -> None:
        """Cancel the jobs; the next start resumes from the journal."""
        self._jobs.cancel()
        self._ports.rows.flush()

    @property
    def status_line(self) -> str:
        """What it does now, for a person; "" for nothing."""
        job = self._jobs.current
        if job is not None and job.kind is JobKind.EVALUATE:
            return f"evaluates round {job.label}"
        record = self._known.part
        if record is None or record.state not in LIVE:
            return ""
        paused = f", paused: {self._idle.pause_reason}" if job and self._idle.pause_reason else ""
        return f"takes part in round {_title(record)}: {record.state.lower()}{paused}"

    def facts(self) -> dict[str, Any]:
        """Facts for the inventory: rows by model, rounded down to a power of two; the smallest
        cohort that the device accepts, so that it is not invited to smaller ones."""
        rows = {
            model: _rounded(self._rows_of(model, ()))
            for model, served in self._callbacks.serving.items()
            if served.engine is not None
        }
        mains = self._ports.mains()
        limits = self._limits
        return {"enabled": limits.enabled, "rows": rows, "mains": mains, "cohort": limits.cohort}

    # ------------------------------------------------------------------ messages

    def on_call(self, call: wire.RoundCall) -> None:
        """Process a message of the controller; one out of order changes nothing."""
        message, attempt, record = call.said, call.attempt, self._known.part
        if isinstance(message, messages.Measure):
            self._evaluation.on_request(attempt, message)
        elif record is not None and record.attempt == attempt:
            self._on_session_call(record, message)
        elif isinstance(message, messages.Invite):
            self._verify(attempt, message)
        elif isinstance(message, messages.Dismiss):
            self._jobs.cancel(attempt)

    def _on_session_call(self, record: RoundRecord, call: messages.ControllerMessage) -> None:
        event = event_of(call)
        if event is None:
            return
        try:
            if self._session is not None and record.state in LIVE:
                self._session.receive(call)
        except ShoalError as error:
            self._refuse(record, error)
            return
        reason = call.reason if isinstance(call, messages.Dismiss) else ""
        try:
            self._advance(record, event, Note(self._clock(), reason))
        except ConflictError as error:
            _log.debug("%s", error)

    # ------------------------------------------------------------------ invitations

    def _verify(self, attempt: bytes, invite: messages.Invite) -> None:
        self._jobs.begin_verification(
            attempt, invite.signed, lambda job: self._on_verified(job, invite)
        )

    def _on_verified(self, job: RoundJob, invite: messages.Invite) -> None:
        attempt = job.attempt
        if isinstance(job.error, LinkError):
            _log.info("invitation not verified yet: %s", job.error)  # it is sent again
            return
        try:
            if job.error is not None:
                raise job.error
            self._join(attempt, job.value, invite)
        except ShoalError as error:
            if isinstance(error, TrustError) and not isinstance(error, RefusedError):
                detail = f"an invitation to a round: {error}"
                self._callbacks.fault(Fault(error.code, detail, "critical"))
            self._callbacks.answer(attempt, refusal(error))

    def _join(self, attempt: bytes, config: Config, invite: messages.Invite) -> None:
        """Take part, if the limits allow it; an unfinished older round of the task ends."""
        now, before, plan = self._clock(), self._known.part, config.plan
        if config.purpose != "train" or plan.attempt != attempt:
            raise RefusedError("the config is not that of this invitation", "misdirected")
        if busy_with(before, config, now):
            raise RefusedError("it takes part in a round of another task", "in-another-round")
        check_graph(config.graph.sha256, self._limits)
        check_terms(config)
        size, ledger = config.theta.length // 4, self._known.ledger
        spent = judge(plan, size, self._limits, self._condition(config), ledger, now)
        if before is not None and before.state is not RoundState.OVER:
            self._advance(before, Event.EXPIRED, Note(now, "superseded"))
        record = RoundRecord(
            attempt=attempt, config=config, urls=invite.urls, since_s=now, spent=spent
        )
        secagg = self._secagg_session(config, text_of(invite.signed))
        self._save(record)
        self._session = self._new_session(record, secagg)
        self._act(record, Effect.JOIN)

    def _secagg_session(self, config: Config, text: str) -> SecAggSession | None:
        if config.plan.secure is None:
            return None
        ports, least = self._ports, self._limits.cohort
        return SecAggSession(self._device, config, text, least, ports.credentials, ports.entropy)

    def _new_session(self, record: RoundRecord, secagg: SecAggSession | None) -> RoundSession:
        attempt = record.attempt
        return RoundSession(
            self._device,
            record,
            self._ports,
            self._jobs,
            secagg=secagg,
            clock=self._clock,
            answer=lambda answer: self._callbacks.answer(attempt, answer),
            fault=self._callbacks.fault,
            event=lambda event, note: self._on_session_event(attempt, event, note),
        )

    def _condition(self, config: Config) -> Condition:
        return Condition(
            rows=self._rows_of(config.model, config.features),
            idle=not self._idle.busy,
            mains=self._ports.mains(),
            celsius=self._idle.celsius,
            last=self._known.last.get(config.plan.task, 0),
        )

    def _rows_of(self, model: str, features: tuple[str, ...]) -> int:
        wanted = features or self._jobs.features(model)
        return self._ports.rows.count(model, wanted) if wanted else 0

    # ------------------------------------------------------------------ transitions

    def _advance(self, record: RoundRecord, event: Event, note: Note) -> None:
        """Journal the transition, then perform its effect; ConflictError outside the table."""
        after, effect = step(record, event, note)
        if after is not record:
            self._save(after)
            _log.info("round %s: %s %s", _title(after), after.state, after.detail)
        if effect is not None:
            self._act(after, effect)

    def _save(self, record: RoundRecord) -> None:
        known = updated(self._known, record)
        if known.ledger != self._known.ledger:
            self._ports.sandbox.spend(known.ledger)
        self._ports.journal.save_participation(known)
        self._known = known

    def _act(self, record: RoundRecord, effect: Effect) -> None:
        assert self._session is not None
        try:
            self._session.act(record, effect)
        except StorageError:
            raise  # temporary: the controller asks again
        except ShoalError as error:
            self._refuse(record, error)
        if record.state is RoundState.OVER:
            self._session = None

    def _on_session_event(self, attempt: bytes, event: Event, note: Note) -> None:
        """A job of the session ended, or the session refuses the round."""
        record = self._known.part
        if record is not None and record.attempt == attempt and record.state in LIVE:
            self._advance(record, event, note)

    def _refuse(self, record: RoundRecord, error: ShoalError) -> None:
        answer = refusal(error)
        self._advance(record, Event.REFUSED, Note(self._clock(), answer.reason, answer.detail))

    def _evaluated(self, attempt: bytes) -> None:
        """Delete an evaluation's files, unless the device trains in the same attempt."""
        record = self._known.part
        if record is None or record.attempt != attempt or record.state not in LIVE:
            self._ports.sandbox.end(attempt, "", keep=False)


def _rounded(count: int) -> int:
    return 1 << (count.bit_length() - 1) if count else 0


def _title(record: RoundRecord) -> str:
    return f"{record.config.plan.round} of {record.config.plan.task}"
