"""Client selection: a random sample of the eligible devices, and why the others are left out."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from shoal.controller.federated.rounds.machine import Pace

#: Reason -> hint for the operator, where there is one.
HINTS = {
    "few-rows": "few-rows: on the device, shoal-agent labels add FILE --column NAME",
    "small-cohort": (
        "small-cohort: plan a task of another name with a higher --least, or lower cohort under "
        "[learning] on the devices"
    ),
}


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller knows of a device.

    release   "model@version" that it serves
    ram_mb    memory of the board
    rows      labelled rows, by its last inventory
    cohort    smallest number of devices in a sum that it accepts; 0: unknown
    resting   rounds since it last took part; None if it never did
    """

    device: str
    online: bool
    ring: str
    site: str
    release: str
    ram_mb: float
    rows: int
    cohort: int = 0
    resting: int | None = None


class Demands(msgspec.Struct, frozen=True, kw_only=True):
    """Eligibility criteria of a task.

    model     devices have to serve a release of it
    rings     of eligible devices; sites likewise, all if empty
    rest      rounds that a device pauses after each of its own
    """

    model: str
    rings: tuple[str, ...] = ("stable", "canary")
    sites: tuple[str, ...] = ()
    ram_mb: float = 0.0
    rows: int = 1
    rest: int = 0


class Selection(NamedTuple):
    """invited: sorted; left_out: device -> reason."""

    invited: list[str]
    left_out: dict[str, str]


def hints(reasons: Iterable[str]) -> str:
    """Hints for these reasons, each once; "" without any."""
    return "; ".join(HINTS[reason] for reason in sorted({*reasons} & {*HINTS}))


def tally(reasons: Iterable[str]) -> str:
    """Reasons with their counts.

    >>> tally(["offline", "few-rows", "offline"])
    '1 few-rows, 2 offline'
    """
    counts = Counter(reasons)
    return ", ".join(f"{counts[reason]} {reason}" for reason in sorted(counts))


def select_clients(
    candidates: Iterable[Candidate], demands: Demands, pace: Pace, seed: bytes
) -> Selection:
    """Random sample of goal times over devices; the same for a seed, in any order of candidates.

    seed   random, of this attempt, so that the sample cannot be chosen
    """
    left_out, able = {}, []
    for candidate in candidates:
        reason = ineligible(candidate, demands, pace.least)
        if reason:
            left_out[candidate.device] = reason
        else:
            able.append(candidate.device)
    drawn = sorted(able, key=lambda name: hashlib.sha256(seed + name.encode()).digest())
    wanted = math.ceil(pace.goal * pace.over - 1e-9)
    left_out |= dict.fromkeys(drawn[wanted:], "not-drawn")
    return Selection(sorted(drawn[:wanted]), left_out)


def ineligible(candidate: Candidate, demands: Demands, least: int) -> str:
    """Reason, a slug; "" for a device that is eligible for a sum of `least` or more."""
    checks = (
        ("offline", candidate.online),
        ("other-ring", candidate.ring in demands.rings),
        ("other-site", not demands.sites or candidate.site in demands.sites),
        ("other-model", candidate.release.partition("@")[0] == demands.model),
        ("little-memory", candidate.ram_mb >= demands.ram_mb),
        ("few-rows", candidate.rows >= demands.rows),
        ("small-cohort", candidate.cohort <= least),
        ("resting", candidate.resting is None or candidate.resting >= demands.rest),
    )
    return next((reason for reason, holds in checks if not holds), "")
