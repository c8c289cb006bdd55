"""`shoal-controller serve`, whole: it becomes ready, heals, refuses clearly and leaves nothing."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker.real import eventually, free_port
from shoal.controller.io.nats import find_binary
from shoal.errors import SettingError

pytestmark = [pytest.mark.broker, pytest.mark.slow]
CONTROLLER = [sys.executable, "-m", "shoal.controller"]


class Served:
    """A controller on free ports, served by a real supervisor."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.lines = folder, []
        self._environment = {**os.environ, **environment}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Served":
        self.process = subprocess.Popen(
            [*CONTROLLER, "serve", "--folder", str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        return self

    def _read(self, stream) -> None:
        with stream:
            for line in stream:
                self.lines.append(line.rstrip())

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def ready(self) -> "Served":
        eventually(lambda: "ready: https://" in self.said, f"ready line in: {self.said}", 60)
        return self

    def children(self) -> dict[str, int]:
        """Name -> pid of the running children."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            words = _words(entry)
            if str(self.folder) in " ".join(words) and "serve" not in words:
                found[words[words.index("shoal.controller") + 1] if "-m" in words else "nats"] = (
                    int(entry.name)
                )
        return found

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


@pytest.fixture
def controller(tmp_path):
    try:
        find_binary(os.environ)
    except SettingError as error:
        pytest.skip(str(error))
    folder = tmp_path / "controller"
    ports = [f"--{name}={free_port()}" for name in ("port", "artifacts-port", "mqtt-port")]
    subprocess.run([*CONTROLLER, "init", "--folder", str(folder), *ports], check=True)
    made = Served(folder)
    yield made
    if made.process is not None:
        made.end()


def port_of(folder: Path, setting: str) -> int:
    text = (folder / "controller.toml").read_text()
    return int(re.search(rf"^{setting} = (\d+)", text, re.MULTILINE)[1])


def doctor(folder: Path) -> dict[str, str]:
    command = [*CONTROLLER, "doctor", "--folder", str(folder), "--json"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return {check["name"]: check["state"] for check in json.loads(out)["checks"]}


def test_it_becomes_ready_heals_what_is_killed_and_leaves_nothing_behind(controller):
    controller.start().ready()
    assert set(doctor(controller.folder).values()) == {"ok"}
    children = controller.children()
    assert set(children) == {"broker", "nats", "artifacts", "web", "engine"}
    for name in ("nats", "artifacts"):
        os.kill(children[name], signal.SIGKILL)
    eventually(
        lambda: (
            {"nats", "artifacts"} <= set(controller.children())
            and controller.children()["nats"] != children["nats"]
        ),
        "both are back",
    )
    eventually(lambda: set(doctor(controller.folder).values()) == {"ok"}, "all answers again")
    assert "artifacts was killed by signal 9" in controller.said
    second = subprocess.run(
        [*CONTROLLER, "serve", "--folder", str(controller.folder)], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert "being served already" in second.stderr
    assert controller.end() == 0
    assert controller.children() == {}


def test_when_the_supervisor_itself_is_killed_nothing_keeps_its_ports(controller):
    controller.start().ready()
    controller.process.kill()
    eventually(lambda: controller.children() == {}, "all children end")
    controller.lines.clear()
    controller.start().ready()


def test_a_taken_port_is_named_with_its_setting(controller):
    with socket.create_server(("127.0.0.1", port_of(controller.folder, "artifacts"))):
        controller.start()
        assert controller.process.wait(30) == 1
    eventually(lambda: "[network] artifacts" in controller.said, controller.said)
    assert str(port_of(controller.folder, "artifacts")) in controller.said


def test_without_a_broker_to_run_it_does_not_begin(controller):
    controller._environment["NATS_SERVER"] = str(controller.folder / "absent")
    controller.start()
    assert controller.process.wait(30) == 1
    eventually(lambda: "NATS_SERVER" in controller.said, controller.said)
