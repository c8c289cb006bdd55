"""A tensor's elements as JSON: exact, and nothing that another datatype would make of them.

Floats and integers are numbers, BOOL true or false, BYTES strings; null is NaN.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal.errors import InputError
from shoal.tensors import DTYPES, Array, size_of

_Kinds = set[type]
_NONE = type(None)


def array_of(datatype: str, shape: Sequence[int], data: Any, name: str) -> Array:
    """Array of `shape` from "data", flat or nested; InputError for anything that does not fit.

    >>> array_of("INT64", [1, 2], [[9007199254740993, 2]], "x")
    array([[9007199254740993,                2]])
    """
    if datatype == "FP16":
        raise InputError(
            f"{name!r}: FP16 has no JSON in the protocol", "send its bytes, with binary_data_size"
        )
    flat, kinds = _flat(data, shape, name)
    if len(flat) != size_of(shape):
        raise InputError(f"{name!r}: shape {list(shape)} but {len(flat)} values in data")
    if datatype == "BYTES":
        return _texts(flat, kinds, name).reshape(shape)
    dtype = DTYPES[datatype]
    if datatype == "BOOL":
        _expect(kinds <= {bool}, name, "a BOOL is true or false", flat, {bool})
        return np.array(flat, dtype).reshape(shape)
    if dtype.kind in "iu":
        return _integers(flat, kinds, dtype, datatype, name).reshape(shape)
    return _floats(flat, kinds, dtype, datatype, name).reshape(shape)


def numbers_of(array: Array) -> Any:
    """An array's elements, flat, for orjson: NaN and infinities become null."""
    if array.dtype.kind in "OSU":
        return [str(text) for text in array.ravel()]
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).ravel()


def _flat(data: Any, shape: Sequence[int], name: str) -> tuple[list[Any], _Kinds]:
    """The values in order, and their types. Nested lists have the lengths of `shape`."""
    if not shape and not isinstance(data, list | dict | _NONE):
        return [data], {type(data)}
    if not isinstance(data, list):
        raise InputError(f"{name!r}: data is not a list")
    kinds = set(map(type, data))
    if list not in kinds:
        return data, kinds
    if len(data) != (shape[0] if shape else -1):
        raise InputError(f"{name!r}: data is nested, and not of shape {list(shape)}")
    for length in shape[1:]:
        if kinds != {list} or set(map(len, data)) - {length}:
            raise InputError(f"{name!r}: data is nested, and not of shape {list(shape)}")
        data = list(itertools.chain.from_iterable(data))
        kinds = set(map(type, data))
    return data, kinds


def _integers(
    flat: list[Any], kinds: _Kinds, dtype: np.dtype[Any], datatype: str, name: str
) -> Array:
    _expect(kinds <= {int}, name, f"{datatype} is whole numbers", flat, {int})
    limits = np.iinfo(dtype)
    if flat and not int(limits.min) <= min(flat) <= max(flat) <= int(limits.max):
        outside = next(v for v in flat if not int(limits.min) <= v <= int(limits.max))
        raise InputError(
            f"{name!r}: {outside} is no {datatype}", f"it has {limits.min} to {limits.max}"
        )
    return np.array(flat, dtype)


def _floats(
    flat: list[Any], kinds: _Kinds, dtype: np.dtype[Any], datatype: str, name: str
) -> Array:
    _expect(kinds <= {int, float, _NONE}, name, f"{datatype} is numbers", flat, {int, float, _NONE})
    if _NONE in kinds:
        flat = [math.nan if value is None else value for value in flat]
    with np.errstate(over="ignore"):
        values = np.array(flat, dtype)
    if np.isinf(values).any():
        raise InputError(f"{name!r}: {flat[int(np.isinf(values).argmax())]} is no {datatype}")
    return values


def _texts(flat: list[Any], kinds: _Kinds, name: str) -> Array:
    _expect(kinds <= {str}, name, "BYTES are strings", flat, {str})
    texts = np.empty(len(flat), object)
    texts[:] = flat
    return texts


def _expect(fits: bool, name: str, what: str, flat: list[Any], wanted: _Kinds) -> None:
    """InputError, with the first value of another type, unless it fits."""
    if not fits:
        other = next(value for value in flat if type(value) not in wanted)
        shown = "null" if other is None else repr(other)[:40]
        raise InputError(f"{name!r}: {what}, got {shown}")
