"""What the pages of rounds show: who took part when, who pulls where, how a task goes on."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from shoal.controller.federated.aggregation import outlier_scores
from shoal.controller.federated.records import Participation, Round
from shoal.controller.web.wording import SIGNS, Sign

#: Devices in one matrix; a task of thousands shows those that need looking at first.
MOST_DEVICES = 80
_IN = frozenset({"UPDATED", "REVEALED", "MEASURED"})
NOTHING = Sign("idle", "", "Not invited")


class Line(NamedTuple):
    """One device of a matrix: a sign a round, and what its updates were like.

    rounds     that its update is in; norm: median; cosine: mean; None where hidden
    suspects   rounds in which its update stood out
    """

    device: str
    site: str
    signs: list[Sign]
    rounds: int
    examples: int
    norm: float | None
    cosine: float | None
    suspects: int


class Matrix(NamedTuple):
    """numbers: rounds, oldest first; lines: a device each, suspect ones first; hidden: the rest."""

    numbers: list[int]
    lines: list[Line]
    hidden: int


class Point(NamedTuple):
    """One finished round as the charts have it; None where it says nothing."""

    number: int
    loss: float | None
    accuracy: float | None
    median_norm: float | None
    largest_norm: float | None
    epsilon: float


def sign_of(part: Participation) -> Sign:
    """How one device's part in one round is shown."""
    if part.mark == "MEASURED" and not part.bytes:
        return Sign("info", "check", "Measured")
    if part.chosen or part.mark in _IN:
        if part.suspect:
            return Sign("warn", "warn", f"Update in, and it stands out: {part.suspect}")
        if not part.chosen:
            return Sign("info", "check", "Update came")
        return SIGNS[part.mark if part.mark in _IN else "UPDATED"]
    if part.reason == "still-training":
        return SIGNS["still-training"]
    return SIGNS.get(part.mark, NOTHING)


def matrix(parts: Iterable[Participation]) -> Matrix:
    """Devices by rounds: who stands out first, then by site and name."""
    by_device: dict[str, dict[int, Participation]] = defaultdict(dict)
    for part in parts:
        by_device[part.device][part.number] = part
    numbers = sorted({number for row in by_device.values() for number in row})
    lines = [_line(name, row, numbers) for name, row in by_device.items()]
    lines.sort(key=lambda line: (-line.suspects, line.site, line.device))
    return Matrix(numbers, lines[:MOST_DEVICES], max(0, len(lines) - MOST_DEVICES))


def points(rounds: Sequence[Round], parts: Iterable[Participation]) -> list[Point]:
    """Rounds that are done and learned, oldest first: an evaluation measures what one of them
    made, and is no step of the curve.
    """
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
    """device -> robust deviations of its update's length from the round's; of who shows one."""
    seen = [one for one in parts if one.norm]
    logs = [math.log(one.norm) for one in seen if one.norm]
    far = outlier_scores.robust_z(logs, outlier_scores.LEAST_SPREAD)
    return {one.device: float(z) for one, z in zip(seen, far, strict=True)}


def reasons(parts: Iterable[Participation]) -> list[tuple[str, int, str]]:
    """(reason, times, a device for example) of who did not take part, most first."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for part in parts:
        if part.reason and part.mark not in _IN and not part.chosen:
            counts[part.reason] += 1
            example[part.reason] = part.device
    return [(reason, n, example[reason]) for reason, n in counts.most_common()]


def _line(name: str, row: dict[int, Participation], numbers: Sequence[int]) -> Line:
    told = [one for one in row.values() if one.mark in _IN or one.chosen]
    norms = [one.norm for one in told if one.norm is not None]
    cosines = [one.cosine for one in told if one.cosine is not None]
    return Line(
        device=name,
        site=next(iter(row.values())).site,
        signs=[sign_of(row[n]) if n in row else NOTHING for n in numbers],
        rounds=sum(one.chosen for one in told),
        examples=sum(one.examples for one in told),
        norm=median(norms) if norms else None,
        cosine=sum(cosines) / len(cosines) if cosines else None,
        suspects=sum(bool(one.suspect) for one in told),
    )
