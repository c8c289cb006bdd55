"""Throttling under pressure: step by step, slowly back, reported; the kernel pressure files."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.host.faults import Fault, ended
from shoal.agent.host.io.health import HealthSampler
from shoal.agent.host.io.pressure import MemoryHeadroom, PressureSampler
from shoal.agent.host.ports import Load
from shoal.agent.installed.record import Slot
from shoal.agent.serving.served_model import ServedModel
from shoal.agent.serving.throttling import (
    FALL_S,
    LEVELS,
    RISE_S,
    SAMPLE_S,
    SIGNALS,
    ThrottleLevel,
    Throttling,
)
from shoal.errors import ModelError
from shoal.profile import load_profiles
from shoal.sketch import References, reference_of
from shoal.wire import Health, WindowReport

PRESSED = {
    "hot": Load(temp_c=80.0),
    "throttled by the firmware": Load(throttled=True),
    "waiting for the CPU": Load(cpu_stall_pct=40.0),
    "waiting for memory": Load(memory_stall_pct=10.0),
}


@pytest.mark.parametrize("signal", PRESSED)
def test_each_signal_alone_leads_to_the_last_level(signal: str) -> None:
    level = ThrottleLevel()
    seen = [level.step(PRESSED[signal], 5.0 * n).name for n in range(20)]
    assert list(dict.fromkeys(seen)) == [level.name for level in LEVELS]
    assert level.reasons == [signal]


def test_without_measurements_nothing_is_throttled() -> None:
    level = ThrottleLevel()
    assert {level.step(Load(), 5.0 * n).name for n in range(200)} == {"full"}


def test_reaching_the_services_own_memory_limit_is_a_signal() -> None:
    level = ThrottleLevel()
    assert level.step(Load(memory_events=7), 0.0).name == "full"
    assert level.reasons == [], "events before the start do not count"
    level.step(Load(memory_events=8), 5.0)
    assert level.reasons == ["at its memory limit"]


@pytest.mark.parametrize("signal", [s for s in SIGNALS if s.begins > s.ends], ids=lambda s: s.name)
def test_between_the_two_thresholds_the_level_stays(signal) -> None:
    between = Load(**{signal.field: (signal.begins + signal.ends) / 2})
    calm, pressed = ThrottleLevel(), ThrottleLevel()
    pressed.step(Load(**{signal.field: signal.begins}), 0.0)
    for n in range(1, 4):
        calm.step(between, 5.0 * n)
        pressed.step(between, 5.0 * n)
    assert (calm.number, pressed.number) == (0, 1)


@given(st.lists(st.booleans(), min_size=10, max_size=400))
def test_the_level_never_moves_faster_than_its_times_allow(hot: list[bool]) -> None:
    level, moved, before = ThrottleLevel(), -RISE_S, 0
    for n, high in enumerate(hot):
        at = 5.0 * n
        level.step(Load(temp_c=90.0 if high else 40.0), at)
        if level.number != before:
            assert abs(level.number - before) == 1
            assert at - moved >= (RISE_S if level.number > before else FALL_S)
            moved, before = at, level.number


# ------------------------------------------------------------------ Throttling

TWO_THREADS = "rpi5"


class Session:
    def run(self, rows: Any) -> Any:
        return np.zeros((len(rows), 2), np.float32)


COLUMN = {"x": np.arange(9.0)}
REFERENCES = References(inputs=reference_of(COLUMN), outputs=reference_of({"score": COLUMN["x"]}))


class Engines:
    """A loader that records the variants and threads that it loaded."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, int]] = []
        self.broken = False

    def load(self, slot: Slot, profile: Any) -> Any:
        if self.broken:
            raise ModelError("no memory left")
        self.loaded.append((slot.variant, profile.session.intra_op_num_threads))
        return engine(slot)

    def settle(self, slot: Slot, profile: Any) -> None:
        pass


def engine(slot: Slot) -> Any:
    """The part of an engine that Throttling and ServedModel use."""
    return SimpleNamespace(
        slot=slot,
        features=3,
        takes_rows=True,
        session=Session(),
        manifest=SimpleNamespace(
            model=slot.model,
            release=slot.release,
            labels=[],
            threshold=None,
            variant=lambda name: SimpleNamespace(file=SimpleNamespace(sha256=f"of {name}")),
        ),
        references=REFERENCES,
        outputs=2,
        regression=False,
        slow_s=1.0,
    )


SLOT = Slot(
    slot="a", model="m", release="m@1", path="release/m/1/manifest.json", sha256="0",
    variant="fp32", model_sha256="1", counter=1, timings_us={"fp32": 90.0, "int8": 40.0},
)  # fmt: skip


class Device:
    """One model, with a load and a clock that the test sets."""

    def __init__(self, profile: str = TWO_THREADS, threads: int = 2) -> None:
        self.now, self.load, self.loader = 0.0, Load(temp_c=50.0), Engines()
        self.faults: list[Fault] = []
        self.posted: list[Callable[[], None]] = []
        self.reports: list[WindowReport] = []
        self.idle = True
        board = load_profiles()[profile]
        session = msgspec.structs.replace(board.session, intra_op_num_threads=threads)
        host: Any = SimpleNamespace(
            monotonic=lambda: self.now, load=lambda: self.load, spawn=lambda job: job()
        )
        self.throttling = Throttling(
            self.loader, host, msgspec.structs.replace(board, session=session), health=Health,
            fault=self.faults.append, report=self.reports.append, post=self.posted.append,
        )  # fmt: skip
        clock = lambda: self.now  # noqa: E731
        self.serving = ServedModel("m", clock=clock, timer=clock, lock=threading.Lock())
        self.serving._engine = engine(SLOT)

    def runs(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += SAMPLE_S
            self.throttling.tick({"m": self.serving}, lambda model: self.idle)
            while self.posted:
                self.posted.pop(0)()

    @property
    def applied(self) -> tuple[float, str]:
        assert self.serving.engine is not None
        return self.throttling.rate, self.serving.engine.slot.variant


def test_sources_slow_down_then_runs_take_one_thread_then_the_cheaper_variant_and_back() -> None:
    device = Device()
    device.runs(60)
    assert (device.applied, device.throttling.is_active) == ((1.0, "fp32"), False)
    device.load = Load(temp_c=85.0)
    device.runs(20)
    assert (device.applied, device.throttling.is_active) == ((0.5, "fp32"), True)
    assert device.loader.loaded == []
    device.runs(15)
    assert device.loader.loaded == [("fp32", 1)]
    device.runs(15)
    assert device.applied == (0.25, "int8")
    assert device.loader.loaded == [("fp32", 1), ("int8", 1)]
    device.load = Load(temp_c=50.0)
    device.runs(4 * FALL_S)
    assert device.applied == (1.0, "fp32")
    assert device.loader.loaded[2:] == [("fp32", 1), ("fp32", 2)]
    assert [f.cause for f in device.faults] == ["too-hot"] * 4
    assert [f.facts.get("ended", False) for f in device.faults] == [False, False, False, True]
    assert "hot" in device.faults[0].detail


def test_each_reason_is_a_fault_of_its_own_and_ends_with_it() -> None:
    device = Device()
    device.load = Load(temp_c=85.0, memory_stall_pct=30.0)
    device.runs(20)
    assert [f.cause for f in device.faults] == ["too-hot", "short-memory"]
    assert device.faults[1].detail == "this device is waiting for memory: now at level 'slower'"
    device.faults.clear()
    device.load = Load(temp_c=85.0)
    device.runs(2 * FALL_S)
    over = [f for f in device.faults if f.facts.get("ended")]
    assert [f.cause for f in over] == ["short-memory"]
    device.load = Load(temp_c=50.0)
    device.runs(4 * FALL_S)
    assert device.faults[-1] == ended("too-hot")


def test_no_engine_is_replaced_during_an_update() -> None:
    device = Device()
    device.load, device.idle = Load(temp_c=85.0), False
    device.runs(120)
    assert (device.applied, device.loader.loaded) == ((0.25, "fp32"), [])
    device.idle = True
    device.runs(5)
    assert device.applied == (0.25, "int8")


def test_a_release_installed_meanwhile_is_not_replaced_by_the_old_one() -> None:
    device = Device()
    device.load = Load(temp_c=85.0)
    new = engine(msgspec.structs.replace(SLOT, release="m@2", sha256="9"))
    device.runs(20)
    device.now += RISE_S
    device.throttling.tick({"m": device.serving}, lambda model: True)
    device.serving._engine = new
    device.posted.pop()()
    assert (device.serving.engine, device.reports) == (new, [])


def test_an_engine_that_fails_to_load_is_reported_and_the_old_one_serves_on() -> None:
    device = Device()
    device.load, device.loader.broken = Load(temp_c=85.0), True
    device.runs(120)
    assert device.applied == (0.25, "fp32")
    assert any("no memory left" in f.detail for f in device.faults)


# ------------------------------------------------------------------ the kernel's files


def machine(folder: Path) -> tuple[Path, Path]:
    """A Raspberry Pi's /proc and /sys, as far as they are read."""
    proc, sys = folder / "proc", folder / "sys"
    own = sys / "fs/cgroup/system.slice/shoal-agent.service"
    files = {
        own / "cpu.pressure": "some avg10=12.50 avg60=1.00 avg300=0.10 total=9\n",
        own / "memory.pressure": "some avg10=3.00 avg60=0 avg300=0 total=1\nfull avg10=9.00\n",
        proc / "self/cgroup": "0::/system.slice/shoal-agent.service\n",
        sys / "class/thermal/thermal_zone0/temp": "48312\n",
        sys / "class/thermal/thermal_zone1/temp": "61200\n",
        sys / "devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        own / "memory.events": "low 4\nhigh 17\nmax 2\noom 1\noom_kill 1\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, sys


def test_the_kernels_files_are_read(tmp_path: Path) -> None:
    load = PressureSampler(lambda: 0.0, *machine(tmp_path))()
    assert load == Load(12.5, 3.0, pytest.approx(61.2), True, 20)


def test_past_throttling_is_no_signal_and_garbage_is_none(tmp_path: Path) -> None:
    proc, sys = machine(tmp_path)
    sampler = PressureSampler(lambda: 0.0, proc, sys)
    flags = sys / "devices/platform/soc/soc:firmware/get_throttled"
    for text, now in (("50000", False), ("0x1", True), ("", False), ("zzz", False)):
        flags.write_text(text)
        assert sampler.throttled() is now, text


def test_outside_of_its_service_it_does_not_measure_other_processes(tmp_path: Path) -> None:
    proc, sys = machine(tmp_path)
    (proc / "self/cgroup").write_text("0::/user.slice/session-1.scope\n")
    load = PressureSampler(lambda: 0.0, proc, sys)()
    assert (load.cpu_stall_pct, load.memory_stall_pct, load.memory_events) == (-1.0, -1.0, 0)
    assert load.temp_c > 0


def test_headroom_is_the_least_of_machine_and_service(tmp_path: Path) -> None:
    proc, sys = machine(tmp_path)
    own = sys / "fs/cgroup/system.slice/shoal-agent.service"
    (proc / "meminfo").write_text("MemTotal: 926000 kB\nMemFree: 9 kB\nMemAvailable: 512000 kB\n")
    (own / "memory.high").write_text(f"{384 << 20}\n")
    (own / "memory.stat").write_text(f"anon {84 << 20}\nfile {250 << 20}\nkernel 1\n")
    room = MemoryHeadroom(proc, sys)
    assert room() == 300
    (proc / "meminfo").write_text("MemTotal: 926000 kB\nMemFree: 9 kB\nMemAvailable: 102400 kB\n")
    assert room() == 100
    (own / "memory.high").write_text(f"{128 << 20}\n")
    assert room() == 44


def test_headroom_without_a_limit_is_the_machines_and_without_measurements_zero(
    tmp_path: Path,
) -> None:
    proc, sys = machine(tmp_path)
    assert MemoryHeadroom(proc, sys)() == 0
    (proc / "meminfo").write_text("MemTotal: 1 kB\nMemFree: 1 kB\nMemAvailable: 102400 kB\n")
    assert MemoryHeadroom(proc, sys)() == 100
    own = sys / "fs/cgroup/system.slice/shoal-agent.service"
    (own / "memory.high").write_text("max\n")
    (own / "memory.stat").write_text("anon 1\n")
    assert MemoryHeadroom(proc, sys)() == 100


def test_a_machine_without_these_files_has_no_measurements(tmp_path: Path) -> None:
    sampler = PressureSampler(lambda: 0.0, tmp_path / "proc", tmp_path / "sys")
    assert sampler() == Load()


def test_vcgencmd_is_run_where_the_kernel_has_no_file_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, clock = tmp_path / "bin" / "vcgencmd", [0.0]
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho called >> {tmp_path}/log\necho throttled=0x50005\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    sampler = PressureSampler(lambda: clock[0], tmp_path / "proc", tmp_path / "sys")
    for clock[0] in (0.0, 5.0, 29.0, 31.0):
        assert sampler.throttled()
    assert (tmp_path / "log").read_text().count("called") == 2


def test_health_has_the_memory_of_this_process(tmp_path: Path) -> None:
    load = Load(temp_c=51.26, throttled=True)
    free = iter((812.34, 0.0))
    sample = HealthSampler(tmp_path, lambda: 1.0, lambda: load, lambda: next(free))
    health = sample()
    assert health.rss_mb > 10
    assert (health.temp_c, health.throttled) == (51.3, True)
    assert health.memory_free_mb == 812.3
    assert sample().memory_free_mb is msgspec.UNSET, "0 is unknown"
