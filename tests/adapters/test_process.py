"""A real agent process, alone: nothing else is reachable, and it serves all the same."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from real_agents import Process, enrol, put_in_service
from shoal.agent.host.io.config import Peers, dump, load
from shoal.agent.installed.io.journal import read_records
from shoal.agent.process import STOP_S
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from shoal.wire import decode_up


def shoal_agent(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "shoal.agent", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(shoal_agent(*arguments), capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What enrolment and one update would have left; the addresses lead nowhere."""
    enrolled = enrol(tmp_path)
    put_in_service(enrolled.folder, enrolled.repository)
    return enrolled.folder


@pytest.fixture
def agent(folder: Path) -> Iterator[Process]:
    process = Process(folder)
    yield process
    process.end(signal.SIGKILL)


def test_it_serves_from_its_disk_when_nothing_else_is_there(agent: Process) -> None:
    agent.wait_until()
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    status, said = agent.request("POST", "/v2/models/parts/infer", {"inputs": [tensor]})
    assert status == 200
    assert sum(said["outputs"][0]["data"]) == pytest.approx(1.0, abs=1e-5)


def test_a_clean_stop_hands_its_last_window_over_to_the_outbox(agent: Process) -> None:
    agent.wait_until()
    while agent.request("GET", "/status")[1]["models"][0]["requests"] < 20:
        time.sleep(0.05)
    assert agent.end() == 0
    outbox = SqliteOutbox(agent.folder / "outbox.db", limit_bytes=1 << 20, boot_name=lambda: "x")
    kept = [decode_up(x.kind, x.payload) for x in outbox.after(0, 99)]
    assert sum(m.rows for m in kept if hasattr(m, "rows")) >= 20
    assert sum(m.labelled for m in kept if hasattr(m, "labelled")) >= 20
    outbox.close()
    assert not (agent.folder / "agent.sock").exists()


FEEDS = """
[sources.line]
kind = "push"

[sinks.record]
kind = "files"
path = "said"
every_s = 0.05
"""


def test_rows_posted_to_a_source_are_in_the_sinks_file_and_the_status_shows_both(
    folder: Path,
) -> None:
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + FEEDS)
    agent = Process(folder)
    agent.wait_until()
    values = agent.request("GET", "/v2/models/parts")[1]["parameters"]["features"]
    frame = {"values": dict.fromkeys(values, 1.0), "asset": "press-7"}
    assert agent.request("POST", "/sources/line", frame) == (200, {"frames": 1})
    file = folder / "said"
    agent.wait_for(lambda: any("press-7,parts,parts@1" in p.read_text() for p in file.glob("*")))
    feeds = {f["name"]: f for f in agent.request("GET", "/status")[1]["feeds"]}
    assert (feeds["line"]["count"], feeds["record"]["up"]) == (1, True)
    assert "push line: up, 1 so far" in run("status", "--folder", folder).stdout
    assert agent.end() == 0


def test_kill_9_and_again_it_serves(folder: Path) -> None:
    for _ in range(3):
        process = Process(folder)
        process.wait_until()
        process.end(signal.SIGKILL)
    process = Process(folder)
    process.wait_until()
    assert process.end() == 0


def test_a_damaged_journal_costs_no_service(folder: Path) -> None:
    process = Process(folder)
    process.wait_until()
    (folder / "models" / "parts" / "current").symlink_to("a")
    process.end()
    slot = read_records(folder / "journal.db")["parts"].serving
    (folder / "models" / "parts" / "a" / "slot.json").write_bytes(msgspec.json.encode(slot))
    for path in folder.glob("journal.db*"):
        path.write_bytes(b"\x00" * 5000)
    process = Process(folder)
    process.wait_until()
    assert any("journal-lost" in f for f in process.request("GET", "/status")[1]["faults"])
    process.end()


def test_a_folder_is_one_agents_alone(agent: Process) -> None:
    agent.wait_until()
    second = run("run", "--folder", agent.folder)
    assert second.returncode == 1
    assert "another agent runs" in second.stderr


def test_the_technicians_screen_is_there_whether_it_runs_or_not(agent: Process) -> None:
    agent.wait_until()
    up = run("status", "--folder", agent.folder)
    assert "parts@1 (fp32) serves" in up.stdout
    assert "no connection to the broker" in up.stdout
    agent.end()
    down = run("status", "--folder", agent.folder)
    assert "NOT RUNNING" in down.stdout
    assert "parts@1 (fp32) serves" in down.stdout
    assert json.loads(run("status", "--json", "--folder", agent.folder).stdout)["running"] is False


def test_the_doctor_names_what_is_out_of_reach_and_tries_the_model(folder: Path) -> None:
    examined = run("doctor", "--json", "--folder", folder)
    found = {f["check"]: f for f in json.loads(examined.stdout)}
    assert examined.returncode == 1
    passed = {name for name, f in found.items() if f["passed"]}
    assert passed == {"clock", "disk", "certificate", "peers", "feeds", "runtime", "model"}
    assert "parts@1 (fp32) answers" in found["model"]["detail"]
    assert "TCP" in found["broker"]["detail"]
    assert found["broker"]["hint"] == found["broker"]["mend"] != ""


def test_a_peer_port_in_use_does_not_stop_inference(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.1)
        port = other.getsockname()[1]
        folder = enrol(tmp_path, peers=Peers(enabled=True, host="127.0.0.1", port=port)).folder
        put_in_service(folder)
        agent = Process(folder)
        try:
            agent.wait_for(lambda: "peers-off" in str(agent.request("GET", "/status")[1]["faults"]))
            said = run("status", "--folder", folder).stdout
            assert said.count("downloads are not shared: peers: 127.0.0.1:") == 2
            assert "peers-off" in said
            found = peers_check(folder)
            assert not found["passed"]
            assert found["hint"] == "choose another [peers] port"
        finally:
            agent.end()
    assert peers_check(folder)["detail"] == f"port {port} is free"
    agent = Process(folder)
    try:
        agent.wait_until()
        assert peers_check(folder)["detail"] == f"this device answers on port {port}"
        assert "downloads are shared at" in run("status", "--folder", folder).stdout
    finally:
        agent.end()


def peers_check(folder: Path) -> dict[str, object]:
    checks = json.loads(run("doctor", "--json", "--folder", folder).stdout)
    return next(found for found in checks if found["check"] == "peers")


def test_a_device_that_is_not_enrolled_reports_only_that(tmp_path: Path) -> None:
    told = run("run", "--folder", tmp_path / "nobody")
    assert told.returncode == 1
    assert told.stderr.startswith("Error: ")
    assert len(told.stderr.splitlines()) == 1
    assert "shoal-agent enroll" in told.stderr


BROKEN = {
    "agent.toml": (b"[device]\nname = 3\n", "device.name"),
    "root.json": (None, "enrol this device again"),
    "director.json": (None, "enrol this device again"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_error_names_what_is_missing_in_a_folder(name: str, folder: Path) -> None:
    content, said = BROKEN[name]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    told = run("run", "--folder", folder)
    assert told.returncode == 1
    assert said in told.stderr
    assert "Traceback" not in told.stderr


def test_a_taken_port_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (folder / "agent.toml").open("a") as file:
            file.write(f"\n[endpoint]\nport = {port}\n")
        told = run("run", "--folder", folder)
    assert told.returncode == 1
    assert "[endpoint]" in told.stderr
    assert "Traceback" not in told.stderr


def test_systemd_hears_when_it_is_ready_that_it_lives_and_when_it_stops(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(30.0)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    process = Process(folder)
    try:
        said = ""
        while "READY=1" not in said or said.count("WATCHDOG=1") < 2:
            said += manager.recv(4096).decode() + "\n"
        process.wait_until()
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(folder / "agent.sock"))
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        page = b"".join(iter(lambda: plain.recv(65_536), b""))
        plain.close()
        assert b"Content-Type: text/html" in page
        assert b"cam-1" in page
        assert process.end() == 0
        while "STOPPING=1" not in said:
            said += manager.recv(4096).decode() + "\n"
    finally:
        process.end(signal.SIGKILL)
        manager.close()


def test_it_ends_in_time_whatever_hangs(folder: Path) -> None:
    """A PLC and a broker that take connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = load(folder)
        address = msgspec.structs.replace(settings.controller, broker=f"mqtts://127.0.0.1:{port}")
        sources = {
            "plc": {
                "kind": "modbus",
                "host": "127.0.0.1",
                "port": port,
                "tags": [{"name": "x0", "address": 1}],
            },
            "bus": {"kind": "mqtt", "url": f"mqtt://127.0.0.1:{port}", "topics": ["x"]},
        }
        changed = msgspec.structs.replace(settings, controller=address, sources=sources)
        (folder / "agent.toml").write_text(dump(changed))
        process = Process(folder)
        process.wait_until()
        began = time.monotonic()
        assert process.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < STOP_S + 3, "three more on a busy machine"
