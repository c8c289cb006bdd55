"""Cohorts: assigns devices to the stages of a rollout, by hash, so that a repeat gives the same.

A percentage is taken within each (profile, site), so that a small canary share still holds every
profile and every site; the rest is distributed by largest remainder.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shoal.controller.rollouts.records import Selector, StagePlan


class Candidate(NamedTuple):
    """A device as a selector sees it."""

    device: str
    site: str
    profile: str
    ring: str
    labels: Mapping[str, str]
    line: str = ""


def candidate(row: Any) -> Candidate:
    """A row of the device table as a selector sees it."""
    return Candidate(row.name, row.site, row.profile, row.ring, row.labels, row.line)


def rank(rollout: str, device: str) -> bytes:
    """Pseudorandom order of devices, different for each rollout."""
    return hashlib.sha256(f"{rollout}/{device}".encode()).digest()


def fits(selector: Selector, one: Candidate) -> bool:
    """Whether a device matches the selector. label: "key=value", or "key"."""
    key, equals, value = selector.label.partition("=")
    return (
        selector.ring in ("", one.ring)
        and selector.site in ("", one.site)
        and selector.profile in ("", one.profile)
        and selector.line in ("", one.line)
        and (not key or (key in one.labels and (not equals or one.labels[key] == value)))
    )


def freeze(
    rollout: str, stages: Sequence[StagePlan], devices: Iterable[Candidate]
) -> dict[str, str]:
    """Device -> name of its stage; a device that no stage takes is not in it."""
    left = sorted(devices, key=lambda one: rank(rollout, one.device))
    taken: dict[str, str] = {}
    for stage in stages:
        matching = [one for one in left if fits(stage.select, one)]
        for one in draw(matching, stage.select.percent):
            taken[one.device] = stage.name
        left = [one for one in left if one.device not in taken]
    return taken


def draw(ordered: Sequence[Candidate], percent: float) -> list[Candidate]:
    """`percent` of the devices, at least one of any, spread over profile and site."""
    if not ordered:
        return []
    total = min(len(ordered), max(1, round(len(ordered) * percent / 100)))
    strata: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for one in ordered:
        strata[one.profile, one.site].append(one)
    share = total / len(ordered)
    quota = {key: int(len(group) * share) for key, group in strata.items()}
    over = sorted(strata, key=lambda key: quota[key] - len(strata[key]) * share)
    for key in over[: total - sum(quota.values())]:
        quota[key] += 1
    return [one for key, group in strata.items() for one in group[: quota[key]]]


def late(stages: Sequence[StagePlan], one: Candidate) -> str | None:
    """Stage of a device that enrolled after the freeze: the last one, if its selector matches."""
    last = stages[-1]
    return last.name if fits(last.select, one) else None
