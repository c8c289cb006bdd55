"""References of a release of tensors: the statistics of a sample's items and of their outputs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from shoal.controller.training import tensor_kinds
from shoal.signature import Signature, Tensor
from shoal.sketch import FeatureReference, Reference, References, reference_of
from shoal.tasks import Task, Tensors
from shoal.tensor_sketches import (
    LEAST_ITEMS,
    MOST_COLUMNS,
    MOST_LOOKED,
    TaskColumns,
    item_statistics,
    statistics_of,
)
from shoal.tensors import Named

NONE = References(inputs=Reference(features=[]), outputs=Reference(features=[]))
#: Columns kept for the outputs, where these have so many.
_OF_OUTPUTS = 8
#: Of a sketch: header, moments of a feature; counts from this one on take two bytes.
_HEAD_BYTES, _MOMENT_BYTES, _ONE_BYTE = 20, 16, 128


class Sketching(NamedTuple):
    """What a device will look at: the signature says it, `references` are what it looked like."""

    signature: Signature
    references: References
    notes: list[str]


def sketching_of(
    signature: Signature,
    items: Sequence[Named],
    answers: Sequence[Named],
    said: Mapping[str, str],
    task: Task | None = None,
) -> Sketching:
    """What is sketched of a model's inputs and outputs, from the items of a sample.

    items, answers   inputs and outputs of each; none when no sample was given
    said             kinds of inputs, as a person says: tensor_kinds.parse_kinds
    task             what the outputs mean; its columns take the place of their statistics

    InputError for an input that there is not, ModelError for one that is not what was said.
    """
    tensor_kinds.check_names(said, [tensor.name for tensor in signature.inputs])
    if len(items) < LEAST_ITEMS:
        given = f"of {len(items)} items" if items else "was not given"
        note = (
            "nothing is sketched, so nothing is tested for drift: that needs a reference, made of "
            f"a sample of {LEAST_ITEMS} items at least; the sample {given}"
        )
        return Sketching(signature, NONE, [note])
    made, notes = tensor_kinds.with_kinds(signature, items, answers, said)
    if task is not None and not isinstance(task, Tensors):
        made, names = _with_task(made, task, answers)
        if not names[1]:
            notes.append(f"outputs are not sketched: the sample's have no {task.word}")
    else:
        names = _columns(made)
    empty = [Reference(features=[_unknown(name) for name in side]) for side in names]
    looked = item_statistics(made, References(inputs=empty[0], outputs=empty[1]), task)
    if looked is None:
        return Sketching(
            made, NONE, [*notes, "nothing is sketched: no input or output is looked at"]
        )
    rows = [looked.of(*pair, 0) for pair in zip(items, answers, strict=True)]
    sides = []
    for at, side in enumerate(names):
        table = np.stack([row[at] for row in rows if row is not None]).astype(np.float64)
        sides.append(reference_of({name: table[:, i] for i, name in enumerate(side)}))
    references = References(inputs=sides[0], outputs=sides[1])
    count = references.features
    notes.append(
        f"{count} statistics of an item are sketched, about {window_bytes(references)} bytes a "
        f"window; reference: the {len(items)} items of the sample"
    )
    if len(items) < 10 * LEAST_ITEMS:
        notes.append(f"a reference of {len(items)} items is coarse: give 200 or more")
    return Sketching(made, references, notes)


def window_bytes(references: References) -> int:
    """Bytes of a window's two sketches of MOST_LOOKED items that are like the reference's."""
    total = 0
    for reference in (references.inputs, references.outputs):
        features = reference.features
        width = max((len(feature.counts) for feature in features), default=0)
        long = 0
        for feature in features:
            share = MOST_LOOKED / max(1, sum(feature.counts))
            long += sum(count * share >= _ONE_BYTE for count in feature.counts)
        total += _HEAD_BYTES + len(features) * (width + 2 + _MOMENT_BYTES) + long
    return total


def _with_task(
    signature: Signature, task: Task, answers: Sequence[Named]
) -> tuple[Signature, list[list[str]]]:
    """The signature without kinds of outputs, and names of the columns of inputs and outputs."""
    outputs = [msgspec.structs.replace(tensor, sketched=None) for tensor in signature.outputs]
    made = msgspec.structs.replace(signature, outputs=outputs)
    columns = TaskColumns(task, made)
    columns.of(answers[0], 0)
    inputs = _pick(made.inputs, MOST_COLUMNS - min(_OF_OUTPUTS, len(columns.names)))
    return made, [inputs, columns.names[: MOST_COLUMNS - len(inputs)]]


def _columns(signature: Signature) -> list[list[str]]:
    """Names of the columns of inputs and outputs, MOST_COLUMNS at most."""
    of_outputs = _sum_of(signature.outputs)
    inputs = _pick(signature.inputs, MOST_COLUMNS - min(_OF_OUTPUTS, of_outputs))
    return [inputs, _pick(signature.outputs, MOST_COLUMNS - len(inputs))]


def _sum_of(tensors: Sequence[Tensor]) -> int:
    return sum(len(statistics_of(tensor)) for tensor in tensors if tensor.sketched is not None)


def _pick(tensors: Sequence[Tensor], room: int) -> list[str]:
    """Names of statistics in `room` columns: tensors take turns, each begins with its first."""
    wanted = {t.name: statistics_of(t) for t in tensors if t.sketched is not None}
    taken = dict.fromkeys(wanted, 0)
    while room > 0 and any(taken[name] < len(wanted[name]) for name in wanted):
        for name, names in wanted.items():
            if room > 0 and taken[name] < len(names):
                taken[name] += 1
                room -= 1
    return [f"{name}.{one}" for name, names in wanted.items() for one in names[: taken[name]]]


def _unknown(name: str) -> FeatureReference:
    return FeatureReference(name=name, edges=[0.0], counts=[0, 0, 0])
