"""Numbers that stand for something else: markers of missing values, another unit, gross errors."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from shoal.controller.data.records import TableFinding

F64 = npt.NDArray[np.float64]
#: Makes a finding of a check: its name, columns, mask of rows (n,), words, hint.
Make = Callable[..., TableFinding]
#: Numbers that programs write where they have none.
SENTINELS = frozenset(
    {
        -9.0, -99.0, -999.0, -9999.0, -99999.0, -999999.0, 99.0, 999.0, 9999.0, 99999.0,
        999999.0, -32768.0, 32767.0, 65535.0, -2147483648.0, 2147483647.0, 4294967295.0,
        -999.9, -999.25, 999.9, 9999.9, -1e30, 1e30,
    }
)  # fmt: skip
#: Factors between units that are mixed up.
FACTORS = {
    10.0: "10", 100.0: "100 (a share and %)", 1000.0: "1000 (milli, kilo)", 1e6: "a million",
    25.4: "25.4 (inch and mm)", 3.6: "3.6 (m/s and km/h)", 2.20462: "2.2 (kg and lb)",
    6.894757: "6.9 (psi and kPa)", 14.5038: "14.5 (bar and psi)", 60.0: "60 (minutes and seconds)",
}  # fmt: skip
#: A marker, or another unit, is at least so many values.
_LEAST = 3
#: Values that quantiles are taken of: evenly from all rows.
_SAMPLE = 65_536
#: Share of the rows from which values in another unit are found, and how exact the factor is.
_SHARE, _EXACT = 0.005, 0.15
#: Least gap between two units, as the logarithm of a ratio.
_LEAST_GAP = 0.3
#: Distinct values up to which a column is a code and has no unit.
_CODES = 20
#: Spreads from the median beyond which a value is a gross error, and the most of them.
_FAR, _FEW = 20.0, 0.005
#: Skewness beyond which a few values decide a scale.
_SKEWED = 10.0


def number_findings(name: str, values: F64, make: Make) -> Iterator[TableFinding]:
    """Findings about a column, shape (n,), with NaN where a value is missing."""
    finite = np.isfinite(values)
    if not finite.any():
        return
    marked = np.zeros(len(values), bool)
    for value in (values[finite].min(), values[finite].max()):
        rows = values == value
        if float(value) in SENTINELS and rows.sum() >= _LEAST and _is_apart(values, rows, finite):
            marked |= rows
            yield make(
                "sentinel", [name], rows, f"{value:g} is likely a marker of a missing value",
                "leave those cells empty, and add it again",
            )  # fmt: skip
    usual = finite & ~marked
    sample = np.sort(_sampled(values[usual]))
    if len(sample) < _CODES:
        return
    if len(np.unique(sample)) <= _CODES:
        yield from _near_constant(name, values, usual, make)
        return
    units = list(_other_unit(name, values, usual, sample, make))
    yield from units
    yield from [] if units else _gross_errors(name, values, usual, sample, make)


def _sampled(values: F64) -> F64:
    return values[:: max(len(values) // _SAMPLE, 1)]


def _is_apart(values: F64, rows: npt.NDArray[np.bool_], finite: npt.NDArray[np.bool_]) -> bool:
    """Whether a value is farther from all others than they are from one another."""
    others = values[finite & ~rows]
    if not len(others):
        return False
    low, high, value = others.min(), others.max(), values[rows][0]
    gap = low - value if value < low else value - high
    sample = _sampled(others)
    spread = float(np.subtract(*np.quantile(sample, [0.99, 0.01])))
    return bool(gap > 0.5 * spread and gap > 0)


def _near_constant(
    name: str, values: F64, usual: npt.NDArray[np.bool_], make: Make
) -> Iterator[TableFinding]:
    distinct, counts = np.unique(values[usual], return_counts=True)
    most = int(counts.argmax())
    rest = usual & (values != distinct[most])
    if len(distinct) > 1 and counts[most] >= 0.999 * counts.sum():
        what = f"{distinct[most]:g} in all rows but these"
        yield make("skew", [name], rest, what, "too few rows to learn from")


def _other_unit(
    name: str, values: F64, usual: npt.NDArray[np.bool_], sample: F64, make: Make
) -> Iterator[TableFinding]:
    """Two clusters with nothing between them, one a known factor of the other."""
    magnitudes = np.sort(np.abs(sample))
    n = len(magnitudes)
    least = max(int(_SHARE * n), _LEAST)
    inner = magnitudes[least - 1 : n - least + 1]
    if len(inner) < 2 or inner[0] <= 0:
        return
    logs = np.log(inner)
    cut = int(np.diff(logs).argmax())
    threshold = float(np.exp((logs[cut] + logs[cut + 1]) / 2))  # their product may be 0 or inf
    low, high = magnitudes[magnitudes < threshold], magnitudes[magnitudes >= threshold]
    gap = float(logs[cut + 1] - logs[cut])
    if not len(low) or not len(high) or np.quantile(low, 0.1) <= 0:  # zeros are of every unit
        return
    factor = float(np.median(high) / np.median(low))
    named = _units(float(np.median(low)), float(np.median(high)))
    spreads = [float(np.log(np.quantile(s, 0.9) / np.quantile(s, 0.1))) for s in (low, high)]
    if not named or gap < max(_LEAST_GAP, *spreads):
        return
    small = len(low) < len(high)
    fewer = np.abs(values) < threshold if small else np.abs(values) >= threshold
    word = "smaller" if small else "larger"
    what = f"about {factor:.3g} times {word} than the others, as if in another unit: {named}"
    yield make("unit", [name], usual & fewer, what, "bring them to one unit, and add it again")


def _units(low: float, high: float) -> str:
    """What may be mixed up, by the medians of two clusters; "" when no known units are so far.

    >>> _units(0.02, 20.4), _units(21, 294), _units(20, 68), _units(1, 5)
    ('1000 (milli, kilo)', 'degrees C and K', 'degrees C and F', '')
    """
    if abs(high - low - 273.15) < 10:
        return "degrees C and K"
    if abs(high - (1.8 * low + 32)) < 0.05 * high and low > 5:
        return "degrees C and F"
    return next((w for f, w in FACTORS.items() if abs(high / low / f - 1) < _EXACT), "")


def _gross_errors(
    name: str, values: F64, usual: npt.NDArray[np.bool_], sample: F64, make: Make
) -> Iterator[TableFinding]:
    low, middle, high = np.quantile(sample, [0.01, 0.5, 0.99])
    spread = float(high - low)
    if spread <= 0:
        return
    far = usual & (np.abs(values - middle) > _FAR * spread)
    if far.any() and far.sum() <= max(_FEW * len(values), 1):
        what = f"farther than {_FAR:g} times the usual range, {low:.4g} to {high:.4g}"
        yield make("range", [name], far, what, "measured wrongly, or a marker? correct them")
        return
    scaled = (sample - sample.mean()) / (sample.std() or 1.0)
    skewness = float((scaled**3).mean())
    if abs(skewness) > _SKEWED:
        tail = usual & (values > high if skewness > 0 else values < low)
        end = high if skewness > 0 else low
        what = f"skewness {skewness:.1f}: these rows reach far beyond {end:.4g}"
        yield make("skew", [name], tail, what, "its logarithm may be the better feature")
