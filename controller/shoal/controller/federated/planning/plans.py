"""From a task's plan to the signed plan of one round, with checks for contradictions.

Every round has its own plan, because the parameters of secure aggregation (neighbours, threshold,
fixed-point scale) depend on the number of invited devices.
"""

import math
from collections.abc import Iterator

import msgspec

from shoal import wire
from shoal.controller.federated.planning.conflicts import check_plan
from shoal.controller.federated.privacy.central import central_noise
from shoal.controller.federated.records import Hiding, TaskPlan
from shoal.controller.federated.secagg.parameters import Graph, choose
from shoal.controller.federated.strategies.fedavg import FedAvg
from shoal.controller.federated.strategy import ByExamples, Strategy, strategy_of
from shoal.errors import SettingError
from shoal.federated.distributed import effective_noise, scale_for
from shoal.federated.fixed_point import FixedPoint
from shoal.federated.noise import local_noise
from shoal.federated.plan import Compression, Learning, Plan, Privacy, Secure

#: Bytes of a neighbour's advert, with its certificate, and of a device's digest, with its name.
_ADVERT, _DIGEST = 1_200, 100
#: Attempt id of a plan that is only checked.
_NO_ATTEMPT = bytes(16)


def strategy_for(task: TaskPlan) -> Strategy:
    """SettingError lists the strategies, or names the wrong setting."""
    return strategy_of(task.strategy, task.settings)


def check_task(task: TaskPlan) -> TaskPlan:
    """The task, its budget's delta filled in from its privacy; SettingError names every
    contradiction in it."""
    found = list(_task_conflicts(task))
    if found:
        raise SettingError(f"task {task.name}: {'; '.join(found)}")
    task = _with_delta(task)
    plan_of(task, number=1, attempt=_NO_ATTEMPT, invited=invitations(task), now_s=0.0)
    return task


def _with_delta(task: TaskPlan) -> TaskPlan:
    if task.budget is None or task.privacy is None or task.budget.delta:
        return task
    budget = msgspec.structs.replace(task.budget, delta=task.privacy.delta)
    return msgspec.structs.replace(task, budget=budget)


def invitations(task: TaskPlan) -> int:
    """Number of devices to invite: goal times over."""
    return math.ceil(task.pace.goal * task.pace.over - 1e-9)


def plan_of(
    task: TaskPlan, *, number: int, attempt: bytes, invited: int, now_s: float, clip: float = 0.0
) -> Plan:
    """Plan of one round for so many devices; SettingError when its parts contradict each other.

    clip   current value of an adaptive clip; 0: the task's own
    """
    strategy = strategy_for(task)
    plan = Plan(
        task=task.name,
        round=number,
        attempt=attempt,
        strategy=task.strategy,
        least=task.pace.least,
        deadline_s=now_s + longest_s(task),
        learning=Learning(**msgspec.structs.asdict(task.learning) | {"terms": strategy.terms()}),
        privacy=_privacy(task, clip),
        secure=_secure(task, task.secure, strategy, invited) if task.secure else None,
        compression=Compression(**msgspec.structs.asdict(task.compression)),
        gateways=task.gateways,
    )
    return check_plan(plan, strategy)


def longest_s(task: TaskPlan) -> float:
    """Longest time from invitations to the end of a round; in an asynchronous task, to the end of
    the last round in which an update may count."""
    pace = task.pace
    secure = 2 * pace.unmask_s if task.secure else 0.0
    once = pace.recruit_s + pace.train_s + secure + pace.evaluate_s
    return once * (1 + strategy_for(task).late())


def noise_of(plan: Plan, size: int) -> float | None:
    """Noise multiplier of a round (noise over sensitivity); None without privacy."""
    privacy = plan.privacy
    if privacy is None:
        return None
    if privacy.where == "distributed" and plan.secure is not None:
        return effective_noise(privacy, plan.secure.scale, plan.least, size)
    return (local_noise if privacy.where == "local" else central_noise)(privacy, size)


def _task_conflicts(task: TaskPlan) -> Iterator[str]:
    """Contradictions in what a round's plan does not contain, a sentence each."""
    if bool(task.release) == bool(task.dataset):
        yield "it begins with a release, or with a dataset: name one of the two"
    if task.dataset and not task.model:
        yield f"name the model that is trained on {task.dataset} first"
    if not 1 <= task.pace.least <= task.pace.goal or task.pace.over < 1:
        yield "pace: 1 <= least <= goal, and over at least 1"
    if task.budget is not None and task.privacy is None:
        yield "a budget of privacy, and no noise: add privacy, or leave the budget out"
    if task.adaptive is not None and (task.privacy is None or task.privacy.where != "central"):
        yield ("an adaptive clip needs central privacy: only there are updates within it counted")
    elif task.adaptive is not None and task.privacy is not None:
        task.adaptive.noise_on_updates(task.privacy.noise)
    if task.graph.optimiser != "sgd" and "shift" in strategy_for(task).terms():
        yield f"{task.strategy} corrects the steps of plain SGD: let the optimiser be sgd"
    if task.gateways:
        yield from _gateway_conflicts(task)
    if task.secure is not None and bool(task.secure.degree) != bool(task.secure.threshold):
        yield "secure: set both degree and threshold, or neither"


def _privacy(task: TaskPlan, clip: float) -> Privacy | None:
    if task.privacy is None:
        return None
    return Privacy(
        **msgspec.structs.asdict(task.privacy) | ({"clip": clip} if task.adaptive and clip else {})
    )


def _gateway_conflicts(task: TaskPlan) -> Iterator[str]:
    if not isinstance(strategy_for(task), FedAvg):
        yield (
            f"{task.strategy} needs single updates or more than their weighted sum, and a gateway "
            "sends a sum: take fedavg or one that is built on it"
        )
    if task.secure is not None:
        yield "a gateway cannot sum what is masked: leave out gateways, or secure aggregation"
    if task.privacy is not None and task.privacy.where != "local":
        yield (
            f"{task.privacy.where} privacy clips every update at the controller, which sees a "
            "site's sum: let noise be local, or leave gateways out"
        )


def _secure(task: TaskPlan, hiding: Hiding, strategy: Strategy, invited: int) -> Secure:
    least = task.pace.least
    degree, threshold = hiding.degree, hiding.threshold
    if not degree:
        graph = _graph(hiding, invited, least)
        degree, threshold = graph.degree, graph.threshold
    if threshold > least - 1:
        raise SettingError(
            f"{threshold} neighbours have to open a secret, and {least} devices in the sum have "
            f"{least - 1}",
            f"let pace.least be {threshold + 1} or more",
        )
    if degree * _ADVERT + invited * _DIGEST > wire.LIMIT["round"]:
        raise SettingError(
            f"{degree} neighbours of each of {invited} devices do not fit into one message",
            "let pace.least be nearer to the number of invited devices, or invite fewer",
        )
    return Secure(degree=degree, threshold=threshold, scale=_scale(task, hiding, strategy, invited))


def _graph(hiding: Hiding, invited: int, least: int) -> Graph:
    """Graph for which invited devices may drop out, down to `least`."""
    try:
        return choose(invited, hiding.corrupt, max(0.0, 1 - least / invited))
    except SettingError as error:
        raise SettingError(
            error.message,
            f"let pace.least be nearer to the {invited} that are invited (pace.goal times over), "
            "or assume fewer corrupt devices",
        ) from error


def _scale(task: TaskPlan, hiding: Hiding, strategy: Strategy, invited: int) -> FixedPoint:
    if task.privacy is not None and task.privacy.where == "distributed":
        return scale_for(task.privacy, hiding.clip, invited, task.pace.least)
    most = strategy.most_examples if isinstance(strategy, ByExamples) else hiding.weight
    return FixedPoint(clip=hiding.clip, devices=invited, weight=min(hiding.weight, most)).check()
