"""Data of the federated screens: participation matrix, training curves, outliers, dropouts."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from shoal.controller.federated.aggregation import outlier_scores
from shoal.controller.federated.records import Participation, Round
from shoal.controller.web.wording import BADGES, Badge

#: Devices in one matrix; of thousands, outliers are shown first.
MOST_DEVICES = 80
_IN = frozenset({"UPDATED", "REVEALED", "MEASURED"})
NOT_INVITED = Badge("idle", "", "Not invited")


class DeviceRow(NamedTuple):
    """One device of a matrix: a badge per round, and statistics of its updates.

    rounds     with its update; norm: median; cosine: mean; None where hidden
    suspects   rounds in which its update was an outlier
    """

    device: str
    site: str
    badges: list[Badge]
    rounds: int
    examples: int
    norm: float | None
    cosine: float | None
    suspects: int


class Matrix(NamedTuple):
    """numbers: rounds, oldest first; rows: devices, outliers first; hidden: devices not shown."""

    numbers: list[int]
    rows: list[DeviceRow]
    hidden: int


class Point(NamedTuple):
    """One finished round as a point of the charts; None where it has no value."""

    number: int
    loss: float | None
    accuracy: float | None
    median_norm: float | None
    largest_norm: float | None
    epsilon: float


def badge_of(part: Participation) -> Badge:
    """Badge of one device's participation in one round."""
    if part.mark == "MEASURED" and not part.bytes:
        return Badge("info", "check", "Evaluated")
    if part.chosen or part.mark in _IN:
        if part.suspect:
            return Badge("warn", "warn", f"Update received, outlier: {part.suspect}")
        if not part.chosen:
            return Badge("info", "check", "Update not used")
        return BADGES[part.mark if part.mark in _IN else "UPDATED"]
    if part.reason == "still-training":
        return BADGES["still-training"]
    return BADGES.get(part.mark, NOT_INVITED)


def matrix(parts: Iterable[Participation]) -> Matrix:
    """Participation matrix, devices by rounds: outliers first, then by site and name."""
    by_device: dict[str, dict[int, Participation]] = defaultdict(dict)
    for part in parts:
        by_device[part.device][part.number] = part
    numbers = sorted({number for row in by_device.values() for number in row})
    rows = [_device_row(name, row, numbers) for name, row in by_device.items()]
    rows.sort(key=lambda row: (-row.suspects, row.site, row.device))
    return Matrix(numbers, rows[:MOST_DEVICES], max(0, len(rows) - MOST_DEVICES))


def points(rounds: Sequence[Round], parts: Iterable[Participation]) -> list[Point]:
    """Points of finished training rounds, oldest first; evaluations are not part of the curve."""
    norms: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        if part.norm is not None:
            norms[part.round].append(part.norm)
    return [
        Point(
            number=one.number,
            loss=one.measured.loss if one.measured else one.loss,
            accuracy=one.measured.accuracy if one.measured else None,
            median_norm=median(norms[one.id]) if norms[one.id] else None,
            largest_norm=max(norms[one.id], default=None),
            epsilon=one.epsilon,
        )
        for one in sorted(rounds, key=lambda one: one.number)
        if one.state == "DONE" and one.purpose == "train"
    ]


def deviations(parts: Iterable[Participation]) -> dict[str, float]:
    """device -> robust deviations of its update's norm from the round's, where it is visible."""
    seen = [one for one in parts if one.norm]
    logs = [math.log(one.norm) for one in seen if one.norm]
    far = outlier_scores.robust_z(logs, outlier_scores.LEAST_SPREAD)
    return {one.device: float(z) for one, z in zip(seen, far, strict=True)}


def reasons(parts: Iterable[Participation]) -> list[tuple[str, int, str]]:
    """(reason, count, example device) of dropouts, most frequent first."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for part in parts:
        if part.reason and part.mark not in _IN and not part.chosen:
            counts[part.reason] += 1
            example[part.reason] = part.device
    return [(reason, n, example[reason]) for reason, n in counts.most_common()]


def _device_row(name: str, row: dict[int, Participation], numbers: Sequence[int]) -> DeviceRow:
    received = [one for one in row.values() if one.mark in _IN or one.chosen]
    norms = [one.norm for one in received if one.norm is not None]
    cosines = [one.cosine for one in received if one.cosine is not None]
    return DeviceRow(
        device=name,
        site=next(iter(row.values())).site,
        badges=[badge_of(row[n]) if n in row else NOT_INVITED for n in numbers],
        rounds=sum(one.chosen for one in received),
        examples=sum(one.examples for one in received),
        norm=median(norms) if norms else None,
        cosine=sum(cosines) / len(cosines) if cosines else None,
        suspects=sum(bool(one.suspect) for one in received),
    )
