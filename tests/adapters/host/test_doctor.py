"""The doctor of a device: what it finds, and what it says to do."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from real_agents import Enrolled, enrol
from shoal.agent.doctor import Finding, check_disk, examine
from shoal.agent.host.io.config import load
from shoal.agent.identity.io.enrol import make_csr
from shoal.controller.fleet.io.ca import Authority

DAY = 86_400


def certificate_of_age(site: Enrolled, days: int, check: str = "certificate") -> Finding:
    """What a check of the doctor finds where the certificate was issued so many days ago."""
    key = load_pem_private_key((site.folder / "device.key").read_bytes(), None)
    csr, now = make_csr(key, "cam-1"), time.time() - days * DAY
    issued = Authority.open(site.pki).issue_device(csr, "cam-1", now, 0)
    (site.folder / "device.crt").write_text(issued.certificate)
    findings = examine(site.folder, load(site.folder))
    return next(found for found in findings if found.check == check)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (1, ""),
        (61, ""),
        (70, "it was not renewed when it was due"),
        (120, "ended 30 days ago"),
        (-2, "set the clock"),
    ],
)
def test_the_doctor_blames_a_certificate_that_ended_or_was_not_renewed(
    tmp_path: Path, days: int, said: str
) -> None:
    found = certificate_of_age(enrol(tmp_path), days)
    assert found.passed == (not said)
    assert said in found.detail


def test_where_a_certificate_ended_every_broken_connection_is_mended_by_a_new_one(
    tmp_path: Path,
) -> None:
    """A server that ends connections in their TLS handshake, as for a certificate it refuses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=end_connections, args=(server,), daemon=True).start()
        site = enrol(tmp_path, broker=f"mqtts://127.0.0.1:{server.getsockname()[1]}")
        hint = certificate_of_age(site, 120, "broker").hint
        assert hint.startswith("mend what the certificate's line says")
        assert "set up again" in certificate_of_age(site, 1, "broker").hint


def end_connections(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # until the server is closed
        while True:
            server.accept()[0].close()


def test_a_runtime_that_kills_its_process_is_named_and_the_doctor_lives(tmp_path: Path) -> None:
    """As on a board whose CPU lacks instructions that the build uses."""
    folder = enrol(tmp_path).folder
    (tmp_path / "onnxruntime.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    )
    run = subprocess.run(
        [sys.executable, "-m", "shoal.agent", "doctor", "--json", "--folder", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert run.returncode == 1, run.stderr
    (runtime,) = [one for one in json.loads(run.stdout) if one["check"] == "runtime"]
    assert not runtime["passed"]
    assert "SIGILL" in runtime["detail"]
    assert "another version" in runtime["hint"]


@pytest.mark.parametrize(
    ("free_mb", "detail", "hint"),
    [
        (22, "22 MB free", "make room: an update leaves 32 MB free beside its size"),
        (40, "40 MB free: room for a release of up to 8 MB", ""),
    ],
)
def test_the_doctor_judges_a_disk_by_what_an_update_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mb: int, detail: str, hint: str
) -> None:
    whole = shutil.disk_usage(tmp_path)._replace(free=free_mb << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: whole)
    found = check_disk(tmp_path)
    assert (found.detail, found.hint, found.passed) == (detail, hint, not hint)
