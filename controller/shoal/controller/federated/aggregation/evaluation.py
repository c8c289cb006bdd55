"""Federated evaluation: devices' metrics of a checkpoint, merged over all rows and by slice.

slice                                 rows
class:scratched                       of a true class
site:north, profile:rpi4              of devices at a site, of a profile
class:.. site:.. profile:..           intersections: the worst of these, by upper confidence bound
personal                              with each device's personal model

Rows stay on the devices, and count once. Rows of one device are correlated, so they carry less
information than as many rows of many devices: confidence is Wilson's interval (Wilson, "Probable
Inference", 1927) with the rows divided by Pearson's dispersion between devices.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from shoal.controller.federated.records import Measure
from shoal.federated.messages import Measured, Slice

#: Number of intersection slices, and the fewest rows of one.
WORST, FEWEST = 12, 20
#: Quantile of the normal distribution for 95 %.
_Z = 1.959964


class Place(NamedTuple):
    """Site and profile of a device."""

    site: str
    profile: str


class Evaluated(NamedTuple):
    """whole: None without measurements."""

    whole: Measure | None
    slices: dict[str, Measure]


def merge(measured: Mapping[str, Measured], places: Mapping[str, Place]) -> Evaluated:
    """Merge measurements by device.

    >>> one = Measured(whole=Slice(rows=10, loss=5.0, correct=8))
    >>> merge({"a": one, "b": one}, {}).whole.accuracy
    0.8
    """
    parts: dict[str, list[Slice]] = defaultdict(list)
    crossed: dict[str, list[Slice]] = defaultdict(list)
    for device in sorted(measured):
        found, place = measured[device], places.get(device, Place("", ""))
        for name in ("", f"site:{place.site}", f"profile:{place.profile}"):
            parts[name].append(found.whole)
        for name, one in found.classes.items():
            parts[f"class:{name}"].append(one)
            crossed[f"class:{name} site:{place.site} profile:{place.profile}"].append(one)
        if found.personal is not None:
            parts["personal"].append(found.personal)
    slices = _sums(parts)
    whole = slices.pop("", None)
    return Evaluated(whole, dict(sorted((slices | _worst(_sums(crossed))).items())))


def interval(correct: Iterable[int], rows: Iterable[int]) -> tuple[float, float]:
    """95 % confidence interval of an accuracy; correct and rows by device, with a row in all.

    >>> tuple(round(end, 2) for end in interval([80], [100]))
    (0.71, 0.87)
    >>> tuple(round(end, 2) for end in interval([60, 20], [60, 40]))
    (0.27, 0.98)
    """
    found = list(zip(correct, rows, strict=True))
    rows_in_all = sum(r for _, r in found)
    p = sum(c for c, _ in found) / rows_in_all
    n = rows_in_all / _dispersion(found, p)
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _dispersion(found: Iterable[tuple[int, int]], p: float) -> float:
    """Overdispersion: how many times more devices differ than by chance; at least 1."""
    seen = [(c, r) for c, r in found if r]
    if len(seen) < 2 or not 0 < p < 1:
        return 1.0
    square = sum((c - r * p) ** 2 / (r * p * (1 - p)) for c, r in seen)
    return max(1.0, square / (len(seen) - 1))


def _sums(parts: Mapping[str, list[Slice]]) -> dict[str, Measure]:
    return {name: found for name, some in parts.items() if (found := _sum(some))}


def _worst(crossed: Mapping[str, Measure]) -> dict[str, Measure]:
    """Worst slices first: by the upper bound of their accuracy, else by loss."""
    enough = [(name, one) for name, one in crossed.items() if one.rows >= FEWEST]
    enough.sort(key=lambda item: (1 if item[1].high is None else item[1].high, -item[1].loss))
    return dict(enough[:WORST])


def _sum(some: Iterable[Slice]) -> Measure | None:
    """None without rows."""
    kept = [one for one in some if one.rows]
    rows = sum(one.rows for one in kept)
    if not rows:
        return None
    found = Measure(rows=rows, loss=sum(one.loss for one in kept) / rows, devices=len(kept))
    if any(one.correct < 0 for one in kept):
        return found
    low, high = interval([one.correct for one in kept], [one.rows for one in kept])
    accuracy = sum(one.correct for one in kept) / rows
    return msgspec.structs.replace(found, accuracy=accuracy, low=low, high=high)


def decode(data: bytes) -> Measured:
    return msgspec.msgpack.decode(data, type=Measured)
