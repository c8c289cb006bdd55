"""Whom a round invites: of those who can take part, some, by lot, and why not the others."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from shoal.controller.federated.rounds.machine import Pace

#: Reason -> what a person can do about it, where there is something.
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
    ram_mb    of the board; rows of labelled data that it last said it has
    cohort    devices that it wants in a sum with it; 0: it has not said
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
    """What a task asks of devices.

    model     whose release they have to serve
    rings     that may take part; sites likewise, all if empty
    rest      rounds between two of one device
    """

    model: str
    rings: tuple[str, ...] = ("stable", "canary")
    sites: tuple[str, ...] = ()
    ram_mb: float = 0.0
    rows: int = 1
    rest: int = 0


class Recruits(NamedTuple):
    """invited: sorted; left_out: device -> reason."""

    invited: list[str]
    left_out: dict[str, str]


def hints(reasons: Iterable[str]) -> str:
    """What to do about these reasons, each once; "" when nothing is known."""
    return "; ".join(HINTS[reason] for reason in sorted({*reasons} & {*HINTS}))


def tally(reasons: Iterable[str]) -> str:
    """Each reason with how often it is there.

    >>> tally(["offline", "few-rows", "offline"])
    '1 few-rows, 2 offline'
    """
    counts = Counter(reasons)
    return ", ".join(f"{counts[reason]} {reason}" for reason in sorted(counts))


def recruit(candidates: Iterable[Candidate], demands: Demands, pace: Pace, seed: bytes) -> Recruits:
    """Goal times over devices by lot; the same ones for the same seed, in whatever order.

    seed   random, of this try: nobody can choose who is drawn
    """
    left_out, able = {}, []
    for candidate in candidates:
        reason = why_not(candidate, demands, pace.least)
        if reason:
            left_out[candidate.device] = reason
        else:
            able.append(candidate.device)
    drawn = sorted(able, key=lambda name: hashlib.sha256(seed + name.encode()).digest())
    wanted = math.ceil(pace.goal * pace.over - 1e-9)
    left_out |= dict.fromkeys(drawn[wanted:], "not-drawn")
    return Recruits(sorted(drawn[:wanted]), left_out)


def why_not(candidate: Candidate, demands: Demands, least: int) -> str:
    """A slug; "" for a device that can take part in a sum of `least` or more."""
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
