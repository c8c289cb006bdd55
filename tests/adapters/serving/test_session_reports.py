"""A release is observed in programs' own sessions as well: real programs, a real agent."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adapters.update.test_kills import Site, state_of
from real_agents import Process
from shoal.agent import Session
from shoal.agent.serving.io.session_reports import SessionReportReader, SessionReportWriter
from shoal.agent.serving.session_reports import SessionReport
from shoal.agent.serving.window import Vitals
from shoal.errors import InputError

REPORT = SessionReport(model="parts", sha256="2" * 64, vitals=Vitals(requests=3, rows=9))
PROGRAM = """
import os, signal, sys
from shoal.agent import Session
session = Session("parts", sys.argv[1])
assert session.release == "parts@2", session.release
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A device that serves release 1, and release 2 is assigned to it."""
    site = Site(tmp_path, observe_s=60.0, max_kbps=0)
    site.serve_first()
    site.assign()
    yield site
    site.artifacts.stop()


def test_sessions_write_reports_only_while_the_agent_observes(tmp_path: Path) -> None:
    writer, reader = SessionReportWriter(tmp_path), SessionReportReader(tmp_path)
    writer.write(REPORT)
    assert list(tmp_path.iterdir()) == []
    assert reader.read() == []
    writer.write(REPORT)
    assert reader.read() == [REPORT]
    reader.end("parts")
    writer.write(REPORT)
    assert list(tmp_path.iterdir()) == []


def test_the_last_report_counts_however_long_the_one_before(tmp_path: Path) -> None:
    writer, reader = SessionReportWriter(tmp_path), SessionReportReader(tmp_path)
    reader.read()
    for why in ("x" * 9_999, "short"):
        writer.write(SessionReport(model="parts", refused="2", why=why))
        (report,) = reader.read()
        assert report.why == why[:500]


def test_a_closed_session_deletes_its_report_and_a_crashed_one_leaves_it_until_the_end(
    tmp_path: Path,
) -> None:
    closed, crashed, other = (SessionReportWriter(tmp_path) for _ in range(3))
    reader = SessionReportReader(tmp_path)
    reader.read()
    closed.write(REPORT)
    crashed.write(REPORT)
    other.write(SessionReport(model="other"))
    closed.close()
    os.close(crashed._file)  # as the kernel does
    os.close(other._file)
    assert sorted((report.model, report.lives) for report in reader.read()) == [
        ("other", False),
        ("parts", False),
    ]
    reader.end("parts")
    assert [(report.model, report.lives) for report in reader.read()] == [("other", False)]


def test_damaged_reports_are_ignored(tmp_path: Path) -> None:
    reader, writer = SessionReportReader(tmp_path), SessionReportWriter(tmp_path)
    reader.read()
    writer.write(REPORT)
    (path,) = tmp_path.glob("*.account")
    data = path.read_bytes()
    (tmp_path / "torn.account").write_bytes(data[:-3])
    (tmp_path / "empty.account").write_bytes(b"")
    (tmp_path / "changed.account").write_bytes(data.replace(b'"rows":9', b'"rows":8'))
    assert reader.read() == [REPORT]
    reader.end("parts")
    assert list(tmp_path.iterdir()) == [path]  # of the open session


def test_an_agent_without_a_spool_folder_has_no_reports(tmp_path: Path) -> None:
    reader = SessionReportReader(tmp_path / "absent")
    assert reader.read() == []
    reader.end("parts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_release_that_fails_in_a_programs_session_is_rolled_back_everywhere(site: Site) -> None:
    with Session("parts", site.folder, look_s=0.02) as session:
        process = Process(site.folder)
        try:
            process.wait_for(lambda: session.release == "parts@2")
            for _ in range(600):
                with pytest.raises(InputError):
                    session.infer(np.zeros((1, 3), np.float32))
            process.wait_for(lambda: session.release == "parts@1")
            process.wait_for(lambda: state_of(process) == "FAILED")
        finally:
            process.end()
    record = site.record()
    assert (record.cause, record.facts["outcome"]) == ("unhealthy", "rolled_back")
    assert "requests failed while observed" in record.detail
    assert not list((site.folder / "spool").glob("*.account"))


@pytest.mark.slow
def test_a_release_with_which_a_program_crashes_three_times_is_rolled_back(site: Site) -> None:
    (site.folder / "spool").mkdir()
    process = Process(site.folder)
    try:
        process.wait_for(lambda: (site.folder / "spool" / "observed").exists())
        for _ in range(3):
            program = [sys.executable, "-c", PROGRAM, str(site.folder)]
            ended = subprocess.run(program, capture_output=True, text=True)
            assert ended.returncode == -signal.SIGKILL, ended.stderr
        process.wait_for(lambda: state_of(process) == "FAILED")
    finally:
        process.end()
    record = site.record()
    assert record.cause == "crash-loop"
    assert "crashed 3 times" in record.detail
    assert record.serving.release == "parts@1"


@pytest.mark.slow
def test_a_release_that_works_in_a_session_is_committed(tmp_path: Path) -> None:
    site = Site(tmp_path, observe_s=2.0, max_kbps=0)
    try:
        site.serve_first()
        site.assign()
        with Session("parts", site.folder, look_s=0.02) as session:
            process = Process(site.folder)
            process.wait_for(lambda: session.release == "parts@2")
            for _ in range(60):
                session.infer(np.zeros((1, 4), np.float32))
            process.wait_for(lambda: state_of(process) == "SUCCEEDED")
            process.end()
    finally:
        site.artifacts.stop()
    (facts,) = (u.facts for u in site.updates() if u.state == "SUCCEEDED")
    assert facts["requests"] >= 60
