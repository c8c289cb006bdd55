"""The agent as a service: its unit, what it tells systemd, the page for who stands before it."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from endpoints import inference_of
from shoal.agent.__main__ import main
from shoal.agent.feeds.frames import FeedHealth
from shoal.agent.feeds.io.plugins import outside
from shoal.agent.host.io.notify import Notifier, Watchdog
from shoal.agent.host.unit import Outside, unit
from shoal.agent.serving.routes import Request
from shoal.agent.status import DeviceStatus, ModelStatus
from shoal.agent.status_page import page
from shoal.errors import ModelError, SettingError

SYSTEMD = shutil.which("systemd-analyze")


def text(**other: object) -> str:
    plain = {
        "program": "/opt/shoal/bin/shoal-agent", "folder": "/var/lib/shoal-agent",
        "user": "shoal", "memory_mb": 384,
    }  # fmt: skip
    return unit(**plain | other)  # type: ignore[arg-type]


def test_the_unit_names_what_was_asked_for() -> None:
    made = text(folder="/data/shoal", user="edge", memory_mb=200).splitlines()
    for line in (
        "Type=notify",
        "ExecStart=/opt/shoal/bin/shoal-agent run --folder /data/shoal",
        "User=edge",
        "MemoryHigh=200M",
        "MemoryMax=300M",
        "LimitNOFILE=4096",
        "ReadWritePaths=/data/shoal",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "SystemCallFilter=@system-service",
    ):
        assert line in made, line


@pytest.mark.parametrize(
    "wrong",
    [{"folder": "/a b"}, {"user": "x\nExecStart=/bin/sh"}, {"program": "%h/x"}, {"memory_mb": 64}],
    ids=str,
)
def test_what_would_break_out_of_the_unit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        text(**wrong)


@pytest.mark.skipif(not SYSTEMD, reason="no systemd-analyze here")
def test_systemd_itself_finds_the_unit_sound_and_the_service_well_confined(tmp_path: Path) -> None:
    program = tmp_path / "shoal-agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "shoal-agent.service"
    beside = Outside(reads=("/home/ana/rows.csv",), writes=("/srv/predictions",))
    path.write_text(text(program=str(program), folder=str(tmp_path), outside=beside))
    found = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-300:]


def test_install_shows_the_unit_and_changes_nothing(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["install", "--folder", str(tmp_path / "x"), "--show"])
    assert shown.exit_code == 0, shown.output
    assert f"ReadWritePaths={tmp_path / 'x'}" in shown.output
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------ sd_notify


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plain = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.plain.bind(str(path))
        self.plain.setblocking(False)

    def heard(self) -> list[str]:
        said = []
        while True:
            try:
                said += self.plain.recv(4096).decode().split("\n")
            except BlockingIOError:
                return said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.plain.close()


def watched(manager: Manager, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "30000000", **more})


def test_systemd_is_notified_in_its_protocol(manager: Manager) -> None:
    watched(manager).notify(READY="1", STATUS="serves")
    assert manager.heard() == ["READY=1", "STATUS=serves"]


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).notify(READY="1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).notify(READY="1")
    assert Notifier({"WATCHDOG_USEC": "5"}).watchdog_s == 0


def test_anothers_watchdog_is_not_fed(manager: Manager) -> None:
    assert watched(manager, WATCHDOG_PID="1").watchdog_s == 0
    assert watched(manager, WATCHDOG_PID=str(os.getpid())).watchdog_s == 30


class Signs:
    """What a watchdog looks at, set by the test."""

    def __init__(self, manager: Manager) -> None:
        self.now, self.broken, self.turns, self.asked = 100.0, False, True, 0
        self.dog = Watchdog(
            watched(manager), monotonic=lambda: self.now, infer=self.infer,
            answers=lambda: self.turns,
        )  # fmt: skip

    def infer(self) -> None:
        self.asked += 1
        if self.broken:
            raise ModelError("the session is gone")


def test_it_is_fed_three_times_in_its_time_and_only_after_an_answer(manager: Manager) -> None:
    signs = Signs(manager)
    for _ in range(60):
        signs.now += 1.0
        signs.dog.tick()
    assert manager.heard().count("WATCHDOG=1") == signs.asked == 6


@pytest.mark.parametrize("what", ["broken", "stuck"])
def test_a_model_that_fails_or_an_endpoint_that_hangs_starves_it(
    manager: Manager, what: str
) -> None:
    signs = Signs(manager)
    signs.broken, signs.turns = what == "broken", what != "stuck"
    for _ in range(60):
        signs.now += 1.0
        signs.dog.tick()
    assert "WATCHDOG=1" not in manager.heard()


# ------------------------------------------------------------------ the page

STANDING = DeviceStatus(
    device="press-4", site="north <b>", profile="rpi5", ring="stable", agent="0.1.0",
    now_s=1e9 + 4_000, running=True, connected=True, connection_since_s=1e9, waiting=3,
    models=[
        ModelStatus(
            model="m", release="m@1", variant="int8", since_s=1e9, state="SUCCEEDED",
            wanted="m@1", requests=7, errors=1,
        )
    ],
    feeds=[FeedHealth(name="plc", kind="modbus", up=True, count=12)],
    health={"rss_mb": 61.5, "temp_c": -1},
)  # fmt: skip


def test_the_page_shows_what_runs_since_when_and_that_all_is_well() -> None:
    shown = page(STANDING)
    for part in ("press-4", "m@1", "int8", "66 min", "Nothing is wrong", "modbus plc", "61.5 MB"):
        assert part in shown, part
    assert "<script" not in shown
    assert "north &lt;b&gt;" in shown
    assert "°C" not in shown, "what the machine does not tell is not shown"


def test_the_page_shows_failures_with_their_hints() -> None:
    hot = msgspec.structs.replace(STANDING, connected=False, level="slower", models=[])
    shown = page(hot)
    for part in ("Wrong:", "no connection", "no release serves", "heat, dust", "<b>Do:</b>"):
        assert part in shown, part


def test_the_endpoint_shows_the_page_to_a_browser() -> None:
    inference = inference_of({}, page=lambda: page(STANDING))
    answer = inference.respond(Request("GET", "/", b""))
    assert (answer.status, answer.html) == (200, True)
    assert answer.body.startswith(b"<!doctype html>")


# ------------------------------------------------------------------ the sandbox and agent.toml


def test_the_sandbox_lets_through_what_agent_toml_names_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "cam-1"
    folder.mkdir()
    (folder / "agent.toml").write_text(
        """
        [device]
        name = "cam-1"
        [source]
        path = "/srv/rows.csv"
        [sources.camera]
        kind = "images"
        path = "/srv/images"
        width = 8
        height = 8
        after = "move"
        [sources.look]
        kind = "images"
        path = "/home/ana/images"
        width = 8
        height = 8
        [sinks.day]
        kind = "files"
        path = "/srv/answers/../predictions"
        [sinks.inside]
        kind = "files"
        path = "predictions"
        """
    )
    found = outside(folder)
    assert found.writes == ("/srv/images", "/srv/predictions")
    assert found.reads == ("/home/ana/images", "/srv/rows.csv")
    made = text(folder=str(folder), outside=found).splitlines()
    written = [line for line in made if line.startswith("ReadWritePaths=")]
    assert written == [
        f"ReadWritePaths={folder}",
        "ReadWritePaths=-/srv/images",
        "ReadWritePaths=-/srv/predictions",
    ]
    assert "ProtectHome=read-only" in made, "a source is in /home"


def test_what_a_service_cannot_see_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match="/tmp of its own"):
        text(outside=Outside(writes=("/tmp/predictions",)))
    with pytest.raises(SettingError, match=r"path in agent\.toml"):
        text(outside=Outside(reads=("/srv/my rows.csv",)))


def test_before_enrolment_nothing_is_let_through(tmp_path: Path) -> None:
    assert outside(tmp_path) == Outside()
