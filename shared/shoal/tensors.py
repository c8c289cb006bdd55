"""Tensors by name: the datatypes of the Open Inference Protocol v2, their bytes, and how far two
tensors differ.

Bytes are those of the protocol's binary tensor extension: little-endian, row by row; an element of
BYTES is its length (uint32) and its bytes.
Source: github.com/kserve/open-inference-protocol, Tensor Data Types; Triton's
extension_binary_data.md.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.errors import InputError

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
Array = npt.NDArray[Any]
#: Tensors by name.
Named = Mapping[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}  # fmt: skip
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

#: onnxruntime's kernels add up in another order for tensors that do not begin at such an address,
#: and numpy's own arrays always do.
ALIGNMENT = 16
#: Most axes of a tensor: what onnxruntime's own kernels take at the most, and more than models use.
RANK = 32
_LENGTH = struct.Struct("<I")
#: Largest difference between two CPUs, as a share of the tensor's largest value: twelve times what
#: onnxruntime's optimisations change in eight float32 models, five times in float16.
TOLERANCES = {"FP16": 5e-3, "FP32": 1e-4, "FP64": 1e-9}
#: Share of the elements of any other datatype that may differ.
MOST_UNEQUAL = 0.01


def datatype_of(array: Array) -> Datatype:
    """The protocol's name of an array's dtype; InputError for a dtype that it does not have.

    >>> datatype_of(np.zeros(3, np.float32)), datatype_of(np.array(["a"]))
    ('FP32', 'BYTES')
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    found = _DATATYPES.get(array.dtype.newbyteorder("<"))
    if found is None:
        raise InputError(f"dtype {array.dtype} is none of the protocol's: {', '.join(DTYPES)}")
    return found  # type: ignore[return-value]


def to_bytes(array: Array) -> bytes:
    """The elements of `array` as the protocol's bytes.

    >>> to_bytes(np.array([1, 2], np.int16)), to_bytes(np.array(["ab", ""], object))
    (b'\\x01\\x00\\x02\\x00', b'\\x02\\x00\\x00\\x00ab\\x00\\x00\\x00\\x00')
    """
    if array.dtype.kind not in "OSU":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = []
    for element in array.ravel():
        encoded = element if isinstance(element, bytes) else str(element).encode()
        parts += [_LENGTH.pack(len(encoded)), encoded]
    return b"".join(parts)


def from_bytes(
    datatype: str, shape: Sequence[int], data: bytes | memoryview, name: str = "tensor"
) -> Array:
    """Array of `shape` from the protocol's bytes, without a copy where they lie at ALIGNMENT.

    BYTES become an object array of str (onnxruntime's strings are UTF-8). InputError, naming
    `name`, when the bytes are not as many as the shape needs.
    """
    count = size_of(shape)
    if datatype == "BYTES":
        return _shaped(_texts(data, count, name), shape, name)
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{name!r}: shape {list(shape)} of {datatype} is {count * dtype.itemsize} bytes, "
            f"got {len(data)}"
        )
    if datatype == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
        raise InputError(f"{name!r}: a BOOL is a byte of 0 or 1")
    values = np.frombuffer(data, dtype)
    is_aligned = values.ctypes.data % ALIGNMENT == 0
    return _shaped(values if is_aligned else values.copy(), shape, name)


def size_of(shape: Sequence[int]) -> int:
    """Number of elements of a shape.

    >>> size_of([2, 3]), size_of([]), size_of([4, 0])
    (6, 1, 0)
    """
    count = 1
    for length in shape:
        count *= length
    return count


def _shaped(values: Array, shape: Sequence[int], name: str) -> Array:
    try:
        return values.reshape(shape)
    except ValueError:  # of no elements, with axes whose product no array has
        raise InputError(f"{name!r}: no array has shape {list(shape)!s:.200}") from None


def _texts(data: bytes | memoryview, count: int, name: str) -> Array:
    # Every element has 4 bytes at least: checked before an array of `count` is allocated.
    if count * _LENGTH.size > len(data):
        raise InputError(f"{name!r}: {len(data)} bytes are less than {count} elements of BYTES")
    texts, at = np.empty(count, object), 0
    for i in range(count):
        if at + _LENGTH.size > len(data):
            raise InputError(f"{name!r}: the bytes end at element {i} of {count}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise InputError(f"{name!r}: element {i} has {length} bytes, {len(data) - at} follow")
        try:
            texts[i] = str(data[at : at + length], "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{name!r}: element {i} is not UTF-8") from None
        at += length
    if at != len(data):
        raise InputError(f"{name!r}: {len(data) - at} bytes follow the last element")
    return texts


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tensor in a file: `data` are the protocol's bytes.

    picked   data holds these many elements at equal distances, of a tensor that is larger; 0: all
    tolerance  most that another CPU may cause in this one, as measured; 0: that of its datatype
    """

    datatype: Datatype
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=RANK)]
    data: bytes
    picked: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    tolerance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    @classmethod
    def of(cls, array: Array, most: int = 0, tolerance: float = 0.0) -> "StoredTensor":
        """`array`, or `most` of its elements where it has more (0: all of them)."""
        picked = most if most and array.size > most else 0
        kept = array.ravel()[_places(array.size, picked)] if picked else array
        return cls(
            datatype=datatype_of(array),
            shape=list(array.shape),
            data=to_bytes(kept),
            picked=picked,
            tolerance=tolerance,
        )

    def array(self, name: str = "tensor") -> Array:
        """The elements: of `shape`, or (picked,). InputError when they do not fit."""
        return from_bytes(
            self.datatype, [self.picked] if self.picked else self.shape, self.data, name
        )

    def deviation(self, got: Array) -> float:
        """How far `got` is from this tensor, where 1.0 is the most that another CPU may cause.

        Infinite for another shape or datatype. Floats are compared by the largest difference as a
        share of this tensor's largest value, over its `tolerance` or TOLERANCES; NaN and infinities
        by place. Others by the share of unequal elements, over its `tolerance` or MOST_UNEQUAL.

        >>> StoredTensor.of(np.float32([1, 2])).deviation(np.float32([1, 2.0002])) < 1.0 + 1e-2
        True
        """
        if list(got.shape) != self.shape or datatype_of(got) != self.datatype:
            return float("inf")
        if not got.size:
            return 0.0
        want = self.array()
        if self.picked:
            got = got.ravel()[_places(got.size, self.picked)]
        tolerance = self.tolerance or TOLERANCES.get(self.datatype, MOST_UNEQUAL)
        if self.datatype not in TOLERANCES:
            return float((got != want).mean()) / tolerance
        return _difference(got.astype(np.float64), want.astype(np.float64)) / tolerance


def _places(size: int, count: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, size - 1, count).astype(np.int64)


def _difference(got: npt.NDArray[np.float64], want: npt.NDArray[np.float64]) -> float:
    finite = np.isfinite(want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    if not same[~finite].all() or not np.isfinite(got[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(want[finite]).max()) or 1.0
    return float(np.abs(got[finite] - want[finite]).max()) / largest
