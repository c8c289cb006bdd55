"""`shoal-controller serve`, whole: it becomes ready, heals, refuses clearly and leaves nothing."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from broker.served import CONTROLLER, Served
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def port_of(folder: Path, setting: str) -> int:
    text = (folder / "controller.toml").read_text()
    return int(re.search(rf"^{setting} = (\d+)", text, re.MULTILINE)[1])


def doctor(folder: Path) -> dict[str, str]:
    command = [*CONTROLLER, "doctor", "--folder", str(folder), "--json"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return {check["name"]: check["state"] for check in json.loads(out)["checks"]}


def test_it_becomes_ready_heals_what_is_killed_and_leaves_nothing_behind(served: Served):
    served.start().ready()
    assert set(doctor(served.folder).values()) == {"ok"}
    children = served.children()
    assert set(children) == {"broker", "nats", "artifacts", "web", "engine"}
    for name in ("nats", "artifacts"):
        os.kill(children[name], signal.SIGKILL)
    eventually(
        lambda: (
            {"nats", "artifacts"} <= set(served.children())
            and served.children()["nats"] != children["nats"]
        ),
        "both are back",
    )
    eventually(lambda: set(doctor(served.folder).values()) == {"ok"}, "all answers again")
    assert "artifacts was killed by signal 9" in served.output
    second = subprocess.run(
        [*CONTROLLER, "serve", "--folder", str(served.folder)], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert "is served already" in second.stderr
    assert served.end() == 0
    assert served.children() == {}


def test_when_the_supervisor_itself_is_killed_nothing_keeps_its_ports(served: Served):
    served.start().ready()
    served.process.kill()
    eventually(lambda: served.children() == {}, "all children end")
    served.lines.clear()
    served.start().ready()


def test_a_taken_port_is_named_with_its_setting(served: Served):
    with socket.create_server(("127.0.0.1", port_of(served.folder, "artifacts"))):
        served.start()
        assert served.process.wait(30) == 1
    eventually(lambda: "[network] artifacts" in served.output, served.output)
    assert str(port_of(served.folder, "artifacts")) in served.output


def test_without_a_broker_to_run_it_does_not_begin(served: Served):
    served._environment["NATS_SERVER"] = str(served.folder / "absent")
    served.start()
    assert served.process.wait(30) == 1
    eventually(lambda: "NATS_SERVER" in served.output, served.output)
