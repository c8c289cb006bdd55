"""False alarms a day and delays of a drift decision, measured on fleets that run as usual."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats

from bench.feature_changes import CHANGES, OF_ROWS, ONLY
from bench.feature_windows import Rule, Watched
from bench.null_processes import DAY, DEVICES, FEATURES, Fleet

#: How sure the bounds are, each on its side.
CONFIDENCE = 0.95


class Pace(NamedTuple):
    """Rows a window, and its length in seconds."""

    rows: int
    window_s: float


PACES = (Pace(60, 60.0), Pace(900, 900.0))


#: The devices, findings a day for all subjects -> the rule under test.
MakeRule = Callable[[Watched, float], Rule]


class Null(msgspec.Struct, frozen=True, kw_only=True):
    """Findings where nothing changed.

    n, window_s         rows a window, seconds
    feature_days        that were watched, after the windows in which nothing is said
    findings            begun in them
    findings_per_day    the same for DEVICES devices of FEATURES features: scaled, not measured
    at_least, at_most   Poisson bounds of that (Garwood 1936), each at CONFIDENCE
    budget              findings a day that the rule was told
    verdict             "kept": at_most <= budget; "broken": at_least > budget; else "not shown"
    features_hit        with one finding or more
    """

    name: str
    n: int
    window_s: float
    devices: int
    days: float
    seed: int
    feature_days: float
    findings: int
    findings_per_day: float
    at_least: float
    at_most: float
    budget: float
    verdict: str
    features_hit: int


class Delay(msgspec.Struct, frozen=True, kw_only=True):
    """How soon a change is found.

    before   windows before the change; within: windows after it that were watched
    features that changed (devices, where it is the number of rows), without `early` ones: those
             in which a finding had begun in the `within` windows before
    found    share of them that were found
    median   windows until half of all features are found; None where they are not
    """

    change: str
    name: str
    n: int
    window_s: float
    seed: int
    before: int
    within: int
    features: int
    early: int
    found: float
    median: float | None


def null(
    kind: str | Sequence[str],
    pace: Pace,
    make: MakeRule,
    *,
    devices: int,
    days: float,
    seed: int,
    budget: float,
) -> Null:
    """Watch a fleet of a kind, or of several, for so many days."""
    rows, window_s = pace
    fleet = Fleet(kind, devices=devices, rows=rows, window_s=window_s, seed=seed)
    rule = make(fleet.watched, budget)
    hit = np.zeros((devices, fleet.features + 1), np.int64)
    windows = int(days * DAY / window_s)
    for _ in range(windows):
        moment, drawn = fleet.window()
        hit += rule.observe(*moment, fleet.sketched(drawn))
    findings = int(hit.sum())
    feature_days = devices * fleet.features * max(windows - rule.first, 0) * window_s / DAY
    scale = DEVICES * FEATURES / feature_days
    least, most = (scale * bound for bound in poisson_bounds(findings))
    return Null(
        name=kind if isinstance(kind, str) else ", ".join(kind),
        n=rows,
        window_s=window_s,
        devices=devices,
        days=days,
        seed=seed,
        feature_days=feature_days,
        findings=findings,
        findings_per_day=findings * scale,
        at_least=least,
        at_most=most,
        budget=budget,
        verdict=verdict(least, most, budget),
        features_hit=int((hit > 0).sum()),
    )


def poisson_bounds(events: int) -> tuple[float, float]:
    """Lower and upper bound of a Poisson mean, each of them at CONFIDENCE.

    >>> [round(x, 3) for x in poisson_bounds(0)]
    [0.0, 2.996]
    """
    least = float(stats.chi2.ppf(1 - CONFIDENCE, 2 * events) / 2) if events else 0.0
    return least, float(stats.chi2.ppf(CONFIDENCE, 2 * events + 2) / 2)


def verdict(least: float, most: float, budget: float) -> str:
    """Whether the budget is kept, as far as was seen.

    >>> verdict(0.0, 0.9, 1.0), verdict(0.0, 20.0, 1.0), verdict(3.0, 20.0, 1.0)
    ('kept', 'not shown', 'broken')
    """
    return "kept" if most <= budget else "broken" if least > budget else "not shown"


def delays(
    kind: str,
    pace: Pace,
    make: MakeRule,
    *,
    devices: int,
    before: int,
    within: int,
    seed: int,
    changes: Sequence[str] = tuple(CHANGES),
) -> list[Delay]:
    """Let a fleet run as usual, then everything happen to it: from here on each change has its own
    copy of the rule, and all of them see changes of the same rows."""
    rows, window_s = pace
    fleet = Fleet(kind, devices=devices, rows=rows, window_s=window_s, seed=seed)
    usual, shape = make(fleet.watched, 1.0), (devices, FEATURES + 1)
    early, drawn = np.zeros(shape, bool), None
    for w in range(before):
        moment, drawn = fleet.window()
        begun = usual.observe(*moment, fleet.sketched(drawn))
        early |= begun & (w >= before - within)
    assert drawn is not None
    last, names = drawn.values[-1], [name for name in changes if ONLY.get(name, kind) == kind]
    rules = {name: copy.deepcopy(usual) for name in names}
    random = {name: np.random.default_rng([seed, i]) for i, name in enumerate(names)}
    first = {name: np.where(early, np.nan, np.inf) for name in names}
    for w in range(within):
        moment, drawn = fleet.window()
        for name, rule in rules.items():
            x = CHANGES[name](drawn.values, random[name], last).astype(np.float32)
            begun = rule.observe(*moment, fleet.sketched(drawn._replace(values=x)))
            first[name] = np.where(begun, np.minimum(first[name], w + 1), first[name])
    found = []
    for name, when in first.items():
        mine = when[:, FEATURES:] if name in OF_ROWS else when[:, :FEATURES]
        known = np.sort(mine[~np.isnan(mine)])
        found.append(
            Delay(
                change=name,
                name=kind,
                n=rows,
                window_s=window_s,
                seed=seed,
                before=before,
                within=within,
                features=len(known),
                early=mine.size - len(known),
                found=float(np.isfinite(known).mean()) if len(known) else 0.0,
                median=_median(known),
            )
        )
    return found


def _median(ascending: npt.NDArray[np.float64]) -> float | None:
    """The middle one, the lower of two; None where that is not found."""
    middle = ascending[(len(ascending) - 1) // 2] if len(ascending) else np.inf
    return float(middle) if np.isfinite(middle) else None
