"""Samples for a model of tensors: items that a person uploads, as .npz or .npy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal.controller.data.array_files import LAYOUT
from shoal.controller.data.items import Items
from shoal.controller.data.open_items import open_items
from shoal.controller.releases.records import TensorFact
from shoal.errors import DatasetError, ModelError
from shoal.tensors import DTYPES, Array

#: Bytes of items, and items, at most; of more, so many are taken from all over the file.
LIMIT, MOST_ITEMS = 256 << 20, 256


def read_sample(path: Path, inputs: Sequence[TensorFact]) -> list[dict[str, Array]]:
    """Items of a stored dataset, of a .npz with an array for each of `inputs`, or of a .npy.

    ModelError names the array that is missing, has another number of items or another type.
    """
    try:
        items = open_items(path, "the sample", [one.name for one in inputs], LIMIT)
        return [take(items, int(i), inputs) for i in _spread(items)]
    except DatasetError as error:
        raise ModelError(error.message, error.hint) from error


def _spread(items: Items) -> Array:
    """Numbers of the items that are taken: evenly, as datasets are often sorted by class."""
    size = max(sum(array.nbytes for array in items.read(0).values()), 1)
    count = max(min(len(items), MOST_ITEMS, LIMIT // size), 1)
    return np.linspace(0, len(items) - 1, count).astype(np.int64)


def take(items: Items, index: int, inputs: Sequence[TensorFact]) -> dict[str, Array]:
    """An item's arrays as a model's `inputs`, by name; the only input takes the item's first array.

    Where an input declares one axis more than the item has, and the first may be 1, the item is a
    batch of one.

    DatasetError for an item that cannot be read, ModelError for a type that does not fit.
    """
    arrays = items.read(index)
    if len(inputs) == 1 and inputs[0].name not in arrays:
        arrays = {inputs[0].name: arrays[items.inputs[0]]}
    if missing := [one.name for one in inputs if one.name not in arrays]:
        raise ModelError(
            f"{items.name(index)} has no {missing[0]!r}; it has: {', '.join(items.inputs)}",
            f"give {LAYOUT}",
        )
    return {one.name: _in_batch(_typed(arrays[one.name], one), one) for one in inputs}


def _in_batch(array: Array, fact: TensorFact) -> Array:
    shape = fact.shape
    if shape is None or len(shape) != array.ndim + 1:
        return array
    return array if isinstance(shape[0], int) and shape[0] != 1 else array[np.newaxis]


def _typed(array: Array, fact: TensorFact) -> Array:
    """With the input's dtype, where that changes no value (floats are rounded)."""
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
