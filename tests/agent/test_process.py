"""A real agent process, alone: nothing else is reachable, and it serves all the same."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from real_models import put_release
from repositories import Repository
from shoal.agent.io.config import Controller, Device, Settings, Source, dump
from shoal.agent.io.journal import SqliteJournal, read_records
from shoal.agent.io.outbox import SqliteOutbox
from shoal.agent.update import Record, Slot, State
from shoal.controller.io.ca import Authority
from shoal.wire import decode_up

PATIENCE_S = 30.0


def shoal_agent(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "shoal.agent", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(shoal_agent(*arguments), capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What enrolment and one update would have left; the addresses lead nowhere."""
    folder = tmp_path / "cam-1"
    folder.mkdir()
    authority = Authority.create(tmp_path / "pki", names=["localhost"], now=time.time())
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    issued = authority.issue_device(pem, "cam-1", time.time())
    (folder / "device.crt").write_text(issued.certificate)
    (folder / "device.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "ca.pem").write_text(authority.bundle)
    repository = Repository(time.time())
    (folder / "root.json").write_bytes(repository.root)
    (folder / "director.json").write_bytes(repository.director_root)
    (folder / "rows.csv").write_text("x0,x1,x2,x3,y\n1,2,3,4,a\n4,3,2,1,b\n")
    settings = Settings(
        device=Device(name="cam-1", site="north", profile="x86-vnni"),
        controller=Controller(
            url="https://127.0.0.1:1", broker="mqtts://127.0.0.1:1", artifacts="https://127.0.0.1:1"
        ),
        source=Source(path="rows.csv", label="y", rate_hz=200),
    )
    (folder / "agent.toml").write_text(dump(settings))
    put_slot(folder)
    return folder


def put_slot(folder: Path) -> None:
    manifest = put_release(folder / "models" / "parts" / "a")
    slot = Slot(
        slot="a",
        model="parts",
        release=manifest.release,
        path="release/parts/1/manifest.json",
        sha256="0" * 64,
        variant="fp32",
        model_sha256=manifest.variant("fp32").file.sha256,
        counter=1,
        since_s=time.time(),
    )
    journal = SqliteJournal(folder / "journal.db")
    journal.save(Record(model="parts", serving=slot, state=State.IDLE))
    journal.close()


class Process:
    """One agent process that was started and has to be ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, time.monotonic()
        self.process = subprocess.Popen(
            shoal_agent("run", "--folder", folder), stderr=subprocess.PIPE, text=True
        )

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(self.folder / "agent.sock"))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = plain
        connection.request(method, path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        return answer.status, said

    def wait_until(self, path: str = "/v2/models/parts/ready") -> float:
        """Until it answers with 200; seconds since it was started."""
        while time.monotonic() - self.began < PATIENCE_S:
            try:
                if self.ask("GET", path)[0] == 200:
                    return time.monotonic() - self.began
            except OSError:
                time.sleep(0.02)
            assert self.process.poll() is None, self.process.communicate()[1]
        pytest.fail("the agent did not serve")

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


@pytest.fixture
def agent(folder: Path) -> Iterator[Process]:
    process = Process(folder)
    yield process
    process.end(signal.SIGKILL)


def test_it_serves_from_its_disk_when_nothing_else_is_there(agent: Process) -> None:
    agent.wait_until()
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    status, said = agent.ask("POST", "/v2/models/parts/infer", {"inputs": [tensor]})
    assert status == 200
    assert sum(said["outputs"][0]["data"]) == pytest.approx(1.0, abs=1e-5)


def test_a_clean_stop_hands_its_last_window_over_to_the_outbox(agent: Process) -> None:
    agent.wait_until()
    while agent.ask("GET", "/status")[1]["models"][0]["requests"] < 20:
        time.sleep(0.05)
    assert agent.end() == 0
    outbox = SqliteOutbox(agent.folder / "outbox.db", limit_bytes=1 << 20, boot_name=lambda: "x")
    kept = [decode_up(x.kind, x.payload) for x in outbox.after(0, 99)]
    assert sum(m.rows for m in kept if hasattr(m, "rows")) >= 20
    assert sum(m.labelled for m in kept if hasattr(m, "labelled")) >= 20
    outbox.close()
    assert not (agent.folder / "agent.sock").exists()


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
    import msgspec

    (folder / "models" / "parts" / "a" / "slot.json").write_bytes(msgspec.json.encode(slot))
    for path in folder.glob("journal.db*"):
        path.write_bytes(b"\x00" * 5000)
    process = Process(folder)
    process.wait_until()
    assert any("journal-lost" in f for f in process.ask("GET", "/status")[1]["faults"])
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
    assert passed == {"clock", "disk", "certificate", "runtime", "model"}
    assert "parts@1 (fp32) answers" in found["model"]["detail"]
    assert "TCP" in found["broker"]["detail"]
    assert found["broker"]["mend"]


BROKEN = {
    "agent.toml": (b"[device]\nname = 3\n", "device.name"),
    "root.json": (None, "enrol this device again"),
    "director.json": (None, "enrol this device again"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_with_something_missing_says_what(name: str, folder: Path) -> None:
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
