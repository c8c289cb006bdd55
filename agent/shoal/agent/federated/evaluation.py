"""How a round's model does on this device's rows: judged, and told again when asked again."""

import logging
from collections.abc import Callable

from shoal.agent.federated.eligibility import Condition, check_graph, judge_measuring
from shoal.agent.federated.ports import Made
from shoal.agent.federated.round_jobs import Done, Job, Studies
from shoal.agent.host.round_limits import Limits
from shoal.errors import LinkError, RefusedError, ShoalError
from shoal.federated import messages
from shoal.federated.config import Config

_log = logging.getLogger(__name__)


class Measuring:
    """The last that was measured is remembered; a start forgets it, and measures again.

    condition   how the device is, for a config
    """

    def __init__(
        self, studies: Studies, limits: Limits, condition: Callable[[Config], Condition]
    ) -> None:
        self._studies, self._limits, self._condition = studies, limits, condition
        self._last: tuple[bytes, bytes, messages.Answer] | None = None

    def answered(self, attempt: bytes, said: messages.Measure) -> messages.Answer | None:
        """What was said to the same request before; None for nothing."""
        if self._last is not None and self._last[:2] == (attempt, said.signed):
            return self._last[2]
        return None

    def work(self, job: Job, said: messages.Measure) -> Made:
        """Verify, judge and measure; off the control loop."""
        config = self._studies.check(job, said.signed)
        plan = config.plan
        job.label = f"{plan.round} of {plan.task}"
        if config.purpose != "evaluate" or plan.attempt != job.attempt:
            raise RefusedError("the config is not that of this request", "misdirected")
        check_graph(config.graph.sha256, self._limits)
        judge_measuring(self._limits, self._condition(config))
        return self._studies.measure(job, config, said.urls)

    def ended(self, done: Done) -> messages.Answer | None:
        """What to say; None where the network was away, and the controller asks again."""
        if isinstance(done.error, LinkError):
            return None
        if done.error is not None:
            answer: messages.Answer = refusal_of(done.error)
        else:
            assert isinstance(done.result, Made)
            assert done.result.measured is not None
            answer = done.result.measured
        self._last = done.job.attempt, done.job.said.signed, answer
        return answer


def refusal_of(error: ShoalError) -> messages.Refuse:
    """What the controller is told of an error; the device's own log has it, too."""
    reason = error.reason if isinstance(error, RefusedError) else error.code
    _log.info("stays out of a round: %s: %s", reason, error)
    return messages.Refuse(reason=reason[:64], detail=str(error)[:500])
