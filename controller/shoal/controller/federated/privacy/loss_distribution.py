"""Privacy loss distribution (PLD) of many rounds: a tight epsilon.

Rényi privacy (`accountant`) bounds moments, and is loose for small sampling rates. Here the loss
log(P/Q) of one round, with a device and without it, is discretised on a grid, and rounds are
convolved. Whatever is not exact makes privacy look worse, never better:

- a cell's mass goes to both its ends so that its mass under P and under Q stays: on a curve of
  delta over e^epsilon, which is convex, these are chords (Doroshenko, Ghazi, Kamath, Kumar and
  Manurangsi, "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions",
  2022);
- what lies above the grid counts as infinite loss, what lies below moves up to it;
- the tails that a circular convolution would fold back, and the rounding of the transform, are
  taken off delta.

    >>> round(epsilon_of_losses([Rounds(noise=1.0, rate=0.001, rounds=10_000)], 1e-6), 2)
    0.56
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
#: Cells per standard deviation of a round's loss; more cost time, fewer cost tightness.
_CELLS = 12
#: Smallest cell: finer ones only improve an epsilon that is tiny anyway.
_FINEST = 1e-4
#: Largest number of cells of the sum's grid; a wider range has larger cells.
_MOST = 2**20
#: Standard deviations of the noise beyond which a round's tail counts as infinite loss.
_REACH = 12.0
#: Share of a cell's mass that moves to its upper end, against rounding.
_UPWARD = 1e-4
#: Upper bound on the rounding of the FFT and its inverse, per step and round.
_ROUNDING = 16 * 2.0**-53
_TILTS = np.geomspace(1e-2, 3e3, 28)
#: A loss beyond this counts as infinite, so that e to the loss is finite.
_LARGEST = 700.0


class Rounds(NamedTuple):
    """Rounds with the same noise multiplier and sampling rate."""

    noise: float
    rate: float
    rounds: int


class _Losses(NamedTuple):
    """Mass at (first + i)·step, and at infinity, together 1; to be convolved `rounds` times."""

    first: int
    mass: F64
    infinite: float
    rounds: int


def epsilon_of_losses(kinds: Iterable[Rounds], delta: float) -> float:
    """Epsilon of all rounds together; infinity where the grid is too coarse."""
    many = [kind for kind in kinds if kind.rounds]
    if not many:
        return 0.0
    return max(_one_way(many, delta, joins) for joins in (False, True))


def _one_way(kinds: Sequence[Rounds], delta: float, joins: bool) -> float:
    """Epsilon in one direction: adding a device (`joins`), or removing it."""
    step = _step(kinds)
    while True:
        parts = [_discretise(kind, step, joins) for kind in kinds]
        low, high = _window(parts, step, delta * 1e-3)
        if high - low < _MOST:
            break
        step *= 2 * (high - low) / _MOST
    infinite = -math.expm1(sum(p.rounds * math.log1p(-p.infinite) for p in parts))
    mass, rounding = _summed(parts, low, high)
    if rounding > delta / 2:
        return math.inf
    return _crossing(mass, low, step, delta * (1 - 1e-3) - infinite - rounding)


def _step(kinds: Sequence[Rounds]) -> float:
    variance = sum(k.rounds * _variance(k) for k in kinds) / sum(k.rounds for k in kinds)
    return max(math.sqrt(variance) / _CELLS, _FINEST)


def _variance(kind: Rounds) -> float:
    """Approximate variance of one round's loss."""
    gaussian = kind.noise**-2
    return min(gaussian, kind.rate**2 * math.expm1(min(gaussian, 600.0)))


def _discretise(kind: Rounds, step: float, joins: bool) -> _Losses:
    """One round's loss on the grid. With `joins`, P is the Gaussian and Q the mixture."""
    noise, rate = kind.noise, kind.rate
    ends = sorted(_loss(noise, rate, x) for x in (-_REACH * noise, 1 + _REACH * noise))
    if joins:
        ends = [-ends[1], -ends[0]]
    first, last = math.floor(ends[0] / step), math.ceil(ends[1] / step)
    edges: F64 = np.arange(first, last + 1, dtype=np.float64) * step
    places = _place(noise, rate, -edges[::-1] if joins else edges)
    without = _between(places / noise)
    mixture = (1 - rate) * without + rate * _between((places - 1) / noise)
    p, q = (without[::-1], mixture[::-1]) if joins else (mixture, without)
    return _ends_of_cells(first, edges, p, q, kind.rounds)


def _ends_of_cells(first: int, edges: F64, p: F64, q: F64, rounds: int) -> _Losses:
    """p, q: mass below the first edge, between edges, and above the last."""
    inner, shadow = p[1:-1], q[1:-1]
    step = edges[1] - edges[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        upper = (1 - shadow / inner * np.exp(edges[:-1])) / -math.expm1(-step)
    upper = inner * np.clip(np.nan_to_num(upper, nan=1.0) + _UPWARD, 0, 1)
    mass = np.zeros(edges.size)
    mass[1:] += upper
    mass[:-1] += inner - upper
    mass[0] += p[0]
    return _Losses(first, mass, float(p[-1]), rounds)


def _loss(noise: float, rate: float, x: float) -> float:
    """log of the mixture's density over the Gaussian's, at x."""
    exponent = (2 * x - 1) / (2 * noise**2)
    return float(
        np.logaddexp(math.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + exponent)
    )


def _place(noise: float, rate: float, losses: F64) -> F64:
    """x with these losses; -inf below the smallest loss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # log(e^loss - (1 - rate)), whatever the loss's size
        over = np.where(
            losses > 30,
            losses + np.log1p(-(1 - rate) * np.exp(-np.maximum(losses, 30))),
            np.log(np.maximum(np.expm1(np.minimum(losses, 30)) + rate, 0)),
        )
    return noise**2 * (over - math.log(rate)) + 0.5


def _between(z: F64) -> F64:
    """Standard normal mass below z[0], between neighbours, above z[-1]; exact in both tails."""
    from scipy.special import ndtr  # half a second, which a process without a private task spares

    below, above = ndtr(z), ndtr(-z)
    inner = np.where(z[:-1] < 0, np.diff(below), -np.diff(above))
    return np.concatenate([below[:1], np.maximum(inner, 0), above[-1:]])


def _window(parts: Sequence[_Losses], step: float, tail: float) -> tuple[int, int]:
    """Cells that contain the sum except for `tail`, by Chernoff bounds on either side."""
    return -_reach(parts, step, tail / 2, -1), _reach(parts, step, tail / 2, +1)


def _reach(parts: Sequence[_Losses], step: float, tail: float, sign: int) -> int:
    best = math.inf
    for tilt in _TILTS:
        moment = sum(p.rounds * _log_moment(p, step, sign * tilt) for p in parts)
        best = min(best, (moment - math.log(tail)) / tilt)
    return math.ceil(best / step)


def _log_moment(part: _Losses, step: float, tilt: float) -> float:
    exponent = tilt * step * (part.first + np.arange(part.mass.size))
    top = float(exponent.max())
    return top + math.log(float(part.mass @ np.exp(exponent - top)) or 5e-324)


def _summed(parts: Sequence[_Losses], low: int, high: int) -> tuple[F64, float]:
    """(mass of the sum on cells low, low + 1, ..., bound on its rounding error)."""
    size = 1 << (high - low).bit_length()
    spectrum = np.ones(size // 2 + 1, np.complex128)
    rounds = 0
    for part in parts:
        folded = np.zeros(size)
        np.add.at(folded, (part.first + np.arange(part.mass.size)) % size, part.mass)
        spectrum *= np.fft.rfft(folded) ** part.rounds
        rounds += part.rounds
    mass = np.roll(np.fft.irfft(spectrum, size), -(low % size))
    wrong = _ROUNDING * (rounds + 2) * math.log2(size) * 2 * float(np.abs(spectrum).sum())
    return np.maximum(mass, 0), wrong


def _crossing(mass: F64, low: int, step: float, delta: float) -> float:
    """Smallest epsilon >= 0 with Σ mass·(1 - e^(epsilon - loss)) <= delta over losses above it."""
    losses = (low + np.arange(mass.size)) * step
    delta -= float(mass[losses > _LARGEST].sum())
    if delta <= 0:
        return math.inf
    finite = (losses > 0) & (losses <= _LARGEST)
    mass, losses = mass[finite], losses[finite]
    heavy = np.cumsum(mass[::-1])[::-1]
    light = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    deltas = np.append(heavy[1:] - np.exp(losses[:-1]) * light[1:], 0.0)  # at each loss
    if not mass.size or heavy[0] - light[0] <= delta:
        return 0.0
    i = int(np.argmax(deltas <= delta))
    return math.log((heavy[i] - delta) / light[i])
