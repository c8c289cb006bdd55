"""Inputs for a model of which nothing is known but what its file declares: lengths are tried until
it runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from shoal.controller.releases.records import ModelFacts, TensorFact
from shoal.errors import ModelError
from shoal.tensors import DTYPES, Array, Named

#: Lengths tried for free axes, and ranks for inputs without a declared shape. 32 is a small image,
#: a short text and a few steps; 1 is the last resort, where many models answer a constant.
LADDER = (32, 8, 16, 48, 64, 96, 128, 160, 224, 256, 320, 416, 512, 640, 1024, 2048, 4096, 2, 1)
_RANKS = (2, 1, 0, 3, 4)
#: Bytes of one made-up input, at most.
_MOST_BYTES = 64 << 20
#: Standard deviations of made-up numbers: trees have thresholds anywhere.
_SCALES = (0.5, 2.0, 30.0)
_WORDS = ("a", "the", "pump", "0", "12.5", "ja")

Run = Callable[[Named], dict[str, Array]]


def try_out(
    run: Run, facts: ModelFacts, name: str
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Three made-up items for which the model runs, and its answers."""
    first: ModelError | None = None
    for shapes in _shapes(facts.inputs):
        items = [_item(facts.inputs, shapes, seed) for seed in range(3)]
        try:
            return items, [run(item) for item in items]
        except ModelError as error:
            first = first or error
    why = f": {first.message}" if first else ""
    raise ModelError(
        f"{name} runs with none of the made-up inputs that were tried{why}",
        "give real ones: --sample FILE.npz with one array per input, items along a new first axis",
    )


def _shapes(inputs: Sequence[TensorFact]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try: free axes at each length of the ladder, axes that may count items at 1.

    These are first the first axes and all of their names; then the first free axis of each input;
    then none. Axes of one name have one length.
    """
    unknown = any(one.shape is None for one in inputs)
    named = {one.shape[0] for one in inputs if one.shape and one.shape[0] != "?"}
    seen = set()
    for rank in _RANKS if unknown else (0,):
        for length in LADDER if _has_free_axis(inputs) or rank else (1,):
            for counts in (_is_first_axis, _is_first_free_axis, None):
                shapes = {
                    one.name: (length,) * rank
                    if one.shape is None
                    else tuple(
                        d
                        if isinstance(d, int)
                        else 1
                        if counts is not None and (d in named or counts(one.shape, axis))
                        else length
                        for axis, d in enumerate(one.shape)
                    )
                    for one in inputs
                }
                key = tuple(shapes.values())
                small = all(4 * _count(shape) <= _MOST_BYTES for shape in key)
                if small and key not in seen:
                    seen.add(key)
                    yield shapes


def _is_first_axis(shape: Sequence[int | str], axis: int) -> bool:
    return axis == 0


def _is_first_free_axis(shape: Sequence[int | str], axis: int) -> bool:
    return not any(isinstance(d, str) for d in shape[:axis])


def _has_free_axis(inputs: Sequence[TensorFact]) -> bool:
    return any(isinstance(d, str) for one in inputs for d in one.shape or ())


def _count(shape: Sequence[int]) -> float:
    return float(np.prod([float(n) for n in shape]))


def _item(
    inputs: Sequence[TensorFact], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, Array]:
    """Small numbers: 0 and 1 are indices, lengths and flags that nearly every model takes."""
    rng = np.random.default_rng(seed)
    item = {}
    for one in inputs:
        dtype, shape = DTYPES[one.type], shapes[one.name]
        if one.type == "BYTES":
            item[one.name] = np.array(rng.choice(_WORDS, shape), object)
        elif dtype.kind == "f":
            item[one.name] = np.asarray(rng.normal(0, _SCALES[seed % 3], shape), dtype)
        else:
            item[one.name] = np.asarray(rng.integers(0, 2, shape), dtype)
    return item
