"""Mergeable sketches (histograms) of a model's inputs and outputs: tens of bytes a feature.

A feature's values are counted in the fixed bins of its reference (quantiles of the training data),
so two sketches of one reference merge exactly, by addition, in any order, and hold no raw value.
They also hold count, min, max, mean and M2 (merged by Chan, Golub & LeVeque 1983).
Not KLL: below about 200 rows a KLL blob *is* the raw data (DESIGN section 8).
"""

import functools
import hashlib
import math
import struct
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import SketchError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

#: Quantiles of the edges: deciles nested in twentieths, and the tails.
QUANTILES = (0.001, 0.01, *(round(0.05 * i, 2) for i in range(1, 20)), 0.99, 0.999)
#: Rows buffered for one vectorised pass.
BUFFER_ROWS = 256
MAX_FEATURES, MAX_EDGES = 4_096, 64

_HEAD = struct.Struct("<4sHHQ")
_MAGIC = b"SHS1"


class FeatureReference(msgspec.Struct, frozen=True, kw_only=True):
    """Training distribution of one feature.

    edges    ascending; bin i: edges[i-1] <= x < edges[i]; the first and last bin are out of range
    counts   training rows per bin, then rows with a missing value: len(edges) + 2
    """

    name: str
    edges: list[float]
    counts: list[int]


class Reference(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The training distribution of a model's inputs, or of its outputs."""

    features: list[FeatureReference]

    @functools.cached_property
    def id(self) -> str:
        """Content id: the first 16 hex digits of the SHA-256 of names and edges."""
        edges = [(f.name, f.edges) for f in self.features]
        return hashlib.sha256(msgspec.json.encode(edges)).hexdigest()[:16]

    @functools.cached_property
    def edges(self) -> list[F32]:
        """Edges of each feature as float32."""
        return [np.asarray(f.edges, np.float32) for f in self.features]

    @functools.cached_property
    def table(self) -> F32:
        """Edges as one table, shape (F, longest): short lists are padded with NaN."""
        table = np.full((len(self.edges), max(map(len, self.edges), default=0)), np.nan, np.float32)
        for row, edges in zip(table, self.edges, strict=True):
            row[: len(edges)] = edges
        return table


class References(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Content of reference.json in a bundle: a reference for inputs and one for outputs."""

    inputs: Reference
    outputs: Reference

    @property
    def features(self) -> int:
        """Inputs and outputs that are sketched; 0 for a model of tensors."""
        return len(self.inputs.features) + len(self.outputs.features)

    @functools.cached_property
    def id(self) -> str:
        return hashlib.sha256((self.inputs.id + self.outputs.id).encode()).hexdigest()[:16]


def edges_of(values: F64) -> list[float]:
    """Edges for one numeric feature, from its training `values` of shape (n,), NaN allowed.

    A value shared by many rows (a repeated quantile) gets its own bin, and the last edge lies just
    above the maximum: values above the training range have a bin of their own.
    """
    known = _single(values)
    known = known[np.isfinite(known)]
    if not len(known):
        return [0.0]
    cuts = np.quantile(known, QUANTILES, method="inverted_cdf").astype(np.float32)
    up = np.float32(np.inf)
    atoms = cuts[1:][cuts[1:] == cuts[:-1]]
    top = np.nextafter(known.max(), up)
    inner = np.concatenate([[known.min()], cuts, np.nextafter(atoms, up), [top]])
    edges = np.unique(inner[inner <= top].astype(np.float32))
    return [float(e) for e in edges]


def _single(values: npt.NDArray[np.floating]) -> F32:
    """Values as float32; one that is too large is infinite, and so missing."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def reference_of(columns: dict[str, F64], edges: dict[str, list[float]] | None = None) -> Reference:
    """Reference of named training columns, each of shape (n,); `edges` replace the quantiles."""
    features = []
    for name, values in columns.items():
        cut = (edges or {}).get(name) or edges_of(values)
        single = _single(values)
        missing = ~np.isfinite(single)
        at = np.asarray(cut, np.float32).searchsorted(single[~missing], side="right")
        counts = np.bincount(at, minlength=len(cut) + 1).tolist()
        features.append(
            FeatureReference(name=name, edges=cut, counts=[*counts, int(missing.sum())])
        )
    return Reference(features=features)


class Sketch:
    """Counts and moments of rows in the bins of a reference.

    >>> ref = reference_of({"t": np.arange(1000.0)})
    >>> a, b = Sketch(ref), Sketch(ref)
    >>> a.update(np.array([1.0, 2.0, np.nan], np.float32)[:, None])
    >>> b.update(np.array([3.0], np.float32)); a.merge(b); a.rows, a.missing.tolist()
    (4, [1])

    counts   int64 (F, W): per feature the bins in order, zero padded, W = longest edge list + 1
    missing  int64 (F,): NaN or infinite values
    n        int64 (F,): finite values; mean, m2, low, high: float64 (F,) over these
    rows     all rows
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._edges = reference.edges
        features = len(self._edges)
        width = max((len(e) for e in self._edges), default=0) + 1
        self._counts = np.zeros((features, width), np.int64)
        self._missing = np.zeros(features, np.int64)
        self._n = np.zeros(features, np.int64)
        self._mean, self._m2 = np.zeros(features), np.zeros(features)
        self._low, self._high = np.full(features, np.inf), np.full(features, -np.inf)
        self._rows = 0
        self._buffer = np.empty((BUFFER_ROWS, features), np.float32)
        self._filled = 0

    def update(self, values: F32) -> None:
        """Add rows: (F,) is one row, (n, F) several; any float or integer dtype.

        Raises SketchError when F is not the reference's.
        """
        if values.dtype != np.float32:
            values = _single(values)
        at = self._filled
        if values.ndim == 1:
            if len(values) != len(self._edges):
                raise self._mismatch(values)
            self._buffer[at] = values
            self._filled = at + 1
            if self._filled == BUFFER_ROWS:
                self._flush()
            return
        rows = len(values)
        if values.ndim != 2 or values.shape[1] != len(self._edges):
            raise self._mismatch(values)
        if rows >= BUFFER_ROWS:
            self._count(np.ascontiguousarray(values))
            return
        if at + rows > BUFFER_ROWS:
            self._flush()
            at = 0
        self._buffer[at : at + rows] = values
        self._filled = at + rows

    def merge(self, other: "Sketch") -> None:
        """Add another sketch of the same reference; SketchError if it is of another."""
        if other.reference is not self.reference and other.reference.id != self.reference.id:
            raise SketchError(
                f"sketch of reference {other.reference.id} merged into {self.reference.id}"
            )
        self._flush()
        other._flush()
        self._counts += other._counts
        self._missing += other._missing
        self._rows += other._rows
        self._fold(other._n, other._mean, other._m2, other._low, other._high)

    @property
    def rows(self) -> int:
        return self._rows + self._filled

    @property
    def counts(self) -> I64:
        self._flush()
        return self._counts

    @property
    def missing(self) -> I64:
        self._flush()
        return self._missing

    @property
    def n(self) -> I64:
        self._flush()
        return self._n

    @property
    def mean(self) -> F64:
        self._flush()
        return self._mean

    @property
    def m2(self) -> F64:
        self._flush()
        return self._m2

    @property
    def low(self) -> F64:
        self._flush()
        return self._low

    @property
    def high(self) -> F64:
        self._flush()
        return self._high

    def to_bytes(self) -> bytes:
        """Serialize: header, varint counts, then four moments a feature as float32."""
        self._flush()
        counted = np.concatenate([self._counts, self._missing[:, None], self._n[:, None]], axis=1)
        moments = np.stack([self._mean, self._m2, self._low, self._high], axis=1)
        head = _HEAD.pack(_MAGIC, len(self._edges), self._counts.shape[1], self._rows)
        packed = _varints(counted.ravel())
        return (
            head
            + struct.pack("<I", len(packed))
            + packed
            + _single(moments).astype("<f4").tobytes()
        )

    @classmethod
    def from_bytes(cls, reference: Reference, data: bytes) -> "Sketch":
        """Deserialize a sketch of `reference`; SketchError for anything else."""
        sketch = cls(reference)
        features, width = sketch._counts.shape
        if len(data) < _HEAD.size + 4:
            raise SketchError(f"sketch of {len(data)} bytes is cut short")
        magic, f, w, rows = _HEAD.unpack_from(data)
        (size,) = struct.unpack_from("<I", data, _HEAD.size)
        start = _HEAD.size + 4
        if magic != _MAGIC or (f, w) != (features, width):
            raise SketchError(
                f"sketch has {f} features of {w} bins, "
                f"reference {reference.id} has {features} of {width}"
            )
        if len(data) != start + size + 16 * features:
            raise SketchError(f"sketch of {len(data)} bytes does not have the length it claims")
        counted = _unvarint(data[start : start + size], features * (width + 2))
        table = counted.reshape(features, width + 2)
        sketch._counts, sketch._missing, sketch._n = (
            table[:, :width].copy(),
            table[:, width].copy(),
            table[:, width + 1].copy(),
        )
        if rows > 2**53 or (sketch._counts.sum(1) != sketch._n).any():
            raise SketchError("sketch's bins do not add up to its rows")
        moments = np.frombuffer(data, "<f4", 4 * features, start + size).reshape(features, 4)
        with np.errstate(invalid="ignore"):  # of damaged bytes, a NaN that signals
            sketch._mean, sketch._m2, sketch._low, sketch._high = moments.astype(
                np.float64
            ).T.copy()
        sketch._rows = rows
        return sketch

    def _mismatch(self, values: F32) -> SketchError:
        return SketchError(
            f"rows of shape {values.shape} for a reference of {len(self._edges)} features"
        )

    def _flush(self) -> None:
        filled, self._filled = self._filled, 0
        if filled:
            self._count(self._buffer[:filled])

    def _count(self, rows: F32) -> None:
        known = np.isfinite(rows)
        whole = bool(known.all())
        n = np.full(len(self._edges), len(rows)) if whole else known.sum(0)
        self._rows += len(rows)
        self._missing += len(rows) - n
        ordered = _by_feature(rows if whole else np.where(known, rows, np.nan))
        ordered.sort(axis=1)  # NaN last
        self._bin(ordered, n)
        x = (rows if whole else np.where(known, rows, 0)).astype(np.float64)
        mean = _sums(x) / np.maximum(n, 1)
        x -= mean
        if not whole:
            np.putmask(x, ~known, 0.0)
        np.square(x, out=x)
        low = np.where(n > 0, ordered[:, 0], np.inf)
        high = np.where(n > 0, ordered[np.arange(len(n)), n - 1], -np.inf)
        self._fold(n, mean, _sums(x), low, high)

    def _bin(self, ordered: F32, n: I64) -> None:
        """Count `ordered` (F, rows), each feature ascending, its first n[j] finite.

        numpy sorts float32 with SIMD; looking up the few edges in the sorted values is four times
        faster than looking up each value among the edges.
        """
        below = np.empty((len(n), self._counts.shape[1] + 1), np.int64)
        below[:, 0], below[:, -1] = 0, n
        positions = below[:, 1:-1]
        for row, edges, values in zip(positions, self.reference.table, ordered, strict=True):
            row[:] = values.searchsorted(edges)
        self._counts += below[:, 1:] - below[:, :-1]

    def _fold(self, n: I64, mean: F64, m2: F64, low: F64, high: F64) -> None:
        total = self._n + n
        safe = np.maximum(total, 1)
        delta = mean - self._mean
        self._m2 += m2 + delta * delta * (self._n * n / safe)
        self._mean += np.where(n > 0, delta * (n / safe), 0.0)
        self._n = total
        np.minimum(self._low, low, out=self._low)
        np.maximum(self._high, high, out=self._high)


def merge_bytes(older: bytes, newer: bytes) -> bytes:
    """Merge two serialized sketches of one reference, without the reference.

    The caller ensures that both have the same reference. Raises SketchError when the shapes
    differ.
    """
    if len(older) < _HEAD.size:
        raise SketchError(f"sketch of {len(older)} bytes is cut short")
    _, features, width, _ = _HEAD.unpack_from(older)
    if features > MAX_FEATURES or not 1 <= width <= MAX_EDGES + 1:
        raise SketchError(f"sketch claims {features} features of {width} bins")
    shape = FeatureReference(name="", edges=[0.0] * (width - 1), counts=[])
    reference = Reference(features=[shape] * features)
    merged = Sketch.from_bytes(reference, older)
    merged.merge(Sketch.from_bytes(reference, newer))
    return merged.to_bytes()


def _by_feature(rows: F32) -> F32:
    """A copy of rows (n, F) as (F, n), read in pieces of 32 kB that fit an L1 cache."""
    n, features = rows.shape
    transposed = np.empty((features, n), np.float32)
    step = max(64, 8_192 // max(1, features))
    for i in range(0, n, step):
        transposed[:, i : i + step] = rows[i : i + step].T
    return transposed


def _sums(x: F64) -> F64:
    """Sum of each column of x (n, F), row after row: as `x.sum(0)`, with less overhead a row."""
    sums: F64 = np.einsum("ij->j", x)
    return sums


def _varints(values: I64) -> bytes:
    """LEB128 of each value, vectorised over the number of bytes a value needs."""
    if not len(values):
        return b""
    left = values.astype(np.uint64)
    columns = []
    more = np.ones(len(left), bool)
    while more.any():
        byte = (left & np.uint64(127)).astype(np.uint8)
        left = left >> np.uint64(7)
        columns.append((byte | np.where(left > 0, 128, 0).astype(np.uint8), more.copy()))
        more &= left > 0
    table = np.stack([c for c, _ in columns], axis=1)
    used = np.stack([m for _, m in columns], axis=1)
    return table[used].tobytes()


def _unvarint(data: bytes, expected: int) -> I64:
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if len(ends) != expected or (len(raw) and raw[-1] >= 128):
        raise SketchError(f"sketch holds {len(ends)} counts, {expected} expected")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > 7:
        raise SketchError("sketch holds a count of 2**49 or more")
    shift = (np.arange(len(raw)) - np.repeat(starts, lengths)) * 7
    parts = (raw & 127).astype(np.int64) << shift
    return np.add.reduceat(parts, starts) if len(starts) else np.zeros(0, np.int64)


class Latency:
    """Histogram of latencies, four bins per octave: each bin is 19 % wide.

    Bin i holds 2**(i/4) <= microseconds < 2**((i+1)/4); the last bin holds everything from 14 s on.

    >>> h = Latency(); h.add(100e-6); h.add(100e-6); round(h.quantile_us(0.5))
    99
    """

    BINS = 96

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self.counts = [*counts[: self.BINS], *([0] * (self.BINS - len(counts)))]

    def add(self, seconds: float, times: int = 1) -> None:
        us = seconds * 1e6
        at = int(4 * math.log2(us)) if us > 1 else 0
        self.counts[at if at < self.BINS else self.BINS - 1] += times

    def merge(self, other: Sequence[int]) -> None:
        for i, count in enumerate(other[: self.BINS]):
            self.counts[i] += count

    def quantile_us(self, q: float) -> float:
        """Geometric middle of the bin that holds quantile `q`; NaN when empty."""
        total = sum(self.counts)
        if not total:
            return math.nan
        seen = 0
        for i, count in enumerate(self.counts):
            seen += count
            if seen >= q * total:
                return float(2 ** ((i + 0.5) / 4))
        return math.nan

    def trimmed(self) -> list[int]:
        """Counts without trailing zeros, for the wire."""
        last = max((i for i, c in enumerate(self.counts) if c), default=-1)
        return self.counts[: last + 1]
