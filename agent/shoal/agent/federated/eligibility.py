"""Whether a device takes part in a round: its own judgement, whatever the plan says.

The limits are the device's own configuration. Each refusal has a reason that the controller is
told; what the device holds and how it is doing stays here.
"""

import msgspec

from shoal.agent.host.round_limits import Limits
from shoal.errors import RefusedError
from shoal.federated.distributed import effective_noise
from shoal.federated.local import local_noise
from shoal.federated.noise import sensitivity
from shoal.federated.plan import Plan, Privacy
from shoal.federated.spending import Ledger


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How the device is doing; None where it cannot tell.

    rows       of its own that it can learn from
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
    """The ledger after this round, to be made durable before the update is sent.

    size   of theta. RefusedError says why this device stays out.
    """
    for reason, holds, detail in (*_of_itself(limits, condition), *_of(plan, limits)):
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
    """RefusedError unless this device runs that graph: another may copy rows into what is sent."""
    if limits.graphs and sha256 not in limits.graphs:
        hint = "if it is trusted, add it to learning.graphs in agent.toml"
        raise RefusedError(f"graph {sha256} is not one that it runs", "unknown-graph", hint)


def judge_measuring(limits: Limits, condition: Condition) -> None:
    """Whether to say how a model does here; RefusedError says why not.

    A device that wants its update hidden or under noise tells no losses: they have neither.
    """
    for reason, holds, detail in _of_itself(limits, condition):
        if not holds:
            raise RefusedError(detail, reason)
    if limits.secure or limits.noise or limits.budget is not None:
        raise RefusedError("what it measured would be seen, without noise", "bare-measure")


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


def _of_itself(limits: Limits, condition: Condition) -> tuple[_Check, ...]:
    hot = condition.celsius is not None and 0 < limits.celsius < condition.celsius
    return (
        ("not-enabled", limits.enabled, "this device does not learn"),
        ("few-rows", condition.rows >= max(1, limits.rows), "it has too few rows of its own"),
        ("busy", condition.idle or not limits.idle, "it is serving"),
        ("on-battery", condition.mains is not False or not limits.mains, "it is on battery"),
        ("hot", not hot, "it is too hot to train"),
    )


def _of(plan: Plan, limits: Limits) -> tuple[_Check, ...]:
    privacy = plan.privacy
    noise, clip = (privacy.noise, privacy.clip) if privacy else (0.0, float("inf"))
    central = privacy is not None and privacy.where == "central"
    promised = central and not limits.trust_central
    wants = limits.noise > 0 or limits.budget is not None
    return (
        (
            "small-cohort",
            plan.least >= limits.cohort,
            f"{plan.least} in the sum, {limits.cohort} needed",
        ),
        ("bare-update", plan.secure is not None or not limits.secure, "its update would be seen"),
        (
            "long-clip",
            not limits.clip or clip <= limits.clip,
            f"clip {clip:g}, at most {limits.clip:g} is sent",
        ),
        (
            "central-noise",
            not (central and plan.secure is not None),
            "central noise under secure aggregation: nobody would add it",
        ),
        (
            "central-noise",
            not (promised and wants),
            "its limits ask for noise, and the controller only promises it: see trust_central",
        ),
        (
            "little-noise",
            privacy is not None or limits.budget is None,
            "a round without noise would cost more than any budget",
        ),
        ("little-noise", noise >= limits.noise, f"noise {noise:g}, {limits.noise:g} needed"),
    )
