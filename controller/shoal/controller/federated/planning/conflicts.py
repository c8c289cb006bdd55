"""Contradictions between the parts of a round's plan; such a plan is refused when it is made."""

from collections.abc import Iterator

from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.federated.strategies.norm_clipping import NormClipping
from shoal.controller.federated.strategy import Strategy
from shoal.errors import SettingError
from shoal.federated.distributed import ROOM, own_sigma
from shoal.federated.plan import Plan, Privacy


def check_plan(plan: Plan, strategy: Strategy) -> Plan:
    """The plan; SettingError names every contradiction in it."""
    found = list(contradictions(plan, strategy))
    if found:
        raise SettingError(f"round {plan.round} of {plan.task}: {'; '.join(found)}")
    if plan.secure is not None:
        plan.secure.scale.check()
    return plan


def contradictions(plan: Plan, strategy: Strategy) -> Iterator[str]:
    """Contradictions, a sentence each."""
    yield from _secure_conflicts(plan, strategy)
    if plan.privacy is not None:
        yield from _privacy_conflicts(plan, plan.privacy, strategy)
    if plan.compression.kind == "top-k" and plan.learning.terms.get("shift"):
        yield (
            "top-k compression would leave most of SCAFFOLD's control variates at the device: "
            "take int8"
        )


def _secure_conflicts(plan: Plan, strategy: Strategy) -> Iterator[str]:
    secure = plan.secure
    if secure is None:
        return
    if not strategy.sums:
        yield (
            f"{plan.strategy} compares single updates, and secure aggregation hides them: take "
            "norm-clipping, which the device does itself, or do without secure aggregation"
        )
    elif not isinstance(strategy, FedAvg | NormClipping):
        yield (
            f"{plan.strategy} needs more than the weighted sum that secure aggregation gives: "
            "take fedavg or one that is built on it"
        )
    if plan.compression.kind != "none" or plan.compression.zstd:
        yield (
            f"{plan.compression.kind} compression and secure aggregation: masked numbers are "
            "noise, which cannot be made smaller; leave compression out"
        )
    if secure.scale.devices < plan.least:
        yield f"the scale is for {secure.scale.devices} devices, the round for {plan.least} or more"
    if not secure.degree // 2 < secure.threshold <= secure.degree:
        yield (
            f"threshold {secure.threshold} of {secure.degree} neighbours: it has to be more than "
            "half, or the controller could open both secrets of a device"
        )
    if plan.least < 2:
        yield "a secure sum over one device is that device's update: let least be 2 or more"


def _privacy_conflicts(plan: Plan, privacy: Privacy, strategy: Strategy) -> Iterator[str]:
    if not strategy.sums or not isinstance(strategy, FedAvg | NormClipping):
        yield (
            f"{plan.strategy} and differential privacy: the noise is measured by what one device "
            "can do to a sum, and that is not known here; take fedavg or norm-clipping"
        )
    elif strategy.most_examples != 1:
        yield (
            "differential privacy with updates that weigh by examples: one device could weigh "
            "more than the noise covers; set most_examples to 1"
        )
    if privacy.where == "distributed" and plan.secure is None:
        yield (
            "distributed noise is too little for a single update: it needs secure aggregation; "
            "take local noise without it"
        )
    elif privacy.where == "distributed" and plan.secure is not None:
        scale = plan.secure.scale
        if scale.weight != 1 or scale.noise < ROOM * 0.999 * own_sigma(privacy, scale, plan.least):
            yield "the scale has no room for the noise: take it from distributed.scale_for"
    if privacy.where == "central" and plan.secure is not None:
        yield (
            "central noise with secure aggregation: the controller would see the exact sum first; "
            "take distributed noise"
        )
    if privacy.where != "central" and plan.compression.kind == "top-k":
        yield "top-k after noise keeps the noise: take int8"
