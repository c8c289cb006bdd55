"""When a device may train: the requests it has, its heat, what presses on it, and its power."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.agent.federated.eligibility import IdleMonitor
from shoal.agent.host.io.pressure import on_mains
from shoal.agent.host.ports import Load
from shoal.agent.host.round_limits import Limits


class Machine:
    """A device whose requests, heat and pressure are set by hand."""

    def __init__(self, **limits: Any) -> None:
        self.now, self.requests, self.celsius, self.throttled = 0.0, 0, -1.0, False
        served: Any = SimpleNamespace()
        self.vitals = served.vitals = SimpleNamespace(requests=0)
        self.monitor = IdleMonitor(
            Limits(**limits), 20.0, serving={"m": served}, load=lambda: Load(temp_c=self.celsius),
            throttled=lambda: self.throttled, monotonic=lambda: self.now,
        )  # fmt: skip

    def live(self, seconds: float, hz: float = 0.0) -> str:
        for _ in range(int(seconds)):
            self.now += 1
            self.vitals.requests += int(hz)
            self.monitor.sample()
        return self.monitor.pause_reason


def test_a_device_that_is_asked_much_is_busy_until_it_is_asked_little() -> None:
    machine = Machine()
    assert machine.live(10, hz=20) == ""
    assert machine.live(10, hz=30) == "busy"
    assert machine.monitor.busy
    assert machine.live(10, hz=5) == ""


def test_a_device_that_need_not_be_idle_trains_beside_any_number_of_requests() -> None:
    assert Machine(idle=False).live(10, hz=500) == ""


def test_another_release_that_counts_from_nothing_is_no_rest() -> None:
    machine = Machine()
    machine.live(10, hz=30)
    machine.vitals.requests = 0
    assert machine.live(2) == ""


def test_a_hot_device_rests_until_it_is_cooler_by_some_degrees() -> None:
    machine = Machine(celsius=70.0)
    machine.celsius = 71.0
    assert machine.live(10) == "hot"
    machine.celsius = 69.0
    assert machine.live(10) == "hot"
    machine.celsius = 66.0
    assert machine.live(10) == ""
    assert machine.monitor.celsius == 66.0


def test_no_limit_of_heat_and_no_thermometer_hold_nothing_up() -> None:
    machine = Machine(celsius=0.0)
    machine.celsius = 99.0
    assert machine.live(10) == ""
    assert Machine().live(10) == ""


def test_an_agent_that_gives_way_to_pressure_does_not_train() -> None:
    machine = Machine()
    machine.throttled = True
    assert machine.live(1) == "under pressure"


@pytest.mark.parametrize(
    ("supplies", "mains"),
    [
        ({}, None),
        ({"AC": ("Mains", "1", "")}, True),
        ({"AC": ("Mains", "0", "")}, False),
        ({"BAT0": ("Battery", "", "Discharging")}, False),
        ({"BAT0": ("Battery", "", "Charging"), "AC": ("Mains", "1", "")}, True),
        ({"BAT0": ("Battery", "", "Discharging"), "AC": ("Mains", "0", "")}, False),
        ({"BAT0": ("Battery", "", "Full")}, None),
    ],
)
def test_the_kernels_power_supplies_are_read_as_mains_battery_or_unknown(
    tmp_path: Path, supplies: dict[str, tuple[str, str, str]], mains: bool | None
) -> None:
    for name, values in supplies.items():
        folder = tmp_path / "class" / "power_supply" / name
        folder.mkdir(parents=True)
        for file, text in zip(("type", "online", "status"), values, strict=True):
            if text:
                (folder / file).write_text(f"{text}\n")
    assert on_mains(tmp_path) is mains
