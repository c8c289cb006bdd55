"""One attempt of one round on this device: secure aggregation, training, upload, retries.

All of it is in memory and dropped when the round ends. The journal is the client's: it saves a
transition, then asks the session for the effect.
"""

from collections.abc import Callable

from shoal.agent.federated.eligibility import refusal
from shoal.agent.federated.machine import Effect, Event, Note
from shoal.agent.federated.ports import FederatedPorts
from shoal.agent.federated.round_jobs import JobKind, RoundJob, RoundJobs
from shoal.agent.federated.secagg import SecAggSession
from shoal.agent.federated.trainer import TrainingResult
from shoal.agent.federated.upload import Upload
from shoal.agent.host.faults import Fault
from shoal.agent.installed.record import RoundRecord, RoundState
from shoal.errors import LinkError, ShoalError, StorageError
from shoal.federated import messages
from shoal.federated.secure import Ending

#: Seconds: first and longest pause before a job that lost the network is started again.
RETRY_S, RETRY_MAX_S = 2.0, 60.0


class RoundSession:
    """Performs the effects of one attempt.

    secagg   None without secure aggregation, and after a restart: its secrets are not on the disk
    answer   publishes an answer to the controller; whether it was sent
    event    moves the attempt on: `client.RoundClient` journals it and calls `act`
    """

    def __init__(
        self,
        device: str,
        record: RoundRecord,
        ports: FederatedPorts,
        jobs: RoundJobs,
        *,
        secagg: SecAggSession | None,
        clock: Callable[[], float],
        answer: Callable[[messages.DeviceMessage], bool],
        fault: Callable[[Fault], None],
        event: Callable[[Event, Note], None],
    ) -> None:
        self._record, self._sandbox, self._jobs = record, ports.sandbox, jobs
        self._secagg, self._clock, self._random = secagg, clock, ports.random
        self._answer, self._event = answer, event
        self._upload = Upload(
            device, ports, clock, jobs, record=lambda: self._record, answer=answer, fault=fault
        )
        self._missing: list[int] = []
        self._ending: Ending | None = None
        self._votes: dict[str, bytes] = {}
        self._retry_s, self._tries = 0.0, 0

    def receive(self, call: messages.ControllerMessage) -> None:
        """Keep the content of a call; ShoalError: this device refuses the round."""
        if isinstance(call, messages.Start):
            if self._secagg is not None:
                self._secagg.share(call.roster)
            self._upload.set_route(call.way or None)
        elif isinstance(call, messages.Deal) and self._secagg is not None:
            self._secagg.receive(call.boxes)
        elif isinstance(call, messages.Resend) and self._record.state is RoundState.SENT:
            self._missing = call.missing
        elif isinstance(call, messages.Close):
            self._ending = call.ending
        elif isinstance(call, messages.Pass):
            self._votes = call.votes

    def act(self, record: RoundRecord, effect: Effect) -> None:
        """Perform the effect of a journaled record. Repeatable; ShoalError: refuse the round."""
        self._record = record
        _EFFECTS[effect](self)

    def tick(self) -> float:
        """Retry what waits, and send a piece; seconds until the next call is due."""
        if self._jobs.current is None:
            if self._record.state is RoundState.TRAINING and self._retry_s:
                self._train()
            elif self._record.state is RoundState.SENT and self._upload.waiting:
                self._upload.start()
        try:
            return self._upload.send_next()
        except StorageError as error:
            self._refuse(error)
        return float("inf")

    # ------------------------------------------------------------------ effects

    def _join(self) -> None:
        advert = self._secagg.advert if self._secagg is not None else None
        self._answer(messages.Join(advert=advert))

    def _send_shares(self) -> None:
        if self._secagg is not None:
            self._answer(messages.Boxes(boxes=self._secagg.boxes))

    def _share_and_train(self) -> None:
        self._send_shares()
        self._train()

    def _train(self) -> None:
        if self._jobs.current is not None or self._clock() < self._retry_s:
            self._retry_s = self._retry_s or self._clock()
            return
        record = self._record
        self._begin(JobKind.TRAIN, lambda job: self._jobs.train(job, record))

    def _mask(self) -> None:
        record, masks = self._record, self._secagg.masks() if self._secagg is not None else []
        if masks:
            self._begin(JobKind.MASK, lambda job: self._jobs.mask(job, record, masks))

    def _send(self) -> None:
        missing, self._missing = self._missing, []
        self._upload.start(missing)

    def _vote(self) -> None:
        if self._secagg is not None and self._ending is not None:
            self._answer(messages.Vote(signature=self._secagg.vote(self._ending)))

    def _open(self) -> None:
        if self._secagg is None:
            self._answer(messages.Refuse(reason="restarted"))
        else:
            self._answer(messages.Shares(shares=self._secagg.open(self._votes)))

    def _send_refusal(self) -> None:
        self._discard()
        self._answer(messages.Refuse(reason=self._record.reason, detail=self._record.detail))

    def _keep(self) -> None:
        self._close(keep=True)

    def _discard(self) -> None:
        self._close(keep=False)

    def _close(self, *, keep: bool) -> None:
        """Forget the secrets, cancel the job, delete the files; keep: those for the next round."""
        self._jobs.discard()
        self._upload.close()
        self._secagg = self._ending = None
        self._sandbox.end(self._record.attempt, self._record.config.plan.task, keep=keep)

    # ------------------------------------------------------------------ jobs

    def _begin(self, kind: JobKind, work: Callable[[RoundJob], TrainingResult]) -> None:
        if self._jobs.begin(kind, self._record.attempt, work, self._on_trained):
            self._retry_s = 0.0

    def _on_trained(self, job: RoundJob) -> None:
        """Training or masking ended: with a contribution, with unmasked numbers, or in an error."""
        if isinstance(job.error, LinkError):
            self._tries += 1
            pause = min(RETRY_MAX_S, RETRY_S * 2 ** min(self._tries - 1, 10))
            self._retry_s = self._clock() + pause * self._random.random()
            return
        if job.error is not None:
            self._refuse(job.error)
            return
        saved = job.value.contribution
        event = Event.MASKED if job.kind is JobKind.MASK else Event.TRAINED
        if saved is None:
            event = Event.ENCODED
        self._event(event, Note(self._clock(), contribution=saved))

    def _refuse(self, error: ShoalError) -> None:
        answer = refusal(error)
        self._event(Event.REFUSED, Note(self._clock(), answer.reason, answer.detail))


_EFFECTS: dict[Effect, Callable[[RoundSession], None]] = {
    Effect.JOIN: RoundSession._join,
    Effect.TRAIN: RoundSession._share_and_train,
    Effect.SEND_SHARES: RoundSession._send_shares,
    Effect.MASK: RoundSession._mask,
    Effect.UPLOAD: RoundSession._send,
    Effect.VOTE: RoundSession._vote,
    Effect.OPEN: RoundSession._open,
    Effect.REFUSE: RoundSession._send_refusal,
    Effect.KEEP: RoundSession._keep,
    Effect.DISCARD: RoundSession._discard,
}
