"""`shoal-controller mosquitto-config`: what it writes is what a real Mosquitto runs with."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.real import Site, wait_for_port
from broker.test_embedded import decommission, enrol
from ports import free_port
from programs import mosquitto
from shoal.controller.__main__ import main
from shoal.controller.broker.io.mosquitto import access_list
from shoal.controller.fleet.io.ca import Authority
from shoal.controller.store.io.database import Store
from shoal.errors import SettingError
from shoal.topics import UP_KINDS, up
from waiting import eventually

pytestmark = pytest.mark.broker


class Configured:
    """A Mosquitto that runs with the written files, and the command that keeps them up to date."""

    name = "mosquitto"

    def __init__(self, folder: Path, port: int, binary: str) -> None:
        self.pki, self.port, pid_file = folder / "pki", port, folder / "mosquitto.pid"
        write = [
            sys.executable, "-m", "shoal.controller", "mosquitto-config", "--folder", str(folder),
            "--listen", "127.0.0.1", *(["--user", "root"] if os.geteuid() == 0 else []),
        ]  # fmt: skip
        subprocess.run(write, check=True)
        self._process = subprocess.Popen([binary, "-c", folder / "mosquitto" / "mosquitto.conf"])
        pid_file.write_text(str(self._process.pid))
        wait_for_port(port)
        self._watch = subprocess.Popen([*write, "--watch", "--pid-file", str(pid_file)])

    def stop(self) -> None:
        for process in (self._watch, self._process):
            process.send_signal(signal.SIGTERM)
            process.wait(15)


@pytest.fixture
def binary() -> str:
    return mosquitto()


def test_with_watch_a_mosquitto_follows_enrolment_and_decommission(tmp_path, binary):
    folder, port = tmp_path / "controller", free_port()
    options = ["init", "--folder", str(folder), "--broker", f"mqtts://127.0.0.1:{port}"]
    assert CliRunner().invoke(main, options).exit_code == 0
    store = Store.open(f"sqlite:///{folder / 'controller.db'}")
    enrol(store, "cam-a")
    broker = Configured(folder, port, binary)
    site = Site(broker, tmp_path, Authority.open(folder / "pki"))
    try:
        controller, first = site.controller().connect(), site.device("cam-a").connect()
        late = site.device("cam-b").connect()
        enrol(store, "cam-b", at=2.0)
        eventually(lambda: arrives(late, controller, b"%d"), "the new device is allowed")
        decommission(store, "cam-a")
        eventually(lambda: not arrives(first, controller, b"late %d"), "the old one is not")
    finally:
        site.end()
        store.close()


def arrives(party, controller, form: bytes) -> bool:
    """Whether a message of a device reaches the controller, before the controller's own echo."""
    payload = form % len(controller.received)
    before = len(controller.received)
    party.link.publish(up(party.name, "window"), payload)
    controller.link.publish(up("cam-z", "round"), payload)
    eventually(lambda: (up("cam-z", "round"), payload) in controller.received[before:], "the echo")
    return (up(party.name, "window"), payload) in controller.received


def test_the_access_list_names_every_device_and_grants_nothing_by_pattern():
    text = access_list(["cam-b", "cam-a"])
    assert text.index("user cam-a") < text.index("user cam-b")
    assert "pattern" not in text
    writes = [line for line in text.splitlines() if line.startswith("topic write shoal/v1/cam-a/")]
    assert len(writes) == len(UP_KINDS)
    assert "topic write shoal/v1/cam-a/up/window" in writes
    assert "topic read shoal/v1/cam-a/down/+" in text


@pytest.mark.parametrize("name", ["cam-a\ntopic readwrite #", "+", "#", "controller"])
def test_a_name_cannot_smuggle_rights_in(name):
    with pytest.raises(SettingError, match="device name"):
        access_list([name])


def test_an_unreadable_pid_file_is_an_error_with_a_hint(tmp_path):
    folder = tmp_path / "controller"
    assert CliRunner().invoke(main, ["init", "--folder", str(folder)]).exit_code == 0
    (tmp_path / "pid").write_text("not a number")
    options = ["mosquitto-config", "--folder", str(folder), "--pid-file", str(tmp_path / "pid")]
    found = CliRunner().invoke(main, options)
    assert found.exit_code == 1
    assert "is it running" in found.output
