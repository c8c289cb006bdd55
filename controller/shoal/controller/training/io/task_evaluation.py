"""Measures a model of tensors by its task, item by item.

Runs foreign models: only in the child process of inspection.py, or in tests.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shoal import task_outputs
from shoal.controller.data import splits
from shoal.controller.data.items import Items
from shoal.controller.data.open_items import open_items
from shoal.controller.releases.records import ModelFacts, TaskReport
from shoal.controller.training.io import samples, task_metrics
from shoal.controller.training.io.made_up_inputs import Run
from shoal.controller.training.io.truths import Truth, truths_of
from shoal.controller.training.task_declaration import Declared
from shoal.errors import DatasetError, InputError, ModelError
from shoal.signature import Signature
from shoal.tasks import Detection, Tensors
from shoal.tensors import Named

#: Items that are measured, and seconds that running them is expected to take, at most.
MOST_ITEMS, MOST_S = 20_000, 30.0
_UNMEASURED = "nothing was measured: {}"


class Model(NamedTuple):
    """A loaded model: its run for one item, its signature, facts, and one item's run in ms."""

    run: Run
    signature: Signature
    facts: ModelFacts
    run_ms: float


class _Skipped:
    """Items that could not be read or run."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""


def report_of(model: Model, declared: Declared, sample: Path | None) -> TaskReport:
    """The report of a task that fits the model's signature.

    sample   items with labels; without labels, or None: nothing is measured, and that is said

    ModelError where labels or outputs do not fit the task, or no item can be run.
    """
    task, notes = declared.task, list(declared.notes)
    if isinstance(task, Tensors):
        return TaskReport(meaning=task, notes=notes)
    if sample is None:
        why = _UNMEASURED.format("no sample was given")
        return TaskReport(meaning=task, notes=[*notes, why])
    try:
        items = open_items(sample, "the sample", _wanted(sample, model), samples.LIMIT)
        if not items.label_kind:
            why = _UNMEASURED.format('the sample has no array "label"')
            return TaskReport(meaning=task, given=len(items), notes=[*notes, why])
        truths = truths_of(task, items)
    except DatasetError as error:
        raise ModelError(error.message, error.hint) from error
    chosen, more = _chosen(items, model.run_ms)
    skipped = _Skipped()
    found = task_metrics.measure(task, _answers(model, items, chosen, truths.of, skipped))
    notes += [*truths.notes, *more]
    if skipped.count:
        notes.append(f"{skipped.count} items could not be measured, the first: {skipped.first}")
    if isinstance(task, Detection) and not found.metrics:
        notes.append(_UNMEASURED.format("no item has a box"))
    main = task_metrics.MAIN[type(task)]
    return TaskReport(
        meaning=task, metrics=found.metrics, main=main if main in found.metrics else "",
        items=found.items, given=len(items), guessing=found.guessing, notes=notes,
    )  # fmt: skip


def _wanted(sample: Path, model: Model) -> list[str]:
    return [one.name for one in model.facts.inputs]


def _chosen(items: Items, run_ms: float) -> tuple[Sequence[int], list[str]]:
    """Numbers of the items to measure, spread over all that are held back, and notes."""
    group = items.groups()
    held = None if group is None else splits.parts_of(group)
    numbers = np.arange(len(items)) if held is None else np.flatnonzero(held)
    what = "items" if held is None else "held-back items"
    most = int(min(MOST_ITEMS, max(1, 1_000 * MOST_S / max(run_ms, 1e-3))))
    notes = []
    if held is None:
        notes.append(
            f"measured on {min(most, len(numbers))} items: that the model was not trained on them "
            "is not known here"
        )
    if len(numbers) > most:
        notes.append(f"{most} of {len(numbers)} {what} were measured, evenly spread")
        numbers = numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]
    return numbers.tolist(), notes


def _answers(
    model: Model,
    items: Items,
    chosen: Sequence[int],
    truth_of: Callable[[int], Truth],
    skipped: _Skipped,
) -> Iterator[tuple[Named, Truth]]:
    for index in chosen:
        try:
            feeds = samples.take(items, index, model.facts.inputs)
            outputs = task_outputs.items_first(model.signature, model.run(feeds))
            truth = truth_of(index)
        except (DatasetError, ModelError, InputError) as error:
            skipped.count += 1
            skipped.first = skipped.first or error.message
            continue
        yield outputs, truth
    if skipped.count == len(chosen):
        raise ModelError(f"no item could be measured: {skipped.first}")
