"""What is done for a round off the control loop: verify, fetch, train, mask, measure.

Each is repeatable, and ends early when its job was stopped.
"""

import enum
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.agent.federated.ports import LearningPorts, Made, Work
from shoal.agent.federated.secagg import Mask
from shoal.agent.host.clock import DeviceClock
from shoal.agent.installed.round_record import Part
from shoal.agent.serving.served_model import Serving
from shoal.errors import LinkError, ModelError, RefusedError, ShoalError, TrustError
from shoal.federated.config import Config, verify_config

if TYPE_CHECKING:
    from shoal.agent.federated.client import World

_log = logging.getLogger(__name__)


class Kind(enum.Enum):
    """Of a job."""

    CHECK = enum.auto()
    TRAIN = enum.auto()
    MASK = enum.auto()
    MEASURE = enum.auto()
    HAND = enum.auto()  # the contribution over to the gateway
    SUM = enum.auto()  # a site's contributions


class Job:
    """One piece of work under way. said: what it is an answer to."""

    def __init__(self, kind: Kind, attempt: bytes, said: Any) -> None:
        self.kind, self.attempt, self.said = kind, attempt, said
        self.stopped, self.label = False, ""


class Done(NamedTuple):
    """A job that ended, with what came of it or with what was wrong."""

    job: Job
    result: Any = None
    error: ShoalError | None = None


class Studies:
    """hold: why training must rest now, "" to go on."""

    def __init__(
        self, own: LearningPorts, world: "World", clock: DeviceClock, hold: Callable[[], str]
    ) -> None:
        self._own, self._world, self._clock, self._hold = own, world, clock, hold

    def tried(self, job: Job, work: Callable[[Job], Any]) -> Done:
        """The end of a job; never raises."""
        try:
            return Done(job, work(job))
        except ShoalError as error:
            return Done(job, error=error)
        except Exception as error:  # noqa: BLE001 a bug costs the round, not the device
            _log.exception("%s of a round", job.kind.name)
            said = f"{type(error).__name__}: {error}"
            return Done(job, error=RefusedError(said, "agent-bug"))

    def check(self, job: Job, signed: bytes) -> Config:
        """The config, if the role `rounds` signed it; LinkError when that cannot be found out."""
        now, images = self._clock(), self._own.images
        try:
            return verify_config(signed, images.targets, now)
        except TrustError:
            if job.stopped:
                raise LinkError("the invitation was taken back") from None
        images.refresh(now, dict(self._world.floors()))  # a new key, or the first round of all
        return verify_config(signed, images.targets, now)

    def train(self, job: Job, part: Part) -> Made:
        """Fetch and learn."""
        config = part.config
        self._own.sandbox.fetch(part.attempt, config, part.urls, lambda: job.stopped)
        return self._run(job, self._work("train", config))

    def mask(self, job: Job, part: Part, masks: list[Mask]) -> Made:
        return self._run(job, self._work("mask", part.config, masks))

    def measure(self, job: Job, config: Config, urls: dict[str, str]) -> Made:
        """Fetch and measure."""
        self._own.sandbox.fetch(job.attempt, config, urls, lambda: job.stopped)
        return self._run(job, self._work("measure", config))

    def columns(self, model: str) -> tuple[str, ...]:
        """Features of the release that serves, in order; empty when none does."""
        return _features(self._world.serving, model)

    def _run(self, job: Job, work: Work) -> Made:
        until_s = work.config.plan.deadline_s

        def stop() -> bool:
            return job.stopped or self._clock() > until_s

        return self._own.trainer.run(job.attempt, work, self._hold, stop)

    def _work(self, kind: Any, config: Config, masks: list[Mask] | None = None) -> Work:
        features = config.features or self.columns(config.model)
        if not features:
            raise ModelError(f"no release of {config.model!r} serves here", "roll one out first")
        return Work(
            kind=kind,
            config=config,
            labels=config.labels or _labels(self._world.serving, config.model),
            features=features,
            seed=self._own.entropy(32),
            masks=masks or [],
        )


def _features(serving: Mapping[str, Serving], model: str) -> tuple[str, ...]:
    served = serving.get(model)
    engine = served.engine if served else None
    return tuple(f.name for f in engine.manifest.features) if engine else ()


def _labels(serving: Mapping[str, Serving], model: str) -> tuple[str, ...]:
    served = serving.get(model)
    engine = served.engine if served else None
    return tuple(engine.manifest.labels) if engine else ()
