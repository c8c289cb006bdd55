"""The drift decision: silent on what recurs, quick on what changes, whatever the input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.monitoring.device_windows import Devices, training

from shoal.controller.monitoring import channels, drift_state, relearning, sequential
from shoal.controller.monitoring.drift_state import State
from shoal.controller.monitoring.surprises import Rules, Times
from shoal.errors import StorageError

GOLDEN = Path(__file__).parents[2] / "golden" / "drift-state.v1.bin"
#: No daily cycle, and a short start: what is tested elsewhere would only take time here.
PLAIN = Rules(first=32, cycle=False)
Rows = npt.NDArray[Any]


def normal(rng: np.random.Generator, devices: Devices, n: int) -> Rows:
    return rng.normal(size=(n, devices.many, devices.features))


def settled(
    devices: Devices, rng: np.random.Generator, windows: int, n: int, off: float = 0
) -> int:
    """Findings in the first `windows` windows."""
    return sum(int(devices.see(normal(rng, devices, n) + off).began.sum()) for _ in range(windows))


def windows_until(devices: Devices, rows: Callable[[], Rows], most: int) -> Rows:
    """Windows until each device's alarm begins, (many,); `most` + 1 where it does not."""
    first = np.full(devices.many, most + 1)
    for i in range(1, most + 1):
        began = devices.see(rows()).began.any(1)
        first = np.where(began & (first > most), i, first)
    return first


CHANGES: dict[str, tuple[Callable[[Rows, np.random.Generator], Rows], int, float]] = {
    "a shift of half a standard deviation": (lambda x, _: x + 0.5, 8, 0),
    "a shift of one standard deviation": (lambda x, _: x + 1, 3, 0),
    "twice the variance": (lambda x, _: x * np.sqrt(2), 12, 0),
    "a stuck sensor": (lambda x, _: np.full(x.shape, 0.3), 2, 0),
    "one row in twenty missing": (lambda x, g: np.where(g.random(x.shape) < 0.05, np.nan, x), 7, 0),
    "spikes of 100 sd in one row of twenty": (
        lambda x, g: np.where(g.random(x.shape) < 0.05, 100, x), 4, 0,
    ),
    "another unit": (lambda x, _: x * 1.8 + 32, 2, 0),
    "2 sd, ten sd beyond training": (lambda x, _: x + 2, 2, 10),
    "stuck, ten sd beyond training": (lambda x, _: np.full(x.shape, 10.3), 2, 10),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_within_a_few_windows(name: str) -> None:
    change, most, off = CHANGES[name]
    rng = np.random.default_rng(1)
    devices = Devices(8, PLAIN)
    assert settled(devices, rng, 250, 60, off) == 0
    found = windows_until(devices, lambda: change(normal(rng, devices, 60) + off, rng), 2 * most)
    assert np.median(found) <= most


def test_a_code_that_was_never_seen_is_found_although_it_lies_between_known_ones() -> None:
    rng = np.random.default_rng(2)
    devices = Devices(8, PLAIN, learnt_from=np.floor(2 * training()))
    for _ in range(300):
        assert not devices.see(np.floor(2 * normal(rng, devices, 60))).began.any()

    def coded() -> Rows:
        codes = np.floor(2 * normal(rng, devices, 60))
        return np.where(rng.random(codes.shape) < 0.1, 0.25, codes)

    assert np.median(windows_until(devices, coded, 8)) <= 4


def test_fewer_rows_are_a_finding_of_their_own_and_what_is_left_is_looked_at() -> None:
    rng = np.random.default_rng(3)
    devices = Devices(8, PLAIN)
    assert settled(devices, rng, 300, 60) == 0
    first = devices.see(normal(rng, devices, 24) + 3)
    second = devices.see(normal(rng, devices, 24) + 3)
    began = first.began | second.began
    assert began[:, 0].all(), "the shift is found"
    assert began[:, -1].all(), "the rows are found"


def test_one_cell_of_any_size_costs_its_features_moments_in_that_window_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    devices = Devices(8, PLAIN, features=2)
    rows = normal(rng, devices, 60)
    rows[0, :, 0] = 1e15
    assert not devices.see(rows).began.any()
    assert settled(devices, rng, 200, 60) == 0
    for cell in (1e20, 9.97e36, float(np.finfo(np.float32).max), 1e6):
        rows = normal(rng, devices, 60)
        rows[0, :, 0] = cell
        window = devices.window(rows)
        if cell > 1e18:  # as float32 moments of the sketch overflow
            window.m2[:, 0] = window.mean[:, 0] = np.nan
        assert not devices.take(window).began.any(), cell
        assert settled(devices, rng, 20, 60) == 0
    wider = np.array([3.0, 1.0])
    found = windows_until(devices, lambda: normal(rng, devices, 60) * wider, 4)
    assert np.median(found) <= 3


def test_a_daily_cycle_is_no_drift_and_a_step_in_it_is_found() -> None:
    rng = np.random.default_rng(5)
    learnt = training() + np.sin(np.random.default_rng(0).uniform(0, 2 * np.pi, 20_000))
    devices = Devices(16, Rules(), window_s=900.0, learnt_from=learnt)

    def now() -> Rows:
        return normal(rng, devices, 300) + np.sin(2 * np.pi * devices.number / 96)

    assert not any(devices.see(now()).began.any() for _ in range(3 * 96))
    assert np.median(windows_until(devices, lambda: now() + 3, 2)) <= 2


def test_a_machine_that_starts_at_eight_is_no_drift_on_the_first_day_nor_later() -> None:
    rng = np.random.default_rng(6)
    devices = Devices(16, Rules(), window_s=900.0, learnt_from=training() * 2)
    began = 0
    for w in range(3 * 96):
        on = 8 <= (w * 0.25) % 24 < 17
        began += int(devices.see(normal(rng, devices, 100) + 2.0 * on).began.sum())
    assert began == 0


def test_windows_that_are_missing_or_late_do_not_alarm_where_rows_resemble_the_rows_before() -> (
    None
):
    rng = np.random.default_rng(7)
    devices = Devices(32, Rules(cycle=False))
    level = np.zeros((devices.many, 1))
    began = 0
    for w in range(600):
        level = 0.95 * level + np.sqrt(1 - 0.95**2) * rng.normal(size=level.shape)
        at = devices.start + 60.0 * (w - (40 if w % 50 == 49 else 0))
        rows = 0.3 * normal(rng, devices, 30) + level
        if rng.random() < 0.6:
            began += int(devices.see(rows, at).began.sum())
    assert began == 0


def test_a_shift_too_small_for_any_device_is_found_at_a_site_of_seven_hundred() -> None:
    rng = np.random.default_rng(8)
    devices = Devices(700, Rules(first=24, cycle=False))
    layout = sequential.site_layout(1, PLAIN)
    site: list[State] = [drift_state.empty(layout)]
    alone = together = 0
    for w in range(90):
        outcome = devices.see(normal(rng, devices, 20) + (0.15 if w >= 80 else 0))
        terms = [term.sum(0, keepdims=True) for term in sequential.site_terms(outcome)]
        at = np.array([devices.start + 60.0 * w])
        times = Times(at, at, np.array([60.0]))
        site, said = sequential.observe_sites(
            site, times, terms, PLAIN, sequential.Fleet.unknown(), devices.log_a
        )
        alone += int(outcome.began.sum())
        together += int(said.began.sum())
        assert w >= 80 or not together
    assert together == 1
    assert alone == 0


def test_devices_are_judged_alike_alone_and_together_and_no_given_state_is_changed() -> None:
    rng = np.random.default_rng(9)
    together, alone = Devices(3, PLAIN, features=2), Devices(3, PLAIN, features=2)
    for _ in range(60):
        window = together.window(normal(rng, together, 20))
        before = [one.to_bytes() for one in together.states]
        given = list(together.states)
        together.take(window)
        assert [one.to_bytes() for one in given] == before
        after = [
            sequential.observe(
                [alone.states[i]], window.take(np.array([i])), alone.training, PLAIN,
                alone.fleet, alone.log_a,
            )[0][0]
            for i in range(3)
        ]  # fmt: skip
        alone.states, alone.fleet = after, together.fleet
    for one, other in zip(alone.states, together.states, strict=True):
        np.testing.assert_allclose(one.numbers, other.numbers, rtol=1e-4, atol=1e-4)
        assert one.position == other.position == 60


def test_an_accepted_level_is_the_new_normal() -> None:
    rng = np.random.default_rng(10)
    devices = Devices(4, PLAIN)
    assert settled(devices, rng, 200, 60) == 0
    for _ in range(40):
        alarmed = devices.see(normal(rng, devices, 60) + 2).alarmed
    assert alarmed[:, 0].all()
    devices.states = [relearning.accept(one) for one in devices.states]
    assert settled(devices, rng, 100, 60, 2) == 0
    assert np.median(windows_until(devices, lambda: normal(rng, devices, 60), 3)) <= 2


def test_a_missing_value_that_lasts_is_never_accepted_by_time_alone() -> None:
    rng = np.random.default_rng(11)
    devices = Devices(4, PLAIN, window_s=3_600.0)
    assert settled(devices, rng, 100, 60) == 0
    for _ in range(72):
        rows = normal(rng, devices, 60)
        rows[:20] = np.nan
        outcome = devices.see(rows)
    assert outcome.alarmed[:, channels.MISSING].all()


def golden_devices() -> Devices:
    rng = np.random.default_rng(12)
    devices = Devices(1, Rules(first=32))
    for _ in range(64):
        devices.see(normal(rng, devices, 20))
    return devices


def test_golden_bytes_are_read_as_the_state_that_they_were() -> None:
    data = GOLDEN.read_bytes()
    read, made = State.from_bytes(data), golden_devices().states[0]
    assert read.to_bytes() == data
    assert read.layout == made.layout
    assert (read.seen, read.position) == (64, 64)
    rng = np.random.default_rng(14)
    devices = golden_devices()
    devices.states = [read]
    assert settled(devices, rng, 20, 20) == 0, "it goes on as before"


@pytest.mark.parametrize("spoil", [lambda b: b[:9], lambda b: b[:-1], lambda b: b"X" + b[1:],
                                   lambda b: b[:4] + b"\x63" + b[5:]])  # fmt: skip
def test_other_bytes_are_no_state(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StorageError, match="drift state"):
        State.from_bytes(spoil(GOLDEN.read_bytes()))


@pytest.mark.parametrize("value", [np.nan, 0.0, 1e-30, 1e30, -1e30])
def test_a_feature_of_any_value_is_read_without_a_warning(value: float) -> None:
    rng = np.random.default_rng(13)
    devices = Devices(2, PLAIN, features=2)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(64):
            rows = normal(rng, devices, 5)
            rows[..., 0] = value
            outcome = devices.see(rows)
    assert not outcome.alarmed.any()
