"""Evaluation of a round's model on this device's rows: decided, run once, and answered again."""

from collections.abc import Callable

from shoal.agent.federated.eligibility import Condition, check_graph, judge_evaluation, refusal
from shoal.agent.federated.round_jobs import JobKind, RoundJob, RoundJobs
from shoal.agent.federated.trainer import TrainingResult
from shoal.agent.host.round_limits import Limits
from shoal.errors import LinkError, RefusedError
from shoal.federated import messages
from shoal.federated.config import Config


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
