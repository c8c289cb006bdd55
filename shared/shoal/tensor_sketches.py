"""What is sketched of a model of tensors: statistics of its inputs and outputs, a column each.

The signature says what each tensor's items are, the release's references name the statistics
("x.brightness"), and device and controller compute them here. Where the outputs have a task, its
columns ("score") take the place of their statistics. No value of an item leaves the
device: columns go into a Sketch, which counts them in bins.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal import item_statistics as statistics
from shoal import task_outputs
from shoal.errors import InputError
from shoal.signature import Signature, Sketched, Tensor
from shoal.sketch import F32, Reference, References
from shoal.tasks import Task, Tensors
from shoal.tensors import Array, Named

#: Columns of a release's inputs and outputs together, and items looked at in a window: a window's
#: two sketches then take at most WINDOW_BYTES.
MOST_COLUMNS, MOST_LOOKED, WINDOW_BYTES = 24, 1_000, 1_200
#: A reference of fewer items is none.
LEAST_ITEMS = 20
#: Tensors of so many numbers an item at most are sketched number by number.
FEW_VALUES = 8
_BY_KIND = {
    "image": statistics.IMAGE,
    "audio": statistics.AUDIO,
    "tokens": statistics.TOKENS,
    "text": statistics.TEXT,
    "numbers": statistics.NUMBERS,
}
_NAMES = frozenset(name for names in _BY_KIND.values() for name in names) | {"value"}
_WORDS = {
    "crossings": "zero crossings", "p0p1": "joint moment 1", "p2p3": "joint moment 2",
    "left-right": "light left to right", "top-bottom": "light top to bottom",
    "middle": "light of the middle", "diagonal": "light along the diagonal",
    "noise": "noise", "blocks": "JPEG blocks", "offset": "direct-current offset",
    "low": "low band", "mid": "middle band", "high": "high band", "unseen": "share of the unseen",
    "zeros": "share of zeros", "missing": "share of missing values", "pixels": "size",
    "largest": "largest value", "words": "number of words", "foreign": "non-ASCII characters",
}  # fmt: skip


class _Part(NamedTuple):
    """Some statistics of one tensor: `at` are their places among all of its kind."""

    name: str
    at: list[int]
    look: Callable[[Array, int], F32]


def statistics_of(tensor: Tensor) -> list[str]:
    """Names of the statistics of a sketched tensor's items, most telling first.

    >>> x = Tensor(name="x", datatype="FP32", shape=["N", 2], batch=0,
    ...            sketched=Sketched(kind="numbers"))
    >>> statistics_of(x)
    ['value0', 'value1']
    """
    kind = _sketched(tensor).kind
    if kind == "numbers" and (few := _few(tensor)):
        return ["value"] if few == 1 else [f"value{i}" for i in range(few)]
    axes = _item_axes(tensor)
    free = any(isinstance(tensor.shape[axis], str) for axis in axes)
    left_out: Sequence[str] = ()
    if kind == "image":
        layout = _sketched(tensor).layout
        channels = tensor.shape[layout.index("C")] if "C" in layout else 1
        has_free_side = any(isinstance(tensor.shape[layout.index(side)], str) for side in "HW")
        left_out = [
            *(() if isinstance(channels, int) and channels >= 3 else statistics.COLOUR),
            *(() if has_free_side else statistics.SIZE),
        ]
    elif kind == "numbers" and not free:
        left_out = ["count"]
    return [name for name in _BY_KIND[kind] if name not in left_out]


class ItemStatistics:
    """Statistics of the items of one release, in the order of its references' features."""

    def __init__(
        self, inputs: list[_Part], outputs: list[_Part], columns: "TaskColumns | None" = None
    ) -> None:
        self._inputs, self._outputs, self._columns = inputs, outputs, columns

    def of(self, feeds: Named, outputs: Named, item: int) -> tuple[F32, F32] | None:
        """Statistics of one item of a run: float32 (F,) of the inputs, and of the outputs.

        item   its place along the batch axes

        None when a tensor that is looked at is not among these: nobody asked for it.
        """
        if any(part.name not in feeds for part in self._inputs):
            return None
        if any(part.name not in outputs for part in self._outputs):
            return None
        if self._columns is None:
            return _row(self._inputs, feeds, item), _row(self._outputs, outputs, item)
        row = self._columns.of(outputs, item)
        return None if row is None else (_row(self._inputs, feeds, item), row)


class TaskColumns:
    """Columns of a task's outputs: task_outputs.output_columns, of one item at a time.

    names   the columns that are kept, in order; empty for all of the first item's
    """

    def __init__(self, task: Task, signature: Signature, names: Sequence[str] = ()) -> None:
        self._task, self._signature, self.names = task, signature, list(names)

    def of(self, outputs: Named, item: int) -> F32 | None:
        """float32 (F,), NaN for an item without the task's shape; None where an output that the
        task reads is missing.
        """
        axes = {tensor.name: tensor.batch for tensor in self._signature.outputs}
        one = {
            name: array if (axis := axes[name]) is None else array.take([item], axis)
            for name, array in outputs.items()
        }
        try:
            found = task_outputs.output_columns(
                self._task, task_outputs.items_first(self._signature, one)
            )
        except KeyError:
            return None
        except InputError:
            found = {}
        self.names = self.names or list(found)
        missing = np.full(1, np.nan, np.float32)
        row = [found.get(name, missing)[:1] for name in self.names]
        return np.concatenate(row) if row else np.empty(0, np.float32)


def item_statistics(
    signature: Signature, references: References, task: Task | None = None
) -> ItemStatistics | None:
    """The statistics that `references` name; None when there are none, or it names others."""
    if not references.features:
        return None
    inputs = _parts(signature.inputs, references.inputs)
    if task is not None and not isinstance(task, Tensors):
        names = [feature.name for feature in references.outputs.features]
        columns = TaskColumns(task, signature, names) if names else None
        return None if inputs is None else ItemStatistics(inputs, [], columns)
    outputs = _parts(signature.outputs, references.outputs)
    return None if inputs is None or outputs is None else ItemStatistics(inputs, outputs)


def in_words(feature: str, what: str) -> str:
    """A feature of a tensor for a person; `what` is "input" or "output".

    >>> in_words("x.brightness", "input"), in_words("probs.value3", "output")
    ('brightness of input x', 'value 3 of output probs')
    """
    if not is_statistic(feature):
        return feature
    tensor, _, name = feature.rpartition(".")
    for stem, words in (("value", "value"), ("bucket", "token bucket"), ("p", "projection")):
        if name.startswith(stem) and name[len(stem) :].isdigit():
            name = f"{words} {name[len(stem) :]}"
    return f"{_WORDS.get(name, name)} of {what} {tensor}"


def is_statistic(feature: str) -> bool:
    """Whether a feature's name is that of a statistic of a tensor.

    >>> is_statistic("x.noise"), is_statistic("score of v1.2"), is_statistic("noise")
    (True, False, False)
    """
    tensor, _, name = feature.rpartition(".")
    return bool(tensor) and (name in _NAMES or (name[:5] == "value" and name[5:].isdecimal()))


def _parts(tensors: Sequence[Tensor], reference: Reference) -> list[_Part] | None:
    """For each tensor, what the reference names of it, in its order; None when it names more."""
    left = [feature.name for feature in reference.features]
    parts = []
    for tensor in tensors:
        if tensor.sketched is None:
            continue
        known = {f"{tensor.name}.{name}": i for i, name in enumerate(_all(tensor))}
        mine = 0
        while mine < len(left) and left[mine] in known:
            mine += 1
        if mine:
            at = [known[name] for name in left[:mine]]
            parts.append(_Part(tensor.name, at, _look(tensor, tensor.sketched)))
        left = left[mine:]
    return None if left else parts


def _row(parts: Sequence[_Part], arrays: Named, item: int) -> F32:
    found = [part.look(arrays[part.name], item)[part.at] for part in parts]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _all(tensor: Tensor) -> Sequence[str]:
    """Names in the order in which they are computed."""
    if _sketched(tensor).kind == "numbers" and _few(tensor):
        return statistics_of(tensor)
    return _BY_KIND[_sketched(tensor).kind]


def _look(tensor: Tensor, sketched: Sketched) -> Callable[[Array, int], F32]:
    """The function that computes the statistics of an item of a tensor."""
    axis, known = tensor.batch, _table(sketched.known)
    low, high = sketched.low, sketched.high

    def item_of(array: Array, item: int) -> Array:
        return array if axis is None else array[(slice(None),) * axis + (item,)]

    if sketched.kind == "image":
        letters = sketched.layout if axis is None else sketched.layout.replace("N", "")
        order = [letters.index(letter) for letter in "NHWC" if letter in letters]
        is_stack = "N" in letters

        def image(array: Array, item: int) -> F32:
            pixels = item_of(array, item).transpose(order)
            if is_stack and not len(pixels):
                pixels = pixels.reshape(1, 0, 0)
            return statistics.image(pixels[0] if is_stack else pixels, low, high)

        return image
    if sketched.kind == "audio":

        def audio(array: Array, item: int) -> F32:
            sound = item_of(array, item)
            length = sound.shape[-1] if sound.size else 0
            return statistics.audio(sound.reshape(-1)[:length], high)

        return audio
    if sketched.kind == "tokens":
        padding = sketched.padding
        return lambda array, item: statistics.tokens(item_of(array, item).ravel(), known, padding)
    if sketched.kind == "text":
        return lambda array, item: statistics.text(
            np.asarray(item_of(array, item)).ravel().tolist(), known
        )
    if _few(tensor):
        return lambda array, item: statistics.single_values(np.asarray(item_of(array, item)))
    return lambda array, item: statistics.numbers(np.asarray(item_of(array, item)))


def _table(known: Sequence[int]) -> npt.NDArray[np.bool_]:
    table = np.zeros(statistics.HASHES, bool)
    table[[one for one in known if 0 <= one < statistics.HASHES]] = True
    return table


def _few(tensor: Tensor) -> int:
    """Numbers of an item, where these are always the same few; 0 else."""
    count = 1
    for axis in _item_axes(tensor):
        length = tensor.shape[axis]
        count = count * length if isinstance(length, int) else 0
    return count if count <= FEW_VALUES else 0


def _item_axes(tensor: Tensor) -> list[int]:
    return [axis for axis in range(len(tensor.shape)) if axis != tensor.batch]


def _sketched(tensor: Tensor) -> Sketched:
    assert tensor.sketched is not None
    return tensor.sketched
