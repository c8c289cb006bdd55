"""Outlier scores of a round's updates: how long each is, and how far it points from the others.

Three numbers, the same for every strategy:

norm     L2 of the update
z        of the norm's logarithm, in robust standard deviations (median and MAD) of the round
cosine   to the mean direction of the others, each at length 1, so that long updates do not
         dominate it

A norm is suspect beyond 3.5 deviations (Iglewicz and Hoaglin, "How to Detect and Handle
Outliers", 1993) when it also stands out by a factor: rounds whose devices are all alike have a
spread of nothing. A direction is suspect when it points away from the others further than random
vectors of P elements do, and 2 deviations further than the round's median. A suspect update may
just come from rare data, so nothing follows by itself: a person decides (quarantine), or a robust
strategy.

Two passes over the updates, which lie in files and are read in slices of parameters: memory is that
of a slice, and the order of the updates does not matter.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from shoal.controller.federated.updates import Update
from shoal.federated.sums import F64, ExactSum

#: Robust standard deviations beyond which a norm is suspect.
FAR = 3.5
#: ... if it is also so many times the round's median, or its inverse.
FACTOR = 2.0
#: Robust standard deviations beyond which a cosine is suspect.
TURNED = 2.0
#: Cosines between random vectors of P elements are within so many 1/√P.
CHANCE = 4.0
#: Smallest number of updates for which a spread is estimated.
FEWEST = 5
#: MAD to standard deviation, of a normal distribution.
_NORMAL = 1.4826
#: Lower bound on the deviation of the logarithm.
LEAST_SPREAD = 0.05


class OutlierScore(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one update among the others of its round.

    loss       mean before training, as reported
    cosine     -1 to 1; 0 for an update of zeros, and without others
    suspect    "" or a slug: "far-longer", "far-shorter", "against-the-others"
    """

    device: str
    examples: int
    loss: float
    norm: float
    cosine: float
    z: float
    suspect: str = ""


def score(
    updates: Callable[[slice], Iterable[Update]], parts: Iterable[slice]
) -> list[OutlierScore]:
    """Score every update; sorted by device.

    updates   called twice a part; yields all of the round's updates, deltas float32 (part,)
    parts     slices of the parameters, which together are all of them
    """
    seen: dict[str, _Seen] = {}
    square, size = 0.0, 0
    for part in parts:
        directions = ExactSum(part.stop - part.start)
        for update in updates(part):
            one = seen.setdefault(update.device, _seen(update))
            directions.add(update.delta, _inverse(one.norm))
        total = directions.value()
        square += float(np.einsum("i,i->", total, total))
        size += part.stop - part.start
        for update in updates(part):
            along = np.einsum("i,i->", update.delta, total, dtype=np.float64)
            seen[update.device].along += float(along)
    found = [
        OutlierScore(
            device=name, examples=one.examples, loss=one.loss, z=0.0, norm=one.norm,
            cosine=_cosine(one, square),
        )
        for name, one in sorted(seen.items())
    ]  # fmt: skip
    return _with_suspects(found, CHANCE / math.sqrt(max(1, size)))


class _Seen:
    """along: of the update, times the sum of all directions."""

    __slots__ = ("along", "examples", "loss", "norm")

    def __init__(self, examples: int, loss: float, norm: float) -> None:
        self.examples, self.loss, self.norm, self.along = examples, loss, norm, 0.0


def _seen(update: Update) -> _Seen:
    return _Seen(update.examples, update.loss, math.sqrt(update.squared_norm()))


def robust_z(values: Sequence[float], least_spread: float) -> F64:
    """Robust standard deviations from the median, float64 (N,); zeros for too few values.

    >>> robust_z([1.0, 1.1, 0.9, 1.0, 1.05, 4.0], 0.05).round(0).tolist()[-1]
    40.0
    """
    found = np.asarray(values, np.float64)
    if len(found) < FEWEST:
        return np.zeros(len(found))
    away = found - np.median(found)
    return away / max(float(np.median(np.abs(away))) * _NORMAL, least_spread)


def _inverse(norm: float) -> float:
    return 1 / norm if norm > 0 else 0.0


def _cosine(one: _Seen, square: float) -> float:
    """Cosine to the sum of all directions minus its own; square: of that sum's length."""
    unit = _inverse(one.norm)
    along = one.along * unit
    others = square - 2 * along + 1
    if not unit or others < 1e-9:
        return 0.0
    return max(-1.0, min(1.0, (along - 1) / math.sqrt(others)))


def _with_suspects(seen: list[OutlierScore], chance: float) -> list[OutlierScore]:
    logs = [math.log(max(one.norm, 1e-30)) for one in seen]
    lengths = robust_z(logs, LEAST_SPREAD)
    turns = robust_z([one.cosine for one in seen], LEAST_SPREAD)
    middle = float(np.median(logs)) if logs else 0.0
    return [
        msgspec.structs.replace(
            one, z=float(z), suspect=_reason_of(one, log - middle, z, turn, chance)
        )
        for one, log, z, turn in zip(seen, logs, lengths, turns, strict=True)
    ]


def _reason_of(one: OutlierScore, away: float, z: float, turn: float, chance: float) -> str:
    """Slug of a suspect update; away: log of its norm minus the median's."""
    if one.cosine < -chance and turn <= -TURNED:
        return "against-the-others"
    if abs(z) < FAR or abs(away) < math.log(FACTOR):
        return ""
    return "far-longer" if z > 0 else "far-shorter"
