"""The signature of a model by running it: declared shapes are often wrong, so batch axes, states
and real outputs are measured.

Runs foreign models: only in the child process of inspection.py, or in tests.
"""

import itertools
import math
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime

from shoal.controller.releases.records import ModelFacts, TensorFact
from shoal.controller.releases.verdicts import FP32
from shoal.controller.training.io import made_up_inputs, runtime
from shoal.controller.training.io.made_up_inputs import Run
from shoal.errors import InputError, ModelError
from shoal.golden import AIM, MOST_ELEMENTS, GoldenTensors, Vector
from shoal.signature import Signature, State, Tensor
from shoal.tensors import Array, Named, StoredTensor, datatype_of

#: Seconds of one run above which nothing more than that run is measured.
SLOW_S = 1.0
_TIMED_RUNS, _TIMED_S = 20, 0.5
#: Items compared with each other.
_COMPARED = 6
_MOST_VECTORS = 32
#: Largest deviation of items that run together, of what another CPU may cause: other kernels run
#: for other batch sizes. Dynamic quantization, whose scale is of the whole batch, has 30 and more.
_TOGETHER = 10.0
#: Operators whose output is as long as the data says, and not as its input is.
_COUNT_BY_DATA = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


class Measured(NamedTuple):
    """A signature, golden vectors (content of golden.msgpack), notes, and one item's run in ms.

    answers   the outputs of each item
    """

    signature: Signature
    golden: bytes
    notes: list[str]
    run_ms: float
    answers: list[dict[str, Array]]


def measure(
    session: onnxruntime.InferenceSession,
    facts: ModelFacts,
    name: str,
    samples: Sequence[dict[str, Array]] = (),
) -> Measured:
    """The signature of a loaded model.

    samples   inputs of real items, by name; without any, made-up ones for which the model runs

    ModelError when it runs for none of the tried inputs, or fails on a sample.
    """
    run = runner_of(session, name)
    notes: list[str] = []
    start = time.perf_counter()
    if samples:
        items = [dict(sample) for sample in samples]
        answers = [_answer(run, item, i) for i, item in enumerate(items)]
    else:
        items, answers = made_up_inputs.try_out(run, facts, name)
        notes.append(
            "no sample was given: it was run with made-up inputs "
            + ", ".join(f"{k} {list(v.shape)}" for k, v in items[0].items())
            + ", so lengths that it needs may be others"
        )
    slow = (time.perf_counter() - start) / len(answers) > SLOW_S
    random = set() if slow else _random_outputs(run, items[0], answers[0])
    if random:
        notes.append(f"{', '.join(sorted(random))} differs from run to run and is not checked")
    axes, why = (
        ({}, "a run takes over a second") if slow else _batch_axes(run, facts, items, answers)
    )
    if why:
        notes.append(f"requests run one by one: {why}")
    states = [] if slow else _states(run, facts, items[0], answers[0], notes)
    signature = _signature(facts, items[0], answers[0], axes, states, notes)
    certain = [{k: v for k, v in answer.items() if k not in random} for answer in answers]
    golden = _golden(items, certain, name)
    took_ms = _median_ms(run, items[0], slow)
    return Measured(signature, golden.to_bytes(), notes, took_ms, answers)


def compare(
    session: onnxruntime.InferenceSession,
    other: onnxruntime.InferenceSession,
    facts: ModelFacts,
    name: str,
) -> list[str]:
    """A note when two forms of a model could not be compared; ModelError when they differ."""
    run, run_other = runner_of(session, name), runner_of(other, name)
    try:
        items, answers = made_up_inputs.try_out(run, facts, name)
    except ModelError:
        return ["its answers were not compared with those before: no made-up inputs fit"]
    for item, answer in zip(items, answers, strict=True):
        got = run_other(item)
        wrong = [key for key in answer if not _same(answer[key], got[key])]
        if wrong and not _random_outputs(run, item, answer):
            raise ModelError(f"{name}: {wrong[0]} differs once it is raised to another opset")
    return []


def runner_of(session: onnxruntime.InferenceSession, name: str) -> Run:
    """Runs a model for inputs by name; ModelError, naming it `name`, when it fails."""
    outputs = [output.name for output in session.get_outputs()]

    def run(feeds: Named) -> dict[str, Array]:
        try:
            found = session.run(outputs, dict(feeds))
        except Exception as error:
            raise ModelError(f"{name} fails: {runtime.message_of(error)}") from error
        answers = {}
        for output, array in zip(outputs, found, strict=True):
            if not isinstance(array, np.ndarray):
                raise ModelError(f"{name}: output {output!r} is no tensor but {type(array)}")
            answers[output] = array
        return answers

    return run


def _answer(run: Run, item: Named, index: int) -> dict[str, Array]:
    try:
        return run(item)
    except ModelError as error:
        shapes = ", ".join(f"{k} {datatype_of(v)} {list(v.shape)}" for k, v in item.items())
        raise ModelError(
            f"{error.message} (on item {index} of the sample: {shapes})",
            "give --sample a .npz with one array per input, items along a new first axis",
        ) from error


# ---- what is measured


def _random_outputs(run: Run, item: Named, answer: Named) -> set[str]:
    again = run(item)
    return {name for name in answer if not _same(answer[name], again[name])}


def _batch_axes(
    run: Run, facts: ModelFacts, items: Sequence[Named], answers: Sequence[Named]
) -> tuple[dict[str, int], str]:
    """The axis of each tensor that counts items, or why there is none that does.

    Two items stacked along it must answer as each does alone, in either order.
    """
    if not any(_candidates(facts, items[0])):
        return {}, "no input has a free axis of one item"
    pair = _different(items, answers)
    if pair is None:
        return {}, "no two items of one shape had different outputs, to try them together"
    a, b = (items[i] for i in pair)
    alone = [answers[i] for i in pair]
    for axes in _candidates(facts, a):
        stacked = _axes_of_outputs(run, [a, b], axes, alone)
        if stacked and stacked == _axes_of_outputs(run, [b, a, b], axes, alone[::-1]):
            if _follows_data(facts, axes, stacked, answers):
                return {}, "how many answers an item has may depend on its values"
            return {**axes, **stacked}, ""
    return {}, "items that run together answer otherwise than alone"


def _follows_data(
    facts: ModelFacts, axes: Mapping[str, int], stacked: Mapping[str, int], answers: Sequence[Named]
) -> bool:
    """Whether the axes of the outputs may count something else than the items.

    Two of the items would then be told apart wrongly. It is so when an item has none or several of
    them, and not excluded when operators count by the data: unless the file gives these axes the
    name of the inputs' batch axis.
    """
    for answer in answers:
        for name, axis in stacked.items():
            if answer[name].ndim <= axis or answer[name].shape[axis] != 1:
                return True
    if not _COUNT_BY_DATA & facts.operators.keys():
        return False
    inputs = {_declared(one, axes[one.name]) for one in facts.inputs if one.name in axes}
    named = inputs - {"?"}
    return any(_declared(one, stacked[one.name]) not in named for one in facts.outputs)


def _declared(fact: TensorFact, axis: int) -> int | str:
    return fact.shape[axis] if fact.shape is not None and axis < len(fact.shape) else "?"


def _different(items: Sequence[Named], answers: Sequence[Named]) -> tuple[int, int] | None:
    """Two items of one shape, of which most outputs differ; None when all answer alike."""

    def unequal(pair: tuple[int, int]) -> int:
        one, other = (answers[i] for i in pair)
        return sum(not _same(one[name], other[name]) for name in one)

    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(min(len(items), _COMPARED)), 2)
        if all(items[i][name].shape == items[j][name].shape for name in items[i])
    ]
    best = max(pairs, key=unequal, default=None)
    return best if best is not None and unequal(best) else None


def _candidates(facts: ModelFacts, item: Named) -> Iterator[dict[str, int]]:
    """Likely choices first: the first free axis of length 1 of every input, then one other."""
    free = {
        one.name: [
            axis
            for axis, length in enumerate(item[one.name].shape)
            if length == 1 and (one.shape is None or isinstance(one.shape[axis], str))
        ]
        for one in facts.inputs
    }
    first = {name: axes[0] for name, axes in free.items() if axes}
    if not first:
        return
    yield first
    for name, axes in free.items():
        for other in axes[1:]:
            yield {**first, name: other}


def _axes_of_outputs(
    run: Run,
    items: Sequence[Named],
    axes: Mapping[str, int],
    alone: Sequence[Named],
) -> dict[str, int]:
    """The axis of each output that counts the items, which alternate between those of `alone`.

    {} when some output has none, or items answer otherwise than alone.
    """
    feeds = {
        name: np.concatenate([item[name] for item in items], axes[name]) if name in axes else array
        for name, array in items[0].items()
    }
    if any(not _same(items[0][n], i[n]) for n in feeds if n not in axes for i in items):
        return {}  # an input without such an axis must be shared, and differs
    try:
        together = run(feeds)
    except ModelError:
        return {}
    found = {}
    for name, got in together.items():
        parts = [alone[i % 2][name] for i in range(len(items))]
        axis = next((x for x in range(got.ndim) if _is_stack(got, parts, x)), None)
        if axis is None:
            return {}
        found[name] = axis
    return found


def _is_stack(got: Array, parts: Sequence[Array], axis: int) -> bool:
    try:
        wanted = np.concatenate(parts, axis)
    except ValueError:
        return False
    return wanted.shape == got.shape and _deviation(wanted, got) <= _TOGETHER


def _states(
    run: Run, facts: ModelFacts, item: Named, answer: Named, notes: list[str]
) -> list[State]:
    """Outputs that are the next step's inputs: by name, shape and type, and by feeding them back.

    An output that only repeats the input is none.
    """
    states = []
    for one in facts.inputs:
        for output, array in answer.items():
            taken = item[one.name]
            if (
                not taken.ndim
                or one.name == output
                or not _stems(one.name) & _stems(output)
                or (array.shape, array.dtype) != (taken.shape, taken.dtype)
                or _same(array, taken)
            ):
                continue
            try:
                run({**item, one.name: array})
            except ModelError:
                continue
            states.append(State(taken=one.name, given=output, shape=list(taken.shape)))
            notes.append(f"{output} is the next step's {one.name}: its state within a sequence")
            break
    return states


def _stems(name: str) -> set[str]:
    """What a name may be short for: stateN, hn, new_h, present.0.key, hidden_out.

    >>> sorted(_stems("stateN") & _stems("state")), sorted(_stems("hn") & _stems("h"))
    (['state'], ['h'])
    """
    found = {name.lower().split(":")[0]}
    for _ in range(2):
        for text in tuple(found):
            found.add(re.sub(r"^(new|next|present|past|out|in|prev)[._]?", "", text))
            found.add(re.sub(r"_?(out|in|next|new|prev)$", "", text))
            found.add(re.sub(r"(?<=.)_?n$", "", text))
    return found - {""}


def _signature(
    facts: ModelFacts,
    item: Named,
    answer: Named,
    axes: Mapping[str, int],
    states: list[State],
    notes: list[str],
) -> Signature:
    inputs = [_tensor(one, item[one.name], axes.get(one.name)) for one in facts.inputs]
    outputs = []
    for one in facts.outputs:
        array = answer[one.name]
        if why := _contradiction(one, array):
            notes.append(why)
        outputs.append(_tensor(one, array, axes.get(one.name)))
    signature = Signature(
        inputs=inputs,
        outputs=outputs,
        together="batch" if axes else "alone",
        item_bytes=sum(_bytes(array) for array in (*item.values(), *answer.values())),
        states=states,
    )
    signature.check()
    return signature


def _tensor(fact: TensorFact, array: Array, batch: int | None) -> Tensor:
    """The declared shape where it is true of `array`; what is not becomes a free axis."""
    declared = fact.shape if fact.shape is not None and len(fact.shape) == array.ndim else None
    shape: list[int | str] = []
    for axis, length in enumerate(array.shape):
        dim = declared[axis] if declared is not None else "?"
        free = isinstance(dim, str) or dim != length or axis == batch
        text = str(dim) if isinstance(dim, str) and dim != "?" else f"{fact.name}_{axis}"[:200]
        shape.append(text if free else dim)
    return Tensor(name=fact.name, datatype=datatype_of(array), shape=shape, batch=batch)


def _contradiction(fact: TensorFact, array: Array) -> str:
    """What the file declares of an output and running it did not show; "" when they agree."""
    found = datatype_of(array)
    shape = fact.shape
    wrong = shape is not None and (
        len(shape) != array.ndim
        or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=True))
    )
    if found == fact.type and not wrong:
        return ""
    return (
        f"{fact.name} is declared as {fact.type} {shape}, and is {found} {list(array.shape)} "
        "when it runs"
    )


# ---- small things


def _golden(items: Sequence[Named], answers: Sequence[Named], name: str) -> GoldenTensors:
    """As many vectors as AIM has room for, one at least."""
    vectors, size = list[Vector](), 0
    for item, answer in zip(items, answers, strict=True):
        vector = Vector(
            inputs={k: StoredTensor.of(v) for k, v in item.items()},
            outputs={FP32: {k: StoredTensor.of(v, MOST_ELEMENTS) for k, v in answer.items()}},
        )
        size += sum(len(stored.data) for stored in vector.inputs.values())
        size += sum(len(stored.data) for stored in vector.outputs[FP32].values())
        if size > AIM and (vectors or size > 2 * AIM - (1 << 16)):
            break
        vectors.append(vector)
        if len(vectors) == _MOST_VECTORS:
            break
    if not vectors:
        raise ModelError(
            f"{name}: one item takes {size >> 20} MiB, {2 * AIM >> 20} at most fit into the "
            "release's golden vectors",
            "give a --sample with smaller items",
        )
    return GoldenTensors(vectors=vectors)


def _median_ms(run: Run, item: Named, slow: bool) -> float:
    took: list[float] = []
    while len(took) < (1 if slow else _TIMED_RUNS) and sum(took) < _TIMED_S:
        start = time.perf_counter()
        run(item)
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e3


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays agree as two CPUs would."""
    return _deviation(a, b) <= 1.0


def _deviation(a: Array, b: Array) -> float:
    """Of `b` from `a`, where 1.0 is what another CPU may cause."""
    try:
        return StoredTensor.of(a).deviation(b)
    except InputError:
        return math.inf


def _bytes(array: Array) -> int:
    return array.nbytes if array.dtype.kind not in "OSU" else len(StoredTensor.of(array).data)
