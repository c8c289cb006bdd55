"""Images, audio, tokens and texts: what a change of the plant does to their statistics is found at
60 items a window, and another sample of the same pool is not."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from shoal.controller.host.windows import StoredWindow
from shoal.controller.monitoring import drift_state, histograms, sequential, surprises
from shoal.controller.monitoring.drift_outcomes import Known
from shoal.controller.monitoring.drift_state import State
from shoal.controller.monitoring.surprises import Outcome, Rules
from shoal.controller.training.tensor_references import (
    Sketching,
    sketching_of,
    window_bytes,
)
from shoal.signature import Signature, Tensor
from shoal.sketch import Sketch
from shoal.tensor_sketches import (
    MOST_COLUMNS,
    MOST_LOOKED,
    WINDOW_BYTES,
    ItemStatistics,
    item_statistics,
)
from shoal.tensors import Array

#: Items of a window, windows before the first look, and windows in which a change is found.
ITEMS, FIRST, WITHIN = 60, 120, 6
RULES = Rules(first=FIRST, cycle=False)
#: A budget of one false alarm a day in a fleet of a hundred devices at ten sites.
LOG_A = sequential.log_threshold(1.0, subjects=110, features=18, window_s=60.0)
Make = Callable[[np.random.Generator], Array]
Change = Callable[[Array, np.random.Generator], Array]


class Watched:
    """One input of a model under drift detection; its output is the input's mean."""

    def __init__(self, make: Make, datatype: str, said: str = "") -> None:
        self.make, self.rng = make, np.random.default_rng(8)
        shape = ["N", *make(np.random.default_rng(0)).shape]
        y = Tensor(name="y", datatype="FP32", shape=["N", 1], batch=0)
        x = Tensor(name="x", datatype=datatype, shape=shape, batch=0)  # type: ignore[arg-type]
        signature = Signature(inputs=[x], outputs=[y], together="batch")
        sample = [self.item(make(self.rng)) for _ in range(300)]
        kinds = {"x": said} if said else {}
        self.sketching: Sketching = sketching_of(signature, *zip(*sample, strict=True), kinds)
        looked = item_statistics(self.sketching.signature, self.sketching.references)
        assert looked is not None
        self.looked: ItemStatistics = looked
        self.names = histograms.names_of(self.sketching.references)
        self.known = Known.of(self.sketching.references)
        features, bins = self.known.training.shape
        layout = sequential.device_layout(features, bins, RULES)
        state = drift_state.empty(layout)
        pool = self.rows(None, 20 * ITEMS)
        for _ in range(FIRST):
            drawn = self.rng.integers(len(pool), size=ITEMS)
            state, _ = self.after(state, [pool[i] for i in drawn])
        self.usual: State = state

    def item(self, array: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        level = float(array.mean()) if array.dtype.kind in "fiu" else 0.0
        return {"x": array[None]}, {"y": np.array([[level]], np.float32)}

    def rows(self, change: Change | None, count: int) -> list[tuple[Array, Array]]:
        """Statistics of `count` items, of inputs and outputs."""
        found = []
        for _ in range(count):
            array = self.make(self.rng)
            if change is not None:
                array = change(array, self.rng).astype(array.dtype)
            row = self.looked.of(*self.item(array), 0)
            assert row is not None
            found.append(row)
        return found

    def sketches(self, rows: Sequence[tuple[Array, Array]]) -> list[bytes]:
        references = self.sketching.references
        sides = [Sketch(references.inputs), Sketch(references.outputs)]
        for row in rows:
            for side, values in zip(sides, row, strict=True):
                side.update(values)
        return [side.to_bytes() for side in sides]

    def after(self, state: State, rows: Sequence[tuple[Array, Array]]) -> tuple[State, Outcome]:
        """The device's state after a window of these items, and what it said."""
        inputs, outputs = self.sketches(rows)
        at = 60.0 * (state.seen + 1)
        stored = StoredWindow(
            state.seen + 1, "press-1", "b", 1, "s", "m", "m@1", "r", at, 60.0, at, len(rows), 0, 0,
            0, 0, 1, [], {}, inputs, outputs,
        )  # fmt: skip
        windows = histograms.windows_of(self.sketching.references, [stored], np.array([at]))
        [state], outcome = sequential.observe(
            [state], windows, self.known.training, RULES, sequential.Fleet.unknown(), LOG_A
        )
        return state, outcome

    def found(self, change: Change) -> set[str]:
        """Names of the statistics that alarm within WITHIN windows."""
        self.rng = np.random.default_rng(60)
        rows, state, found = self.rows(change, 2 * ITEMS), self.usual, set()
        for _ in range(WITHIN):
            self.rng.shuffle(rows)  # type: ignore[arg-type]
            state, outcome = self.after(state, rows[:ITEMS])
            alarmed = surprises.groups(outcome.alarmed)[0]
            found |= {name for name, hot in zip(self.known.names, alarmed, strict=True) if hot}
        return found


def filtered(image: Array, kernel: ImageFilter.Filter) -> Array:
    return np.asarray(Image.fromarray(image).filter(kernel))


def half_dark(image: Array) -> Array:
    corner = (np.indices(image.shape[:2]) < len(image) // 2).all(0)[..., None]
    return np.where(corner, image // 4, image)


def hum(rng: np.random.Generator) -> Array:
    return 0.05 * np.sin(2 * np.pi * 50 * (np.arange(512) / 16_000 + rng.random()))


# fmt: off
WORDS = ["the", "pump", "is", "leaking", "oil", "valve", "stuck", "open", "motor", "hot", "loud"]
FOREIGN = ["die", "pumpe", "verliert", "öl", "ventil", "klemmt", "motor", "heiß", "lager", "laut"]
# fmt: on
#: What happens to the items -> a statistic that must alarm.
IMAGES: dict[str, tuple[Change, str]] = {
    "blur": (lambda a, _: filtered(a, ImageFilter.GaussianBlur(1)), "sharpness"),
    "dark": (lambda a, _: a * 0.7, "contrast"),
    "swapped channels": (lambda a, _: a[..., ::-1], "red-green"),
    "noise": (lambda a, rng: np.clip(a + rng.normal(0, 5, a.shape), 0, 255), "noise"),
    "dirt on a quarter": (lambda a, _: half_dark(a), "top-bottom"),
}
SOUNDS: dict[str, tuple[Change, str]] = {
    "half the gain": (lambda a, _: a / 2, "level"),
    "a low-pass filter": (lambda a, _: np.convolve(a, np.ones(4) / 4, "same"), "high"),
    "clipping": (lambda a, _: np.clip(a * 8, -1, 1), "clipped"),
    "hum": (lambda a, rng: a + hum(rng), "offset"),
    "noise at -40 dB": (lambda a, rng: a + rng.normal(0, 0.01, len(a)), "flatness"),
    "half the sample rate": (lambda a, _: np.repeat(a[: len(a) // 2], 2), "crossings"),
}
TOKENS: dict[str, tuple[Change, str]] = {
    "another vocabulary": (lambda a, _: np.where(a > 0, a * 7_919 % 30_000 + 2, 0), "unseen"),
    "ids off by one": (lambda a, _: np.where(a > 0, a + 1, 0), "unseen"),
    "cut short": (lambda a, _: np.where(np.arange(128) < 32, a, 0), "length"),
}


def photo(rng: np.random.Generator) -> Array:
    """A part of one of the two photos that come with scikit-learn."""
    whole = PHOTOS[rng.integers(len(PHOTOS))]
    y, x = (rng.integers(side - 48) for side in whole.shape[:2])
    return whole[y : y + 48, x : x + 48]


def voice(rng: np.random.Generator) -> Array:
    """A voiced sound of 512 samples at 16 kHz."""
    t, pitch = np.arange(512) / 16_000, rng.uniform(90, 250)
    harmonics = np.arange(1, 20)[:, None]
    waves = np.sin(2 * np.pi * (pitch * harmonics * t + rng.random((19, 1))))
    sound = (rng.normal(size=(19, 1)) / harmonics * waves).sum(0)
    sound *= rng.uniform(0.05, 0.4) / np.abs(sound).max()
    return (sound + rng.normal(0, 0.002, 512)).astype(np.float32)


def ids(rng: np.random.Generator) -> Array:
    """20 to 128 token ids, as often as words are, and zeros behind them."""
    length = int(rng.integers(20, 128))
    found = np.zeros(128, np.int64)
    found[:length] = rng.zipf(1.3, length).clip(2, 30_000)
    return found


def report(rng: np.random.Generator, words: Sequence[str] = WORDS) -> Array:
    return np.array([" ".join(rng.choice(words, rng.integers(4, 20)))], object)


PHOTOS = [np.asarray(image) for image in load_sample_images().images]
POOLS: dict[str, tuple[Make, str, dict[str, tuple[Change, str]]]] = {
    "image": (photo, "UINT8", IMAGES),
    "audio": (voice, "FP32", SOUNDS),
    "tokens": (ids, "INT64", TOKENS),
    "text": (report, "BYTES", {"another language": (lambda _, r: report(r, FOREIGN), "unseen")}),
}


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest) -> tuple[Watched, dict[str, tuple[Change, str]]]:
    make, datatype, changes = POOLS[request.param]
    watched = Watched(make, datatype)
    sketched = watched.sketching.signature.inputs[0].sketched
    assert sketched is not None
    assert sketched.kind == request.param
    return watched, changes


def test_what_goes_wrong_in_a_plant_is_found_by_a_statistic_that_names_it(
    pool: tuple[Watched, dict[str, tuple[Change, str]]],
) -> None:
    watched, changes = pool
    for what, (change, statistic) in changes.items():
        assert f"x.{statistic}" in watched.found(change), what


def test_other_items_of_the_same_pool_are_no_drift(
    pool: tuple[Watched, dict[str, tuple[Change, str]]],
) -> None:
    watched = pool[0]
    watched.rng = np.random.default_rng(61)
    state, evidence = watched.usual, []
    for _ in range(12):
        state, outcome = watched.after(state, watched.rows(None, ITEMS))
        evidence.append(outcome.log_e[0])
        assert not outcome.alarmed.any()
    assert (np.array(evidence) > np.log(1_000)).mean() <= 0.01


def test_a_window_of_as_many_items_as_are_ever_looked_at_stays_within_its_budget(
    pool: tuple[Watched, dict[str, tuple[Change, str]]],
) -> None:
    watched = pool[0]
    references = watched.sketching.references
    for side in (references.inputs, references.outputs):
        assert len(side.features) <= MOST_COLUMNS
    sketches = watched.sketches(watched.rows(None, 100) * (MOST_LOOKED // 100))
    size = sum(map(len, sketches))
    assert size <= WINDOW_BYTES
    assert size == pytest.approx(window_bytes(references), rel=0.05)


def test_numbers_that_go_together_in_another_way_are_found_though_each_is_as_before() -> None:
    def pair(rng: np.random.Generator) -> Array:
        common = rng.normal()
        return np.float32([common + 0.1 * rng.normal() for _ in range(64)])

    watched = Watched(pair, "FP32")
    assert watched.found(lambda a, rng: rng.permutation(a) * rng.choice([-1, 1], 64))
