"""Items of tensors are sketched in a share of the model's time, evenly, and after the answer."""

import contextlib

import msgspec
import numpy as np
import pytest

import tensor_models
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.item_sampling import SHARE, ItemSampler
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.serving.tensor_requests import TensorRequest, of_arrays
from shoal.controller.training.tensor_references import sketching_of
from shoal.sketch import Sketch
from shoal.tensor_sketches import MOST_LOOKED
from shoal.tensors import Array, Named
from shoal.wire import Health

RNG = np.random.default_rng(5)


def looked_at(
    sampler: ItemSampler, runs: int, items: int, run_s: float, look_s: float
) -> tuple[list[int], float]:
    """Numbers of the items that are looked at in `runs` runs, and the seconds that this takes."""
    places, spent = [], 0.0
    for run in range(runs):
        sampler.offer(ENGINE, {}, {}, items, run_s)
        while (chosen := sampler.take()) is not None:
            places += [run * items + item for item in chosen.items]
            spent += look_s * len(chosen.items)
            sampler.count(len(chosen.items), look_s * len(chosen.items))
    return places, spent


#: Seconds of a run, items in it, and seconds of a look.
PACES = {
    "a tiny model and images": (20e-6, 1, 1e-3),
    "a model as slow as a look": (1e-3, 1, 1e-3),
    "a slow model": (0.5, 1, 1e-3),
    "a slow board": (0.1, 1, 20e-3),
    "batches": (5e-3, 64, 50e-6),
    "a look that takes longer than is ever saved up": (0.4, 1, 0.2),
}


@pytest.mark.parametrize("pace", PACES)
def test_looking_takes_at_most_its_share_of_the_models_time(pace: str) -> None:
    run_s, items, look_s = PACES[pace]
    runs = max(200, int(120 * look_s / (SHARE * run_s)))
    sampler = ItemSampler()
    places, spent = 0, 0.0
    for _ in range(4):
        found, took = looked_at(sampler, runs // 4, items, run_s, look_s)
        sampler.begin_window(0)
        places, spent = places + len(found), spent + took
    assert places
    assert spent <= SHARE * run_s * runs + 2 * look_s
    if places < runs * items and places < 4 * MOST_LOOKED:
        assert spent >= 0.7 * SHARE * run_s * runs


def test_of_cameras_that_take_turns_each_is_looked_at() -> None:
    places, _ = looked_at(ItemSampler(), 8_000, 1, 5e-3, 1e-3)
    each = np.bincount(np.array(places) % 4, minlength=4) / len(places)
    assert len(places) < 8_000
    assert each == pytest.approx([0.25] * 4, abs=0.05)


def test_a_window_is_looked_at_evenly_from_its_beginning_to_its_end() -> None:
    sampler = ItemSampler()
    first, _ = looked_at(sampler, 20_000, 1, 1.0, 1e-3)
    assert len(first) == MOST_LOOKED
    sampler.begin_window(20_000)
    second, _ = looked_at(sampler, 20_000, 1, 1.0, 1e-3)
    assert len(second) == pytest.approx(MOST_LOOKED, rel=0.02)
    assert np.histogram(second, 5, (0, 20_000))[0] == pytest.approx([MOST_LOOKED / 5] * 5, rel=0.1)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Session:
    """Means of each channel, in 20 ms of a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def run(self, rows: Array) -> Array:
        raise AssertionError("its requests are tensors")

    def run_tensors(self, feeds: Named, outputs: list[str]) -> list[Array]:
        self._clock.now += 0.020
        means = feeds["picture"].mean((2, 3), dtype=np.float32)
        found = {"means": means, "best": means.argmax(1)}
        return [found[name] for name in outputs]


def picture(brightness: int = 0) -> dict[str, Array]:
    return {"picture": RNG.integers(0, 100, (1, 3, 32, 32)).astype(np.uint8) + np.uint8(brightness)}


def pictures(clock: Clock, version: int = 1) -> Engine:
    """A release of images of 32 x 32 with a reference."""
    made = tensor_models.picture()
    signature = msgspec.structs.replace(
        made.signature,
        inputs=[tensor_models.tensor("picture", "UINT8", ["N", 3, 32, 32])],
    )
    session, items = Session(clock), [picture() for _ in range(40)]
    answers = [dict(zip(("means", "best"), session.run_tensors(item, ["means", "best"]),
                        strict=True)) for item in items]  # fmt: skip
    sketching = sketching_of(signature, items, answers, {})
    return tensor_models.engine_of(sketching.signature, session, version, sketching.references)


ENGINE = pictures(Clock())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serving(clock: Clock) -> ServedModel:
    served = ServedModel("any", clock=clock, timer=clock, lock=contextlib.nullcontext())
    served.swap(pictures(clock), Health())
    return served


def requests(serving: ServedModel, count: int, *outputs: str) -> list[TensorRequest]:
    assert serving.engine is not None
    return [of_arrays(serving.engine, picture(), outputs, None) for _ in range(count)]


def test_a_window_says_how_many_of_its_items_were_looked_at(serving: ServedModel) -> None:
    assert serving.engine is not None
    for _ in range(50):
        serving.infer_tensors(picture())
    report = serving.collect(Health())
    assert report is not None
    sketch = Sketch.from_bytes(serving.engine.references.inputs, report.inputs)
    assert report.rows == 50
    assert 20 <= sketch.rows <= 50
    names = [feature.name for feature in serving.engine.references.inputs.features]
    brightness = names.index("picture.brightness")
    assert sketch.mean[brightness] == pytest.approx(49.5, abs=2)
    outputs = Sketch.from_bytes(serving.engine.references.outputs, report.outputs)
    assert outputs.rows == sketch.rows


def test_requests_are_answered_before_their_items_are_looked_at(serving: ServedModel) -> None:
    assert serving.engine is not None
    for _ in range(3):
        assert len(serving.infer_requests(serving.engine, requests(serving, 20))) == 20
    assert serving.has_items_to_look_at
    unseen = serving.collect(Health())
    assert unseen is not None
    assert (unseen.rows, unseen.inputs) == (60, b"")
    serving.look()
    assert not serving.has_items_to_look_at


def test_items_of_a_release_that_is_swapped_meanwhile_are_not_counted_for_the_next(
    serving: ServedModel, clock: Clock
) -> None:
    assert serving.engine is not None
    for _ in range(3):
        serving.infer_requests(serving.engine, requests(serving, 20))
    serving.swap(pictures(clock, version=2), Health())
    serving.look()
    report = serving.collect(Health())
    assert report is not None
    assert report.inputs == b""


def test_a_request_for_other_outputs_alone_is_not_looked_at(serving: ServedModel) -> None:
    for _ in range(50):
        serving.infer_tensors(picture(), ["best"])
    report = serving.collect(Health())
    assert report is not None
    assert (report.rows, report.inputs) == (50, b"")
