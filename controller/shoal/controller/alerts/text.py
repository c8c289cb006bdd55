"""What an alert says: one title, the facts, and the one next step, for each kind of cause."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_NAMED = 4
#: Begins the key of an alert of a task's quarantine.
QUARANTINE = "quarantine/"


class Draft(NamedTuple):
    """An alert to open or to add to. key: alerts with the same key are one alert.

    site, model, release, features   that it is about, as far as it is about such
    """

    key: str
    kind: str
    severity: str
    title: str
    detail: str
    next_step: str
    site: str = ""
    model: str = ""
    release: str = ""
    features: Sequence[str] = ()


def rollout_key(rollout: str) -> str:
    """Key of the alert of a rollout."""
    return f"rollout/{rollout}"


def rollout(ident: str, release: str, reason: str, *, failed: bool) -> Draft:
    """Alert of a rollout that does not go on by itself."""
    step = (
        f"Fix the cause and resume ({ident} tries the failed devices again), or go back: "
        f"shoal rollout abort {ident} --rollback"
        if failed
        else f"Decide: shoal rollout resume {ident}, or shoal rollout abort {ident}"
    )
    return Draft(
        key=rollout_key(ident),
        kind="rollout",
        severity="critical" if failed else "warning",
        title=f"Rollout of {release} stands still",
        detail=reason,
        next_step=step,
        model=release.partition("@")[0],
        release=release,
    )


def task_key(task: str) -> str:
    """Key of the alert of a federated task."""
    return f"task/{task}"


def task(name: str, model: str, reason: str) -> Draft:
    """Alert of a federated task whose rounds do not go on by themselves."""
    return Draft(
        key=task_key(name),
        kind="task",
        severity="warning",
        title=f"The rounds of {name} have stopped",
        detail=reason,
        next_step=(
            f"See why: shoal round show {name}. Go on with: shoal round start {name}, or plan a "
            "task anew: shoal round plan"
        ),
        model=model,
    )


def quarantine_key(task: str) -> str:
    """Key of the alert of a task's quarantined releases that were rolled out."""
    return f"{QUARANTINE}{task}"


def quarantine(
    task: str, model: str, serving: Mapping[str, Sequence[str]], next_step: str
) -> Draft:
    """Alert of releases in quarantine that went out. serving: release -> devices that have it."""
    told = [f"{ref} is on {listed(devices)}" for ref, devices in serving.items()]
    return Draft(
        key=quarantine_key(task),
        kind="task",
        severity="critical" if serving else "warning",
        title=f"{model}: a release that was rolled out is in quarantine",
        detail=f"A round of {task} is poisoned. {'; '.join(told) or 'No device serves it'}.",
        next_step=next_step,
        model=model,
        release=list(serving)[-1] if serving else "",
    )


def back_step(task: str, model: str, way_back: str) -> str:
    """How devices get off a release in quarantine."""
    if way_back:
        return f"Put them back: shoal rollout start {way_back}"
    return (
        f"No clean release of {model} is signed for the whole fleet. Make one: shoal round release "
        f"{task}, then publish it and roll it out"
    )


def listed(names: Sequence[str]) -> str:
    """The first names, and the number of the rest.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
