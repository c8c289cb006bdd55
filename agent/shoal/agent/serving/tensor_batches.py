"""Requests of one release of tensors as one run: stacked along the batch axes, and split again."""

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.errors import ModelError
from shoal.signature import Signature
from shoal.tensors import Array, Named


def items_of(signature: Signature, feeds: Named) -> int:
    """Items in a request: the length of the batch axis; 1 where there is none."""
    for tensor in signature.inputs:
        if tensor.batch is not None and tensor.name in feeds:
            return feeds[tensor.name].shape[tensor.batch]
    return 1


def joins(signature: Signature, one: Named, other: Named) -> bool:
    """Whether two requests may run as one.

    Only as the signature says; with one shape but for the batch axis, on which all inputs of a
    request agree; and with the same bytes in each input that has no batch axis.
    """
    if signature.together != "batch" or one.keys() != other.keys():
        return False
    counts = items_of(signature, one), items_of(signature, other)
    if 0 in counts:
        return False
    for tensor in signature.inputs:
        if tensor.name not in one:
            continue
        a, b = one[tensor.name], other[tensor.name]
        if tensor.batch is None:
            if not _same(a, b):
                return False
        elif (a.shape[tensor.batch], b.shape[tensor.batch]) != counts or _rest(
            a, tensor.batch
        ) != _rest(b, tensor.batch):
            return False
    return True


def stack(signature: Signature, requests: Sequence[Named]) -> dict[str, Array]:
    """The inputs of requests that join, as one request's."""
    first = requests[0]
    axes = {tensor.name: tensor.batch for tensor in signature.inputs}
    return {
        name: array
        if (axis := axes[name]) is None
        else np.concatenate([feeds[name] for feeds in requests], axis=axis)
        for name, array in first.items()
    }


def split(
    signature: Signature, outputs: Mapping[str, Array], counts: Sequence[int]
) -> list[dict[str, Array]]:
    """The outputs of each of the requests that ran as one, with `counts` items.

    ModelError when an output has another number of items.
    """
    axes = {tensor.name: tensor.batch for tensor in signature.outputs}
    ends = np.cumsum(counts)
    parts: dict[str, list[Array]] = {}
    for name, array in outputs.items():
        axis = axes[name]
        if axis is None or axis >= array.ndim or array.shape[axis] != ends[-1]:
            raise ModelError(f"output {name!r} of shape {list(array.shape)} for {ends[-1]} items")
        parts[name] = np.split(array, ends[:-1], axis)
    return [{name: found[i] for name, found in parts.items()} for i in range(len(counts))]


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bytes; NaN equals itself."""
    if a.shape != b.shape:
        return False
    return bool((a == b).all()) if a.dtype.kind == "O" else a.tobytes() == b.tobytes()


def _rest(array: Array, axis: int) -> tuple[int, ...]:
    return array.shape[:axis] + array.shape[axis + 1 :]
