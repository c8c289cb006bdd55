"""Two real agents from copies of one folder, at a real broker: an alert names it, with a hint."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.served import Api, Served
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]
AGENT = [sys.executable, "-m", "shoal.agent"]


@pytest.mark.timeout(300)
def test_two_agents_from_one_folder_raise_an_alert_with_a_hint(
    served: Served, tmp_path: Path
) -> None:
    served.start().ready()
    api, folder = Api(served), tmp_path / "agent"
    token = api.post("join-tokens", {"site": "plant", "rings": ["stable"], "uses": 1})["secret"]
    subprocess.run(
        [*AGENT, "enroll", "--folder", folder, "--controller", api.url, "--token", token,
         "--name", "cam-a"],
        check=True,
    )  # fmt: skip
    running = [subprocess.Popen([*AGENT, "run", "--folder", folder])]
    try:
        eventually(lambda: api.get("devices/cam-a")["online"], "the one agent connects", 60)
        assert api.get("alerts")["items"] == []
        shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("agent.sock"))
        running.append(subprocess.Popen([*AGENT, "run", "--folder", tmp_path / "copy"]))
        eventually(lambda: api.get("alerts")["items"], "an alert", 200)
        (alert,) = api.get("alerts")["items"]
        assert (alert["title"], alert["severity"]) == ("cam-a runs twice", "critical")
        assert "shoal device decommission cam-a" in alert["next_step"]
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
