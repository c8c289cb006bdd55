"""The unit under a real systemd: notify, watchdog, sandbox. Asked for by SHOAL_SYSTEMD=1, as root.

systemd is process 1 of namespaces of its own. It sees this machine read-only, with its own /tmp,
/run and units, and nothing that a boot does: it can start the agent, and harm nothing.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from real_agents import enrol, put_in_service
from shoal.agent.feeds.io.plugins import outside
from shoal.agent.host.unit import unit

SYSTEMD = Path("/usr/lib/systemd/systemd")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("SHOAL_SYSTEMD") != "1", reason="set SHOAL_SYSTEMD=1 to run"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not SYSTEMD.exists() or not shutil.which("nsenter"),
        reason="needs root, systemd and util-linux",
    ),
]

#: Units that a boot wants, all empty.
TARGETS = (
    "sysinit", "basic", "multi-user", "shutdown", "network-online", "time-sync", "umount", "final",
)  # fmt: skip
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs none /run
mkdir -p /run/etc
mount -t tmpfs none /var/lib
mkdir /var/lib/site
mount --bind {site} /var/lib/site
mount -t tmpfs none /usr/lib/systemd/system-generators
mount -t tmpfs none /usr/lib/systemd/system-environment-generators || true
mount -t tmpfs none /usr/lib/systemd/system
mount -t tmpfs none /etc/systemd/system
cp {units}/* /usr/lib/systemd/system/
ln -s multi-user.target /usr/lib/systemd/system/default.target
sed '$a shoal:x:61999:61999::/var/lib/site:/usr/sbin/nologin' /etc/passwd > /run/etc/passwd
sed '$a shoal:x:61999:' /etc/group > /run/etc/group
mount --bind /run/etc/passwd /etc/passwd
mount --bind /run/etc/group /etc/group
mount -t tmpfs none /var/tmp
mount -t tmpfs none /tmp
touch /run/console
mount --bind /run/console /dev/console
mount -t cgroup2 none /sys/fs/cgroup
mount -o remount,bind,ro /
export container=shoal
exec {systemd} --system --unit=multi-user.target --log-target=console --show-status=0
"""


class Machine:
    """A machine in namespaces whose process 1 is systemd."""

    def __init__(self, site: Path, units: Path) -> None:
        script = BOOT.format(site=site, units=units, systemd=SYSTEMD)
        spaces = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
        self._process = subprocess.Popen(
            ["unshare", *spaces, "--cgroup", "--ipc", "--uts", "/bin/bash", "-c", script]
        )
        self.first = self._child()

    def _child(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        end = time.monotonic() + 20
        while not (found := children.read_text().split()):
            assert time.monotonic() < end
            time.sleep(0.01)
        return int(found[0])

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        inside = ["nsenter", "-t", str(self.first), "-a", *command]
        return subprocess.run(inside, capture_output=True, text=True, timeout=90)

    def property_of(self, name: str) -> str:
        """A property of the service."""
        return self("systemctl", "show", "-P", name, "shoal-agent").stdout.strip()

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self("systemctl", "status", "shoal-agent").stdout
            time.sleep(0.1)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    site = tmp_path / "site"
    site.mkdir()
    folder, _, _ = enrol(site)
    put_in_service(folder)
    with (folder / "agent.toml").open("a") as settings:
        settings.write(
            '\n[sinks.day]\nkind = "files"\npath = "/var/lib/site/answers"\nevery_s = 0.5\n'
        )
    (site / "answers").mkdir()
    (site / "elsewhere").mkdir()
    for path in (site, *site.rglob("*")):
        os.chown(path, 61999, 61999, follow_symlinks=False)
    units = tmp_path / "units"
    units.mkdir()
    for name in TARGETS:
        (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    program = Path(sys.executable).with_name("shoal-agent")
    text = unit(
        program=str(program), folder="/var/lib/site/cam-1", user="shoal", memory_mb=384,
        outside=outside(folder),
    )  # fmt: skip
    # Shorten the watchdog's minute, and keep its log.
    text = text.replace("WatchdogSec=60", "WatchdogSec=6").replace("RestartSec=5", "RestartSec=1")
    text = text.replace(
        "[Install]", "StandardError=append:/var/lib/site/cam-1/agent.log\n\n[Install]"
    )
    (units / "shoal-agent.service").write_text(text)
    made = Machine(site, units)
    try:
        made.until(lambda: made("systemctl", "is-active", "multi-user.target").returncode == 0)
        yield made
    finally:
        made.end()


def test_a_real_systemd_starts_watches_confines_and_ends_the_agent(
    machine: Machine, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    started = machine("systemctl", "start", "shoal-agent")  # returns after READY=1
    log = site / "cam-1" / "agent.log"
    assert started.returncode == 0, started.stderr + (log.read_text() if log.exists() else "")
    assert machine.property_of("ActiveState") == "active"
    machine.until(lambda: machine.property_of("StatusText") == "serving")

    main = machine.property_of("MainPID")
    status = machine("cat", f"/proc/{main}/status").stdout
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["Uid"].split()[0] == "61999"
    assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")
    assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0

    inside = ("nsenter", "-t", main, "-m", "touch")
    for path, may in (("cam-1/x", True), ("answers/x", True), ("elsewhere/x", False)):
        wrote = machine(*inside, f"/var/lib/site/{path}")
        assert (wrote.returncode == 0) is may, (path, wrote.stderr)
    machine.until(lambda: any(p.suffix == ".csv" for p in (site / "answers").iterdir()))

    machine("kill", "-STOP", main)  # a stopped process does not ping the watchdog
    machine.until(lambda: machine.property_of("NRestarts") == "1")
    machine.until(lambda: machine.property_of("ActiveState") == "active")
    assert machine.property_of("MainPID") != main
    machine.until(lambda: machine.property_of("StatusText") == "serving")

    assert machine("systemctl", "stop", "shoal-agent").returncode == 0
    assert (machine.property_of("Result"), machine.property_of("ExecMainStatus")) == (
        "success",
        "0",
    )
