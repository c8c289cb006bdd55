"""Samples for a model of tensors: items that a person uploads, as .npz or .npy."""

import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal.controller.releases.records import TensorFact
from shoal.errors import ModelError
from shoal.tensors import DTYPES, Array

#: Bytes of a file's arrays once unpacked, and items, at most; of more items the first are taken.
LIMIT, MOST_ITEMS = 256 << 20, 256
#: RuntimeError: encrypted, or compressed in a way that Python does not know.
_UNREADABLE = (
    ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError
)  # fmt: skip
_LAYOUT = "an array for each input, named as the input is, with the items along its first axis"


def read_sample(path: Path, inputs: Sequence[TensorFact]) -> list[dict[str, Array]]:
    """Items of a .npz with an array for each of `inputs`, or of a .npy for the only one.

    ModelError names the array that is missing, has another number of items or another type.
    """
    arrays = _arrays(path, inputs)
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1 or not all(counts):
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ModelError(f"the sample's arrays have no items in common: {found}", f"give {_LAYOUT}")
    return [
        {name: _item(array, i) for name, array in arrays.items()}
        for i in range(min(counts.pop(), MOST_ITEMS))
    ]


def _arrays(path: Path, inputs: Sequence[TensorFact]) -> dict[str, Array]:
    try:
        _check_size(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if len(inputs) != 1:
                names = ", ".join(one.name for one in inputs)
                raise ModelError(f"a .npy has one array, the inputs are {names}", "give a .npz")
            return {inputs[0].name: _typed(loaded, inputs[0])}
        with loaded as arrays:
            missing = [one.name for one in inputs if one.name not in arrays.files]
            if missing:
                raise ModelError(
                    f"the sample has no array {missing[0]!r}; it has: "
                    f"{', '.join(arrays.files[:20]) or 'none'}",
                    f"give {_LAYOUT}",
                )
            return {one.name: _typed(arrays[one.name], one) for one in inputs}
    except _UNREADABLE as error:
        raise ModelError(
            f"the sample cannot be read: {error!s:.200}",
            f"write it with numpy.savez: {_LAYOUT}; texts as an array of str, not of object",
        ) from error


def _check_size(path: Path) -> None:
    """ModelError for a file that would unpack to more than LIMIT bytes."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    if size > LIMIT:
        raise ModelError(
            f"the sample has {size >> 20} MiB, {LIMIT >> 20} at most are read", "give fewer items"
        )


def _typed(array: Array, fact: TensorFact) -> Array:
    """With the input's dtype, where that changes no value (floats are rounded)."""
    if not isinstance(array, np.ndarray):
        raise ModelError(f"the sample's {fact.name!r} is no array", f"give {_LAYOUT}")
    if not array.ndim:
        raise ModelError(f"the sample's array {fact.name!r} has no axis", f"give {_LAYOUT}")
    wanted = DTYPES[fact.type]
    if fact.type == "BYTES":
        if array.dtype.kind not in "SUO":
            raise ModelError(f"the sample's array {fact.name!r} is {array.dtype}, not texts")
        decoded = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        return decoded.astype(object)
    if array.dtype == wanted:
        return array
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ModelError(
            f"the sample's array {fact.name!r} is {array.dtype}, the input is {fact.type}",
            f"write it as {wanted}",
        )
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if not _fits(array, converted):
        raise ModelError(
            f"the sample's array {fact.name!r} has values that are no {fact.type}",
            f"write it as {wanted}",
        )
    return converted


def _fits(array: Array, converted: Array) -> bool:
    if converted.dtype.kind == "f":
        return bool((np.isfinite(converted) | ~np.isfinite(array)).all())
    limits = np.iinfo(converted.dtype)
    least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
    return int(limits.min) <= least <= most <= int(limits.max)


def _item(array: Array, index: int) -> Array:
    return np.asarray(array[index], array.dtype)
