"""Work of a round off the control loop: verify a config, fetch, train, mask, evaluate, upload.

One job and one verification run at a time. Each job can be repeated, and ends early when it was
cancelled.
"""

import enum
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from shoal.agent.federated.ports import FederatedPorts
from shoal.agent.federated.secagg import Mask
from shoal.agent.federated.trainer import TrainingJob, TrainingResult
from shoal.agent.host.clock import DeviceClock
from shoal.agent.installed.round_record import RoundRecord
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import LinkError, ModelError, RefusedError, ShoalError, TrustError
from shoal.federated.config import Config, verify_config

_log = logging.getLogger(__name__)


class JobKind(enum.Enum):
    VERIFY = enum.auto()
    TRAIN = enum.auto()
    MASK = enum.auto()
    EVALUATE = enum.auto()
    HAND_OVER = enum.auto()  # the contribution to the site's gateway
    SUM_SITE = enum.auto()  # the site's contributions, on its gateway


class Job:
    """A running job. label: for the status line."""

    def __init__(self, kind: JobKind, attempt: bytes, done: "Callable[[JobResult], None]") -> None:
        self.kind, self.attempt, self.done = kind, attempt, done
        self.cancelled, self.label = False, ""


class JobResult(NamedTuple):
    """An ended job with its value or its error."""

    job: Job
    value: Any = None
    error: ShoalError | None = None


class RoundJobs:
    """The jobs of one device's rounds.

    serving       by model; floors: metadata versions accepted so far
    pause_reason  why training must pause, "" to go on
    post          passes a job's result to `finished`, on the control loop
    """

    def __init__(
        self,
        ports: FederatedPorts,
        serving: Mapping[str, ServedModel],
        floors: Callable[[], Mapping[str, float]],
        clock: DeviceClock,
        *,
        pause_reason: Callable[[], str],
        post: Callable[[JobResult], None],
    ) -> None:
        self._ports, self._serving, self._floors = ports, serving, floors
        self._clock, self._pause_reason = clock, pause_reason
        self._post = post
        self.current: Job | None = None
        self._verification: Job | None = None

    # ------------------------------------------------------------------ running

    def begin(
        self,
        kind: JobKind,
        attempt: bytes,
        work: Callable[[Job], Any],
        done: Callable[[JobResult], None],
    ) -> bool:
        """Start a job unless one is running; an evaluation is cancelled for any other kind.

        work   off the control loop; done: on it, unless the job was cancelled
        """
        running = self.current
        if running is not None:
            if running.kind is not JobKind.EVALUATE or kind is JobKind.EVALUATE:
                return False
            running.cancelled = True  # the controller asks for it again
        self.current = Job(kind, attempt, done)
        self._run(self.current, work)
        return True

    def begin_verification(
        self, attempt: bytes, signed: bytes, done: Callable[[JobResult], None]
    ) -> None:
        """Verify an invitation's config, unless that is being done."""
        if self._verification is None or self._verification.attempt != attempt:
            self._verification = Job(JobKind.VERIFY, attempt, done)
            self._run(self._verification, lambda job: self.verify(job, signed))

    def finished(self, result: JobResult) -> None:
        """Take the result of an ended job, on the control loop."""
        if result.job is self.current:
            self.current = None
        if result.job is self._verification:
            self._verification = None
        if not result.job.cancelled:
            result.job.done(result)

    def cancel(self, attempt: bytes | None = None) -> None:
        """Cancel the jobs of an attempt, or all."""
        for job in (self.current, self._verification):
            if job is not None and attempt in (None, job.attempt):
                job.cancelled = True

    def discard(self) -> None:
        """Cancel the current job unless it is an evaluation, and accept another at once."""
        if self.current is not None and self.current.kind is not JobKind.EVALUATE:
            self.current.cancelled, self.current = True, None

    def _run(self, job: Job, work: Callable[[Job], Any]) -> None:
        self._ports.spawn(lambda: self._post(_result(job, work)))

    # ------------------------------------------------------------------ in a job

    def verify(self, job: Job, signed: bytes) -> Config:
        """The config, if the role `rounds` signed it; LinkError: its keys cannot be fetched."""
        now, images = self._clock(), self._ports.images
        try:
            return verify_config(signed, images.targets, now)
        except TrustError:
            if job.cancelled:
                raise LinkError("the invitation was cancelled") from None
        images.refresh(now, dict(self._floors()))  # a new key, or the first round ever
        return verify_config(signed, images.targets, now)

    def train(self, job: Job, record: RoundRecord) -> TrainingResult:
        """Fetch the round's files and train."""
        config = record.config
        self._ports.sandbox.fetch(record.attempt, config, record.urls, lambda: job.cancelled)
        return self._trainer(job, "train", config)

    def mask(self, job: Job, record: RoundRecord, masks: list[Mask]) -> TrainingResult:
        """Add the masks of secure aggregation to the trained update."""
        return self._trainer(job, "mask", record.config, masks)

    def evaluate(self, job: Job, config: Config, urls: dict[str, str]) -> TrainingResult:
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
        job: Job,
        kind: Literal["train", "mask", "measure"],
        config: Config,
        masks: list[Mask] = [],  # noqa: B006 (never written to)
    ) -> TrainingResult:
        features = config.features or self.features(config.model)
        if not features:
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


def _result(job: Job, work: Callable[[Job], Any]) -> JobResult:
    """Run a job; never raises."""
    try:
        return JobResult(job, work(job))
    except ShoalError as error:
        return JobResult(job, error=error)
    except Exception as error:  # noqa: BLE001 a bug costs the round, not the device
        _log.exception("%s of a round", job.kind.name)
        detail = f"{type(error).__name__}: {error}"
        return JobResult(job, error=RefusedError(detail, "agent-bug"))
