"""Whether a device takes part in a round, and when it may train: its own decision, not the plan's.

The limits are the device's own configuration. Each refusal has a reason that is sent to the
controller; the device's data and condition are not.
"""

import logging
from collections.abc import Callable, Mapping

import msgspec

from shoal.agent.host.ports import Load
from shoal.agent.host.round_limits import Limits
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import RefusedError, ShoalError
from shoal.federated import messages
from shoal.federated.config import Config
from shoal.federated.distributed import effective_noise
from shoal.federated.noise import local_noise, sensitivity
from shoal.federated.plan import Plan, Privacy
from shoal.federated.spending import Ledger

_log = logging.getLogger(__name__)

#: Seconds over which requests are counted; between two readings of the temperature.
COUNT_S, SAMPLE_S = 2.0, 5.0
#: Degrees that a hot device has to cool down by before training resumes.
COOLER = 3.0


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """State of the device; None where it is not measured.

    rows       labelled rows that it can train on
    celsius    of its processor
    last       number of the last round of this task that it answered; 0: none
    """

    rows: int
    idle: bool
    mains: bool | None = None
    celsius: float | None = None
    last: int = 0


def judge(
    plan: Plan, size: int, limits: Limits, condition: Condition, ledger: Ledger, now_s: float
) -> Ledger:
    """The privacy ledger after this round, to be made durable before the update is sent.

    size   of theta. RefusedError: why this device does not take part.
    """
    for reason, holds, detail in (*_device_checks(limits, condition), *_plan_checks(plan, limits)):
        if not holds:
            raise RefusedError(detail, reason)
    if now_s > plan.deadline_s:
        raise RefusedError("the plan's deadline has passed", "late")
    if plan.round <= condition.last:
        raise RefusedError(
            f"round {plan.round} after round {condition.last}: it was answered", "answered-before"
        )
    if plan.privacy is None:
        return ledger
    noise = noise_of(plan, plan.privacy, size)
    return ledger.after(noise) if limits.budget is None else ledger.spend(noise, limits.budget)


def check_graph(sha256: str, limits: Limits) -> None:
    """RefusedError unless this device runs that graph: another may copy rows into the update."""
    if limits.graphs and sha256 not in limits.graphs:
        hint = "if it is trusted, add it to learning.graphs in agent.toml"
        raise RefusedError(
            f"graph {sha256} is not one that this device runs", "unknown-graph", hint
        )


def check_terms(config: Config) -> None:
    """RefusedError for strategy terms that this agent does not implement."""
    terms = config.plan.learning.terms
    if unknown := sorted(set(terms) - {"mu", "shift"}):
        hint = "update the agent"
        raise RefusedError(f"terms {', '.join(unknown)} are unknown here", "other-terms", hint)
    if terms.get("shift") and config.control is None:
        raise RefusedError("SCAFFOLD without the server's control variate", "other-terms")


def judge_evaluation(limits: Limits, condition: Condition) -> None:
    """RefusedError unless this device may report metrics of a model.

    A device that requires secure aggregation or noise reports no losses: they have neither.
    """
    for reason, holds, detail in _device_checks(limits, condition):
        if not holds:
            raise RefusedError(detail, reason)
    if limits.secure or limits.noise or limits.budget is not None:
        raise RefusedError(
            "its metrics would be reported in the clear, without noise", "bare-measure"
        )


def refusal(error: ShoalError) -> messages.Refuse:
    """The answer to the controller for an error, which is also logged."""
    reason = error.reason if isinstance(error, RefusedError) else error.code
    _log.info("round refused: %s: %s", reason, error)
    return messages.Refuse(reason=reason[:64], detail=str(error)[:500])


def noise_of(plan: Plan, privacy: Privacy, size: int) -> float:
    """Noise over sensitivity of a round, as it counts for one device."""
    if privacy.where == "local":
        return local_noise(privacy, size)
    if privacy.where == "distributed":
        if plan.secure is None:
            raise RefusedError("distributed noise without secure aggregation", "bare-update")
        return effective_noise(privacy, plan.secure.scale, plan.least, size)
    sigma = privacy.noise * privacy.clip
    return sigma / sensitivity(privacy.clip, sigma, size)


_Check = tuple[str, bool, str]


def _device_checks(limits: Limits, condition: Condition) -> tuple[_Check, ...]:
    hot = condition.celsius is not None and 0 < limits.celsius < condition.celsius
    return (
        ("not-enabled", limits.enabled, "learning is not enabled on this device"),
        ("few-rows", condition.rows >= max(1, limits.rows), "it has too few rows of its own"),
        ("busy", condition.idle or not limits.idle, "it is serving"),
        ("on-battery", condition.mains is not False or not limits.mains, "it is on battery"),
        ("hot", not hot, "it is too hot to train"),
    )


def _plan_checks(plan: Plan, limits: Limits) -> tuple[_Check, ...]:
    privacy = plan.privacy
    noise, clip = (privacy.noise, privacy.clip) if privacy else (0.0, float("inf"))
    central = privacy is not None and privacy.where == "central"
    untrusted = central and not limits.trust_central
    noise_required = limits.noise > 0 or limits.budget is not None
    return (
        (
            "small-cohort",
            plan.least >= limits.cohort,
            f"{plan.least} in the sum, {limits.cohort} needed",
        ),
        (
            "bare-update",
            plan.secure is not None or not limits.secure,
            "its update would be visible to the controller",
        ),
        (
            "long-clip",
            not limits.clip or clip <= limits.clip,
            f"clip {clip:g}, at most {limits.clip:g} is sent",
        ),
        (
            "central-noise",
            not (central and plan.secure is not None),
            "central noise under secure aggregation: the controller cannot add it",
        ),
        (
            "central-noise",
            not (untrusted and noise_required),
            "its limits require noise, and central noise is not trusted: see trust_central",
        ),
        (
            "little-noise",
            privacy is not None or limits.budget is None,
            "a round without noise would cost more than any budget",
        ),
        ("little-noise", noise >= limits.noise, f"noise {noise:g}, {limits.noise:g} needed"),
    )


class IdleMonitor:
    """Whether training has to pause: requests, temperature, and pressure on the agent.

    Sampled on the control loop, read by the trainer's thread.

    busy_hz    requests a second above which the device is busy, where its limits say `idle`
    load       sensors of the machine
    throttled  whether the agent has throttled itself
    pause_reason  "busy", "hot" or "under pressure"; "" while training may run
    """

    def __init__(
        self,
        limits: Limits,
        busy_hz: float,
        *,
        serving: Mapping[str, ServedModel],
        load: Callable[[], Load],
        throttled: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._limits, self._busy_hz = limits, busy_hz
        self._serving, self._load, self._throttled = serving, load, throttled
        self._monotonic = monotonic
        self._counted, self._counted_s = 0, monotonic()
        self._sampled_s, self._hot = float("-inf"), False
        self.busy, self.pause_reason = False, ""
        self.celsius: float | None = None

    def sample(self) -> None:
        """Update `busy`, `celsius` and `pause_reason`."""
        now = self._monotonic()
        if now - self._counted_s >= COUNT_S:
            self._count(now)
        if now - self._sampled_s >= SAMPLE_S:
            self._sampled_s, found = now, self._load().temp_c
            self.celsius = found if found >= 0 else None
            limit = self._limits.celsius - (COOLER if self._hot else 0.0)
            self._hot = self._limits.celsius > 0 and found > limit
        reasons = (
            ("busy", self.busy and self._limits.idle),
            ("hot", self._hot),
            ("under pressure", self._throttled()),
        )
        self.pause_reason = next((reason for reason, holds in reasons if holds), "")

    def _count(self, now: float) -> None:
        requests = sum(serving.vitals.requests for serving in list(self._serving.values()))
        new = max(0, requests - self._counted)  # a new release starts counting at zero
        self.busy = new / (now - self._counted_s) > self._busy_hz
        self._counted, self._counted_s = requests, now
