"""A real agent and a real controller: enrolment, a release, and a broker that is killed.

All of it over one loopback address, that of IPv6 where this machine has it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from broker.served import Api, Served, init, release_to_everybody, write_digits
from ports import has_ipv6, is_open
from programs import nats_server
from shoal.agent.telemetry.reporter import RESEND_S
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]
AGENT = [sys.executable, "-m", "shoal.agent"]
KILLS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A controller that listens on one loopback address alone, and is known by it."""
    nats_server()
    folder = tmp_path_factory.mktemp("one-address") / "controller"
    address = "::1" if has_ipv6() else "127.0.0.1"
    made = Served(folder)
    made.facts = json.loads(init(folder, "--json", "--window-s=1", f"--name={address}"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def agent(served: Served, tmp_path_factory: pytest.TempPathFactory):
    """A running agent that replays the digits, and serves a release that was rolled out."""
    served.start().ready()
    api, base = Api(served), tmp_path_factory.mktemp("agent")
    folder, table = base / "agent", write_digits(base / "digits.csv")
    token = api.post("join-tokens", {"site": "plant", "rings": ["stable"], "uses": 1})["secret"]
    enroll = [
        *AGENT, "enroll", "--folder", folder, "--controller", api.url, "--token", token,
        "--name", "cam-a", "--source", f"replay:{table}", "--source-label", "digit",
    ]  # fmt: skip
    subprocess.run(enroll, check=True)
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + "\n[update]\nobserve_s = 1.0\n")
    process = subprocess.Popen([*AGENT, "run", "--folder", folder])
    release_to_everybody(api, table)
    yield api, settings
    process.send_signal(signal.SIGTERM)
    process.wait(30)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.timeout(240)
def test_a_device_enrols_runs_and_is_updated_over_ipv6_alone(served: Served, agent):
    api, settings = agent
    text = settings.read_text()
    for name, scheme in (("url", "https"), ("broker", "mqtts"), ("artifacts", "https")):
        assert f'{name} = "{scheme}://[::1]:' in text
    ports = [int(port) for port in re.findall(r"//\[::1\]:(\d+)", text)]
    assert len(set(ports)) == 3
    assert not any(map(is_open, ports)), "nothing of it listens on an address of IPv4"
    device = api.get("devices/cam-a")
    assert device["online"]
    assert device["releases"]
    [rollout] = api.get("rollouts")["items"]
    assert (rollout["state"], rollout["stages"][-1]["succeeded"]) == ("FINISHED", 1)


@pytest.mark.timeout(240)
def test_no_window_is_lost_when_the_broker_is_killed_again_and_again(served: Served, agent):
    api, _ = agent

    def ledger() -> dict[str, Any]:
        entries = api.get("devices/cam-a/ledger")["items"]
        assert len(entries) == 1, entries
        return entries[0]

    eventually(lambda: ledger()["windows"] >= 3, "the first windows", 60)
    for _ in range(KILLS):
        before, pid = ledger()["highest"], served.children()["nats"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda old=pid: served.children().get("nats", old) != old, "a new broker", 30)
        eventually(lambda old=before: ledger()["highest"] >= old + 4, "windows flow again", 60)
    highest = ledger()["highest"]

    def complete() -> bool:
        found = ledger()
        return found["missing"] == 0 and found["received"] == found["highest"] >= highest

    # what a broker took and lost comes again when no ack came
    eventually(complete, "all that the broker lost is sent again", 2 * RESEND_S)
    windows = api.get("devices/cam-a/windows?limit=200")["items"]
    starts = [window["start_at"] for window in windows]
    assert len(starts) == len(set(starts))
    assert not any("twice" in alert["title"] for alert in api.get("alerts")["items"])
