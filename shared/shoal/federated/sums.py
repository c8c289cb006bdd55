"""Reproducible sum of vectors: bit by bit the same in any order of the addends.

Floating-point addition depends on the order. So every addend is first split into two multiples of
fixed grid steps, which add without rounding as long as a sum stays within 2**53 steps. This is
pre-rounding (Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", 2013) with fixed
bins.

    >>> import numpy as np
    >>> total = ExactSum(1)
    >>> for x in (1e9, 1e-7, -1e9):
    ...     total.add(np.array([x], np.float64))
    >>> float(total.value()[0]).__round__(12)
    1e-07
"""

import math
import struct
import zlib

import numpy as np
import numpy.typing as npt

from shoal.errors import InputError

F64 = npt.NDArray[np.float64]
#: Steps of the two grids: an addend loses at most 2**-45.
COARSE, FINE = 2.0**-8, 2.0**-44
#: Adding and subtracting it rounds to a multiple of the step.
_COARSELY, _FINELY = 1.5 * 2**52 * COARSE, 1.5 * 2**52 * FINE
#: Bound on the sum of the addends' largest elements, and on their number.
LARGEST = 2**43
MOST = 2**18
_MAGIC = b"shs1"
#: magic, elements, vectors added, reach
_HEAD = struct.Struct("<4sIIQ")
_PACKED = 1
#: Elements at a time: three such buffers fit a small cache.
_PART = 1 << 14


class ExactSum:
    """Sum of weighted vectors of one length; 16 bytes an element, however many are added.

    size    elements P
    count   vectors added
    """

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._coarse, self._fine = np.zeros(size), np.zeros(size)
        self._reach = 0

    def add(self, vector: npt.NDArray[np.floating], weight: float = 1.0) -> None:
        """Add weight·vector, shape (P,); the product is taken in float64.

        Raises InputError, and adds nothing, for another length, non-finite values, or when the sum
        might leave the exact range.
        """
        self._reach, self.count = self.reach_with(vector, weight), self.count + 1
        for start in range(0, self.size, _PART):
            part = slice(start, min(start + _PART, self.size))
            addend = np.multiply(vector[part], weight, dtype=np.float64)
            coarse = (addend + _COARSELY) - _COARSELY
            self._coarse[part] += coarse
            addend -= coarse
            self._fine[part] += (addend + _FINELY) - _FINELY

    def merge(self, other: "ExactSum") -> None:
        """Add another sum, of a site or another process."""
        if other.size != self.size:
            raise _of_another_length(other.size, self.size)
        self._reach = _within(self._reach + other._reach, self.count + other.count)
        self.count += other.count
        self._coarse += other._coarse
        self._fine += other._fine

    def to_bytes(self) -> bytes:
        """Serialize the exact sum, compressed, to merge it elsewhere."""
        head = _HEAD.pack(_MAGIC, self.size, self.count, self._reach)
        grids = np.stack([self._coarse, self._fine]).astype("<f8")
        # Byte planes: the exponents' bytes are similar and compress well.
        return head + zlib.compress(grids.view(np.uint8).reshape(-1, 8).T.tobytes(), _PACKED)

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> "ExactSum":
        """Deserialize; InputError for another size, or values off the grids."""
        made = cls(size)
        try:
            magic, there, made.count, made._reach = _HEAD.unpack_from(data)
            packed = zlib.decompressobj()
            raw = packed.decompress(data[_HEAD.size :], 16 * size + 1)
            grids = np.frombuffer(raw, np.uint8).reshape(8, -1).T.copy().view("<f8").reshape(2, -1)
        except (struct.error, zlib.error, ValueError) as error:
            raise InputError("not a sum of updates", "send it again") from error
        if magic != _MAGIC or there != size or grids.shape != (2, size):
            raise _of_another_length(there, size)
        made._coarse, made._fine = grids[0].astype(np.float64), grids[1].astype(np.float64)
        _within(made._reach, made.count)
        made._check_grids()
        return made

    def _check_grids(self) -> None:
        """Raise InputError for values off the grids or over the claimed bound: they would round."""
        for grid, step in ((self._coarse, COARSE), (self._fine, FINE)):
            steps = grid / step
            if not np.isfinite(steps).all() or (steps != np.rint(steps)).any():
                raise InputError("a sum of updates that is off its grids", "send it again")
        most = self._reach + 1
        if np.abs(self._coarse).max(initial=0) > most or (
            np.abs(self._fine).max(initial=0) > self.count * COARSE
        ):
            raise InputError("a sum of updates that is larger than it claims", "send it again")

    @property
    def reach(self) -> int:
        """Sum of the largest elements of the added vectors."""
        return self._reach

    def value(self) -> F64:
        """The sum, rounded once; float64 (P,)."""
        return self._coarse + self._fine

    def reach_with(self, vector: npt.NDArray[np.floating], weight: float = 1.0) -> int:
        """The reach after adding this vector; raises InputError as `add`."""
        if vector.shape != (self.size,):
            raise _of_another_length(vector.size, self.size)
        largest = max(-float(vector.min()), float(vector.max())) if self.size else 0.0
        if not math.isfinite(largest * weight):
            raise InputError("an update holds NaN or infinity", "leave it out of the round")
        return _within(self._reach + math.ceil(largest * abs(weight)), self.count + 1)


def _within(reach: int, count: int) -> int:
    if reach > LARGEST or count > MOST:
        raise InputError(
            f"{count} vectors of together up to {reach}: {MOST} and {LARGEST} are summed exactly",
            "clip the updates, or bound the examples that a device may claim",
        )
    return reach


def _of_another_length(have: int, need: int) -> InputError:
    return InputError(f"a vector of {have} elements, {need} needed", "is it another model's?")
