"""Work of a round off the control loop: verify a config, fetch, train, mask, evaluate, upload.

One job and one verification run at a time. Each job can be repeated, and ends early when it was
cancelled. An evaluation of a round's model on this device's rows is decided, run once, and answered
again.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Literal

from shoal.agent.federated.eligibility import Condition, check_graph, judge_evaluation, refusal
from shoal.agent.federated.ports import FederatedPorts
from shoal.agent.federated.secagg import Mask
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.host.clock import DeviceClock
from shoal.agent.host.jobs import Job, Submit, Worker
from shoal.agent.host.round_limits import Limits
from shoal.agent.installed.record import RoundRecord
from shoal.agent.serving.engine import require_rows
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import LinkError, ModelError, RefusedError, TrustError
from shoal.federated import messages
from shoal.federated.config import Config, verify_config
from shoal.signers import Seen


class JobKind(enum.Enum):
    VERIFY = enum.auto()
    TRAIN = enum.auto()
    MASK = enum.auto()
    EVALUATE = enum.auto()
    HAND_OVER = enum.auto()  # the contribution to the site's gateway
    SUM_SITE = enum.auto()  # the site's contributions, on its gateway


class RoundJob(Job):
    """A job of a round. label: for the status line."""

    def __init__(self, kind: JobKind, attempt: bytes) -> None:
        super().__init__(f"{kind.name} of a round")
        self.kind, self.attempt, self.label = kind, attempt, ""


class RoundJobs:
    """The jobs of one device's rounds.

    serving       by model; seen: metadata versions accepted so far
    pause_reason  why training must pause, "" to go on
    post          runs a function on the control loop
    """

    def __init__(
        self,
        ports: FederatedPorts,
        serving: Mapping[str, ServedModel],
        seen: Callable[[], Seen],
        clock: DeviceClock,
        *,
        pause_reason: Callable[[], str],
        post: Submit,
    ) -> None:
        self._ports, self._serving, self._seen = ports, serving, seen
        self._clock, self._pause_reason = clock, pause_reason
        self._worker = Worker[RoundJob](ports.spawn, post)
        self._verifier = Worker[RoundJob](ports.spawn, post)

    # ------------------------------------------------------------------ running

    @property
    def current(self) -> RoundJob | None:
        """The running job; verifications do not count."""
        return self._worker.current

    def begin(
        self,
        kind: JobKind,
        attempt: bytes,
        work: Callable[[RoundJob], Any],
        done: Callable[[RoundJob], None],
    ) -> bool:
        """Start a job unless one is running; an evaluation is cancelled for any other kind.

        work   off the control loop; done: on it, unless the job was cancelled
        """
        running = self.current
        if running is not None:
            if running.kind is not JobKind.EVALUATE or kind is JobKind.EVALUATE:
                return False
            running.cancelled = True  # the controller asks for it again
        self._worker.start(RoundJob(kind, attempt), work, _unless_cancelled(done))
        return True

    def begin_verification(
        self, attempt: bytes, signed: bytes, done: Callable[[RoundJob], None]
    ) -> None:
        """Verify an invitation's config, unless that is being done."""
        running = self._verifier.current
        if running is None or running.attempt != attempt:
            job = RoundJob(JobKind.VERIFY, attempt)
            self._verifier.start(job, lambda job: self.verify(job, signed), _unless_cancelled(done))

    def cancel(self, attempt: bytes | None = None) -> None:
        """Cancel the jobs of an attempt, or all."""
        for worker in (self._worker, self._verifier):
            if worker.current is not None and attempt in (None, worker.current.attempt):
                worker.cancel()

    def discard(self) -> None:
        """Cancel the current job unless it is an evaluation, and accept another at once."""
        if self.current is not None and self.current.kind is not JobKind.EVALUATE:
            self._worker.cancel()
            self._worker.current = None

    # ------------------------------------------------------------------ in a job

    def verify(self, job: RoundJob, signed: bytes) -> Config:
        """The config, if the role `rounds` signed it; LinkError: its keys cannot be fetched."""
        now, images = self._clock(), self._ports.images
        try:
            return verify_config(signed, images.targets, now)
        except TrustError:
            if job.cancelled:
                raise LinkError("the invitation was cancelled") from None
        images.refresh(now, self._seen())  # a new key, or the first round ever
        return verify_config(signed, images.targets, now)

    def train(self, job: RoundJob, record: RoundRecord) -> TrainingResult:
        """Fetch the round's files and train."""
        config = record.config
        self._ports.sandbox.fetch(record.attempt, config, record.urls, lambda: job.cancelled)
        return self._trainer(job, "train", config)

    def mask(self, job: RoundJob, record: RoundRecord, masks: list[Mask]) -> TrainingResult:
        """Add the masks of secure aggregation to the trained update."""
        return self._trainer(job, "mask", record.config, masks)

    def evaluate(self, job: RoundJob, config: Config, urls: dict[str, str]) -> TrainingResult:
        """Fetch the round's files and evaluate its model."""
        self._ports.sandbox.fetch(job.attempt, config, urls, lambda: job.cancelled)
        return self._trainer(job, "measure", config)

    def features(self, model: str) -> tuple[str, ...]:
        """Features of the serving release, in order; empty when none serves."""
        served = self._serving.get(model)
        engine = served.engine if served else None
        return tuple(f.name for f in engine.manifest.features) if engine else ()

    def _labels(self, model: str) -> tuple[str, ...]:
        served = self._serving.get(model)
        engine = served.engine if served else None
        return tuple(engine.manifest.labels) if engine else ()

    def _trainer(
        self,
        job: RoundJob,
        kind: Literal["train", "mask", "measure"],
        config: Config,
        masks: list[Mask] = [],  # noqa: B006 (never written to)
    ) -> TrainingResult:
        features = config.features or self.features(config.model)
        if not features:
            served = self._serving.get(config.model)
            if served is not None and served.engine is not None:
                require_rows(served.engine.manifest)
            raise ModelError(f"no release of {config.model!r} serves here", "roll one out first")
        work = TrainingJob(
            kind=kind,
            config=config,
            labels=config.labels or self._labels(config.model),
            features=features,
            seed=self._ports.entropy(32),
            masks=masks,
        )

        def cancelled() -> bool:
            return job.cancelled or self._clock() > config.plan.deadline_s

        return self._ports.trainer.run(job.attempt, work, self._pause_reason, cancelled)


def _unless_cancelled(done: Callable[[RoundJob], None]) -> Callable[[RoundJob], None]:
    return lambda job: None if job.cancelled else done(job)


class Evaluation:
    """Evaluations that the controller asks for. The last answer is kept in memory.

    condition   of the device, for a config
    finished    called with the attempt when an evaluation ended, to delete its files
    """

    def __init__(
        self,
        jobs: RoundJobs,
        limits: Limits,
        *,
        condition: Callable[[Config], Condition],
        finished: Callable[[bytes], None],
        answer: Callable[[bytes, messages.DeviceMessage], object],
    ) -> None:
        self._jobs, self._limits, self._condition = jobs, limits, condition
        self._finished, self._answer = finished, answer
        self._last: tuple[bytes, bytes, messages.DeviceMessage] | None = None

    def on_request(self, attempt: bytes, request: messages.Measure) -> None:
        """Answer a repeated request at once; else start a job unless another runs."""
        if self._last is not None and self._last[:2] == (attempt, request.signed):
            self._answer(attempt, self._last[2])
            return
        self._jobs.begin(
            JobKind.EVALUATE,
            attempt,
            lambda job: self._run(job, request),
            lambda job: self._on_result(job, request),
        )

    def _run(self, job: RoundJob, request: messages.Measure) -> TrainingResult:
        """Verify, decide and evaluate; off the control loop."""
        config = self._jobs.verify(job, request.signed)
        plan = config.plan
        job.label = f"{plan.round} of {plan.task}"
        if config.purpose != "evaluate" or plan.attempt != job.attempt:
            raise RefusedError("the config is not that of this request", "misdirected")
        check_graph(config.graph.sha256, self._limits)
        judge_evaluation(self._limits, self._condition(config))
        return self._jobs.evaluate(job, config, request.urls)

    def _on_result(self, job: RoundJob, request: messages.Measure) -> None:
        """Answer, unless the network failed: then the controller asks again."""
        self._finished(job.attempt)
        if isinstance(job.error, LinkError):
            return
        if job.error is not None:
            answer: messages.DeviceMessage = refusal(job.error)
        else:
            answer = job.value.measured
        self._last = job.attempt, request.signed, answer
        self._answer(job.attempt, answer)
