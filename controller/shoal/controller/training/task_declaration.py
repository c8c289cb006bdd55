"""The task of an import: what a person declared, completed by what the outputs allow only.

The word of a task is never guessed: it is proposed. Fields that were left out are taken from the
outputs where one reading fits; where several do, they are asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from shoal import tasks
from shoal.errors import ModelError
from shoal.signature import Signature, Tensor
from shoal.tasks import Task, item_size
from shoal.tensors import Array, Named, size_of

#: How far a sum of probabilities may be from 1.
_SUM = 2e-2
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
#: Least side of a map; classes from which on rows of probabilities are taken for an alphabet.
_SIDE, _ALPHABET = 8, 10
_SETTINGS = "--task-settings FILE"


class Declared(NamedTuple):
    """A task, and how fields that nobody gave were found, a sentence each."""

    task: Task
    notes: list[str]


class Seen(NamedTuple):
    """One output as it was seen on a few items: numbers per item (-1: it varies) and values.

    kind   "probabilities" (one per label, sum 1), "shares" (0 to 1), "numbers", "index" (whole
           numbers), "text", "boxes" (rows of 4), "map", "steps" (rows of probabilities)
    """

    tensor: Tensor
    size: int
    kind: str


def look_at(signature: Signature, answers: Sequence[Named]) -> list[Seen]:
    """What each output may be. answers: outputs of a few items, items first."""
    states = {state.given for state in signature.states}
    return [
        _seen(tensor, [answer[tensor.name] for answer in answers])
        for tensor in signature.outputs
        if tensor.name not in states and all(tensor.name in answer for answer in answers)
    ]


def _seen(tensor: Tensor, arrays: Sequence[Array]) -> Seen:
    size = item_size(tensor)
    found = {size_of(array.shape[1:]) for array in arrays}
    if size < 0 and len(found) == 1:  # an axis whose length the file does not say
        size = found.pop()
    return Seen(tensor, size, _kind_of(arrays, tensor))


def proposals(seen: Sequence[Seen]) -> list[str]:
    """What the outputs look like, a sentence each that says how to claim it."""
    found = []
    for one in seen:
        name, many = one.tensor.name, one.size
        if one.kind == "probabilities":
            found.append(
                f"{name} looks like probabilities of {many} classes: claim it with "
                f"--task classification --labels FILE ({many} lines)"
            )
        elif one.kind == "shares" and many > 1:
            found.append(f"{name} may be {many} labels, each given or not: --task multi-label")
        elif one.kind == "map":
            found.append(f"{name} looks like maps: --task segmentation, or detection by a map")
        elif one.kind == "boxes":
            found.append(f"{name} looks like boxes: --task detection {_SETTINGS}")
        elif one.kind == "steps":
            found.append(f"{name} looks like a text by steps: --task sequence {_SETTINGS}")
    return found


def complete(
    word: str, settings: Mapping[str, Any], labels: Sequence[str], seen: Sequence[Seen]
) -> Declared:
    """The task `word` with the fields that were given, and those that follow from the outputs.

    settings   fields of the task as a person gave them; labels: given beside them, or none

    ModelError, saying what to give, where fields are missing or do not fit.
    """
    fields = dict(settings) | {"task": word}
    if labels:
        fields |= {"alphabet" if word == "sequence" else "labels": list(labels)}
    notes: list[str] = []
    if word in _FITTING:
        _take_output(word, fields, seen, notes)
    for name in ("labels", "alphabet"):
        if name in _fields_of(word) and name not in fields:
            raise _no_labels(word, name, fields, seen)
    if word in ("classification", "multi-label") and "form" not in fields:
        _take_form(fields, seen, notes)
    if word == "regression" and "names" not in fields:
        _take_names(fields, seen, notes)
    if word == "anomaly":
        for name in ("threshold", "higher"):
            if name not in fields:
                raise ModelError(
                    f"task anomaly: {name} is not said",
                    f'{_SETTINGS} with {{"threshold": 0.0, "higher": "odd"}} (or "normal")',
                )
    return Declared(tasks.of_fields(fields), notes)


def check_words(word: str, settings: Mapping[str, Any], labels: Sequence[str]) -> None:
    """ModelError, before anything is run, for settings that no model could have."""
    given = settings.get("task", word)
    if given != word:
        raise ModelError(f"the settings are of task {given!r:.100}, the import is of {word}")
    known = _fields_of(word)
    if unknown := sorted(set(settings) - set(known) - {"task"}):
        raise ModelError(
            f"task {word} has no field {unknown[0]!r:.100}",
            f"there are: {', '.join(known)}" if known else "it has none",
        )
    if labels and not {"labels", "alphabet"} & set(known):
        raise ModelError(f"task {word} has no labels", "leave them out")


def _fields_of(word: str) -> Sequence[str]:
    kind: type[msgspec.Struct] = tasks.KINDS[word]
    return kind.__struct_encode_fields__


#: Kinds of outputs that a task can read, likely ones first.
_FITTING: dict[str, tuple[tuple[str, ...], ...]] = {
    "classification": (("probabilities",), ("numbers", "shares"), ("index", "text")),
    "multi-label": (("shares",), ("probabilities", "numbers")),
    "regression": (("numbers", "shares", "index", "probabilities"),),
    "anomaly": (("numbers", "shares"),),
    "embedding": (("numbers", "shares", "probabilities"),),
    "segmentation": (("map",), ("steps",)),
    "sequence": (("steps",), ("map",)),
}


def _take_output(word: str, fields: dict[str, Any], seen: Sequence[Seen], notes: list[str]) -> None:
    """The only output that fits, where none was named; ModelError for several or none."""
    key = "outputs" if word == "regression" else "output"
    if key in fields:
        return
    count = len(fields.get("labels", ()))
    for kinds in _FITTING[word]:
        fits = [one for one in seen if one.kind in kinds and _counts(word, one, count)]
        if len(fits) == 1:
            name = fits[0].tensor.name
            fields[key] = [name] if key == "outputs" else name
            if len(seen) > 1:
                notes.append(f"task {word} was taken to be about output {name}, the only that fits")
            return
        if fits:
            names = ", ".join(f"{one.tensor.name} {one.tensor.shape_text}" for one in fits)
            example = (
                f'["{fits[0].tensor.name}"]' if key == "outputs" else f'"{fits[0].tensor.name}"'
            )
            raise ModelError(
                f"task {word} may be about several outputs: {names}",
                f'say which: {_SETTINGS} with {{"{key}": {example}}}',
            )
    have = ", ".join(
        f"{one.tensor.name} {one.tensor.datatype} {one.tensor.shape_text}" for one in seen
    )
    labels = f" with {count} labels" if count else ""
    raise ModelError(f"task {word}{labels} fits none of the outputs: {have}", _looks(seen))


def _counts(word: str, one: Seen, labels: int) -> bool:
    if word == "anomaly":
        return one.size in (1, -1)
    if word == "classification" and one.kind in ("index", "text"):
        return one.size == 1
    if word not in ("classification", "multi-label"):
        return True
    if not labels:
        return one.size > 1
    return one.size in (labels, -1) or (word == "classification" and labels == 2 and one.size == 1)


def _take_form(fields: dict[str, Any], seen: Sequence[Seen], notes: list[str]) -> None:
    one = next((one for one in seen if one.tensor.name == fields["output"]), None)
    if one is None:
        return  # the check against the signature names the outputs there are
    word, name = fields["task"], one.tensor.name
    if one.kind == "text":
        fields["form"] = "label"
    elif one.kind == "index":
        raise ModelError(
            f"{name} is a whole number per item: the place of a label, or the label itself",
            f'{_SETTINGS} with {{"form": "index"}} or {{"form": "label"}}',
        )
    elif one.kind == "probabilities" or (one.kind == "shares" and one.size == 1):
        fields["form"] = "probabilities"
        notes.append(f"{name} is read as probabilities: its values are between 0 and 1"
                     + (" and add up to 1" if one.size > 1 else ""))  # fmt: skip
    elif one.kind == "shares" and word == "multi-label":
        fields["form"] = "probabilities"
        notes.append(f"{name} is read as probabilities: its values are between 0 and 1")
    elif one.kind == "shares":
        raise ModelError(
            f"{name} has values between 0 and 1 that do not add up to 1",
            f'{_SETTINGS} with {{"form": "logits"}}, {{"form": "probabilities"}}, or '
            "--task multi-label",
        )
    else:
        fields["form"] = "logits"
        notes.append(
            f"{name} is read as logits: it has values below 0 or above 1, so a "
            f"{'softmax' if word == 'classification' and one.size > 1 else 'sigmoid'} makes "
            "probabilities of them"
        )


def _take_names(fields: dict[str, Any], seen: Sequence[Seen], notes: list[str]) -> None:
    names: list[str] = []
    for name in fields["outputs"]:
        size = next((one.size for one in seen if one.tensor.name == name), 1)
        names += [name] if size == 1 else [f"{name} {at}" for at in range(max(1, size))]
    fields["names"] = names
    notes.append(f"targets are named after the outputs: {', '.join(names[:20])}")


def _no_labels(word: str, name: str, fields: Mapping[str, Any], seen: Sequence[Seen]) -> ModelError:
    output = fields.get("output", "")
    size = next((one.size for one in seen if one.tensor.name == output and one.size > 1), 0)
    many = f"the {size} labels of output {output} are" if size else "its labels are"
    return ModelError(
        f"task {word}: {many if name == 'labels' else 'its alphabet is'} not said",
        f"--labels FILE, one a line in the model's order, or {_SETTINGS}",
    )


def _looks(seen: Sequence[Seen]) -> str:
    return "; ".join(proposals(seen)) or f"name the output: {_SETTINGS}"


# ------------------------------------------------------------------------------------- seeing


def _kind_of(arrays: Sequence[Array], tensor: Tensor) -> str:
    if tensor.datatype == "BYTES":
        return "text"
    if tensor.datatype not in _FLOATS:
        return "index"
    shape = [n for n in arrays[0].shape[1:] if n != 1]
    flat = [array.astype(np.float64) for array in arrays if array.size]
    shares = all(np.isfinite(a).all() and a.min() >= -_SUM and a.max() <= 1 + _SUM for a in flat)
    if len(shape) <= 1:
        rows = [array.reshape(len(array), -1) for array in flat]
        sums = all((np.abs(row.sum(1) - 1) < _SUM).all() for row in rows)
        if shares and sums and shape:
            return "probabilities"
        return "shares" if shares and flat else "numbers"
    if len(shape) == 2 and shape[-1] >= _ALPHABET and shares and _rows_add_up(flat):
        return "steps"
    if len(shape) == 2 and (arrays[0].shape[-1] == 4 or _is_rows_of_boxes(shape)):
        return "boxes"
    if min(shape[-2:]) >= _SIDE:
        return "map"
    return "numbers"


def _is_rows_of_boxes(shape: Sequence[int]) -> bool:
    """Whether many rows of few numbers, or few of many: 8400 boxes of 84."""
    return max(shape) >= 100 and 5 <= min(shape) <= 0.1 * max(shape)


def _rows_add_up(arrays: Sequence[Array]) -> bool:
    return all((np.abs(array.sum(-1) - 1) < _SUM).all() for array in arrays)
