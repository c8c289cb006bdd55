"""The drift decision where few rows carry a feature, and where windows take rows in turn."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.monitoring.device_windows import Devices, training

from shoal.controller.monitoring import channels
from shoal.controller.monitoring.drift_state import Table
from shoal.controller.monitoring.surprises import Rules

Rows = npt.NDArray[Any]
#: As in the demo: twelve windows, then every one may alarm.
SHORT = Rules(first=12, cycle=False)


def in_turn(files: list[Rows], many: int, n: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Windows (n, many, 1): each device replays one of the files, shuffled anew for each pass."""
    queues: list[Rows] = [np.empty(0)] * many
    while True:
        for i in range(many):
            while len(queues[i]) < n:
                queues[i] = np.append(queues[i], rng.permutation(files[i % len(files)]))
        yield np.stack([queue[:n] for queue in queues], axis=1)[..., None]
        queues = [queue[n:] for queue in queues]


def findings(devices: Devices, windows: Iterator[Rows], many: int) -> int:
    return sum(int(devices.see(next(windows)).began.sum()) for _ in range(many))


#: Two pixels of the demo's images (scikit-learn's digits, split with its seed): how many rows
#: there are and which are not 0, of training and of each station.
PIXELS = {
    "p27": [
        (1081, [1] * 5 + [2] * 4 + [3] * 2 + [4] * 3 + [5, 5, 6]), (98, [1]), (114, [1]), (79, [5]),
        (127, [1, 1, 3, 4, 8]), (149, [1, 1, 2, 3, 3, 3]), (149, [1, 5]),
    ],
    "p50": [
        (1081, [1, 1, 1, 2]), (98, []), (114, [2]), (79, [1, 3]), (127, [1, 4]), (149, []),
        (149, []),
    ],
}  # fmt: skip


@pytest.mark.parametrize("pixel", PIXELS)
def test_the_demo_s_cameras_raise_no_finding_while_nothing_changes(pixel: str) -> None:
    learnt, *files = (np.append(np.zeros(n - len(x)), x) for n, x in PIXELS[pixel])
    devices = Devices(240, SHORT, learnt_from=learnt, window_s=1.0)
    windows = in_turn(files, devices.many, 95, np.random.default_rng(1))
    assert findings(devices, windows, 45) == 0


@pytest.mark.parametrize(
    ("what", "change", "most"),
    [
        ("stuck", lambda x: np.full(x.shape, 0.2), 2),
        ("a shift of one sd", lambda x: x + 1, 4),
        ("half the spread", lambda x: x / 2, 4),
    ],
)
def test_a_baseline_of_twelve_windows_finds_a_change_of_a_feature_that_all_rows_carry(
    what: str, change: Callable[[Rows], Rows], most: int
) -> None:
    rng = np.random.default_rng(4)
    devices = Devices(60, SHORT, window_s=1.0)
    windows = in_turn([rng.normal(size=120) for _ in range(6)], devices.many, 95, rng)
    assert findings(devices, windows, 24) == 0
    found = np.full(devices.many, 99)
    for i in range(1, most + 1):
        began = devices.see(change(next(windows))).began.any(1)
        found = np.where(began & (found == 99), i, found)
    assert np.median(found) <= most, what


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("learnt_from", [training(rows=4_000), np.append(training(), 1e20)])
@pytest.mark.parametrize(
    ("window", "cells", "value"),
    [(0, 1, 1e30), (0, 3, 1e6), (2, 2, 1e18), (7, 1, 1e15), (3, 2, 2e3)],
)
def test_a_few_wild_cells_in_the_first_windows_do_not_blind_mean_and_spread_for_ever(
    learnt_from: Rows, window: int, cells: int, value: float
) -> None:
    rng = np.random.default_rng(12)
    devices = Devices(4, Rules(first=32, cycle=False), learnt_from=learnt_from)
    for i in range(80):
        rows = rng.normal(size=(60, devices.many, 1))
        if i in (window, 20):  # and again while the unit is in doubt
            rows[:cells, 0] = value
        seen = devices.window(rows)
        if i in (window, 20) and value > 1e18:  # as float32 moments of the sketch overflow
            seen.m2[0] = seen.mean[0] = np.nan
        assert not devices.take(seen).began.any(), i
    table = Table(devices.states)
    assert table.unit[:, 0] == pytest.approx(np.ones(4), abs=0.2)
    for _ in range(5):
        hit = devices.see(rng.normal(size=(60, devices.many, 1)) + 1).alarmed
    assert hit[:, channels.MEAN].all()


def test_scores_of_a_sure_model_keep_the_unit_that_their_unsure_rows_give() -> None:
    rng = np.random.default_rng(13)

    def scores(*shape: int) -> Rows:
        sure = 1 - 1e-4 * rng.exponential(size=shape)
        return np.where(rng.random(shape) < 0.01, rng.uniform(0.4, 0.9, shape), sure)

    devices = Devices(40, Rules(first=32, cycle=False), learnt_from=scores(5_000))
    for _ in range(120):
        assert not devices.see(scores(95, 40, 1)).began.any()
    assert (Table(devices.states).unit > 0.01).all()


def test_a_feature_whose_values_come_late_raises_no_finding_by_coming() -> None:
    rng = np.random.default_rng(14)
    devices = Devices(40, Rules(first=32, cycle=False))
    for i in range(100):
        rows = rng.normal(size=(60, 40, 1)) if i >= 60 else np.zeros((60, 40, 1))
        hit = devices.see(rows).alarmed
        assert not hit[:, [channels.MEAN, channels.SPREAD]].any(), i


def test_a_window_of_a_machine_that_was_busy_is_no_alarm_of_its_rows() -> None:
    rng = np.random.default_rng(15)
    busy, slow = Devices(20, SHORT), Devices(20, SHORT)
    for i in range(40):
        n = {30: 5, 31: 110}.get(i, 60)
        assert not busy.see(rng.normal(size=(n, 20, 1))).began[:, -1].any(), i
        fewer = slow.see(rng.normal(size=(24 if i >= 30 else 60, 20, 1))).alarmed[:, -1]
    assert fewer.all(), "what lasts is found"


def test_many_rows_where_few_were_are_found() -> None:
    rng = np.random.default_rng(5)
    file = np.zeros(120)
    file[0] = 1.0
    devices = Devices(60, SHORT, learnt_from=np.append(np.zeros(990), np.ones(10)), window_s=1.0)
    assert findings(devices, in_turn([file], devices.many, 100, rng), 30) == 0
    file[:40] = 1.0
    assert findings(devices, in_turn([file], devices.many, 100, rng), 4) >= 54


def test_a_window_says_no_more_than_the_rows_that_carry_its_feature() -> None:
    lens = channels.Lens(
        np.array([[0.99, 0.01]]), np.array([[[0.98, 0.02]]]), np.zeros((1, 1)),
        np.zeros((1, 1)), np.ones((1, 1)),
    )  # fmt: skip
    for here, nats in ((0, 2.0), (1, 2.0), (30, 30.0)):
        devices = Devices(1, SHORT, learnt_from=np.append(np.zeros(99), 1.0))
        window = devices.window(np.append(np.zeros(100 - here), np.ones(here))[:, None, None])
        counts = np.array([[[100 - here, here]]])
        cap = channels.read(lens, window._replace(counts=counts), 0.05).cap[0]
        assert np.square(cap[:5]) / 2 == pytest.approx([nats] * 5)
