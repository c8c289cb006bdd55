"""A child of the supervisor: its log, its relayed warnings, and its restarts."""

import os
import re
import signal
import sys
import time

import pytest

from shoal.controller.host.io.processes import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Child, LogFile
from waiting import eventually


@pytest.fixture
def warnings() -> list[str]:
    return []


def child(tmp_path, warnings, program: str, **more) -> Child:
    return Child(
        "part", [sys.executable, "-c", program], tmp_path / "part.log", warnings.append, **more
    )


def test_all_output_is_in_its_log_and_only_warnings_are_relayed(tmp_path, warnings):
    one = child(tmp_path, warnings, "print('INFO all is well'); print('2026 WARNING disk is low')")
    one.start(time.monotonic())
    one.end(10)
    assert (tmp_path / "part.log").read_text().splitlines() == [
        "INFO all is well",
        "2026 WARNING disk is low",
    ]
    assert warnings == ["part: 2026 WARNING disk is low"]


def test_a_process_is_ready_once_its_log_has_the_line_and_again_after_each_restart(
    tmp_path, warnings
):
    program = "import time; print('INFO connected'); time.sleep(60)"
    one = child(tmp_path, warnings, program, ready_pattern=re.compile("connected$"))
    assert not one.ready
    one.start(time.monotonic())
    eventually(lambda: one.ready)
    os.kill(one.pid, signal.SIGKILL)
    eventually(lambda: not one.pid)
    one.restart_if_ended(time.monotonic())
    one.restart_if_ended(time.monotonic() + FIRST_BACKOFF_S + 1)
    assert one.starts == 2
    eventually(lambda: one.ready)
    one.terminate()
    one.end(10)


def test_one_that_keeps_ending_is_started_after_ever_longer_pauses(tmp_path, warnings):
    one = child(tmp_path, warnings, "raise SystemExit(3)")
    one.start(time.monotonic())
    now, pauses = time.monotonic(), []
    for _ in range(9):
        eventually(lambda: not one.pid)
        one.restart_if_ended(now)
        starts, begun = one.starts, now
        while one.starts == starts:
            now += 0.1
            one.restart_if_ended(now)
        pauses.append(now - begun)
    one.end(10)
    assert pauses[0] == pytest.approx(FIRST_BACKOFF_S, abs=0.2)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_BACKOFF_S, abs=0.2)
    assert "ended with code 3" in warnings[0]


def test_one_that_lived_long_is_started_again_at_once(tmp_path, warnings):
    one = child(tmp_path, warnings, "pass")
    one.start(time.monotonic())
    eventually(lambda: not one.pid)
    later = time.monotonic() + 3_600
    one.restart_if_ended(later)
    one.restart_if_ended(later + FIRST_BACKOFF_S)
    assert one.starts == 2
    one.end(10)


def test_one_that_does_not_end_is_killed_with_a_warning(tmp_path, warnings):
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('WARNING deaf', flush=True); time.sleep(60)"
    )
    one = child(tmp_path, warnings, program)
    one.start(time.monotonic())
    eventually(lambda: warnings)
    one.terminate()
    one.end(0.2)
    assert not one.pid
    assert "part does not end; killed" in warnings


def test_a_full_log_is_turned_once(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.controller.host.io.processes.LOG_LIMIT", 100)
    log = LogFile(tmp_path / "part.log")
    for number in range(30):
        log.write(b"line %03d\n" % number)
    log.close()
    kept = (tmp_path / "part.log.1").read_text() + (tmp_path / "part.log").read_text()
    assert kept.endswith("line 029\n")
    assert len(list(tmp_path.iterdir())) == 2
