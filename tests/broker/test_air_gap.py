"""An offline bundle brings a release to a device without a network and its telemetry back.

A real controller, a real agent process, the real commands; the device has seen the network once,
to enrol.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.served import Api, Served, write_digits
from ports import free_port
from real_agents import Process
from shoal.agent.telemetry.io.outbox_store import SqliteOutbox
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(240)]

NAME, MODEL = "press-1", "lot-codes"


class Gap:
    """A controller, a device, and the offline bundle carried between them."""

    def __init__(self, served: Served, parent: Path) -> None:
        self.api, self.served = Api(served), served
        self.folder, self.bundle = parent / NAME, parent / "bundle"
        self.bundle.mkdir()
        asked = {"name": "cli", "role": "operator", "password": served.facts["admin_password"]}
        secret = self.api.post("tokens", asked)["secret"]
        self.environment = os.environ | {
            "SHOAL_URL": self.api.url,
            "SHOAL_TOKEN": secret,
            "SHOAL_CA": str(served.folder / "pki" / "ca.pem"),
            "HOME": str(parent),
        }

    def enrol(self, table: Path) -> None:
        """Enrol over the network, then take the device off it."""
        token = self.api.post("join-tokens", {"site": "north"})["secret"]
        source = f"replay:{table}"
        self.agent(
            "enroll", "--controller", self.api.url, "--token", token, "--name", NAME,
            "--source", source, "--source-label", "digit",
        )  # fmt: skip
        self.settings = self.folder / "agent.toml"
        more = f"[update]\nobserve_s = 1.0\n[peers]\nenabled = true\nport = {free_port()}\n"
        self.at_home = self.settings.read_text() + "\n" + more
        away = self.at_home
        for address in self._addresses():
            away = away.replace(address, address.partition("://")[0] + "://127.0.0.1:1")
        self.settings.write_text(away)

    def _addresses(self) -> list[str]:
        lines = [line for line in self.at_home.splitlines() if "://" in line]
        return [line.split('"')[1] for line in lines]

    def train(self, table: Path) -> str:
        """Start a rollout of a new release to all devices; return its name."""
        self.api.upload("datasets", table, {"name": "digits", "label": "digit"})
        asked = {"dataset": "digits@1", "estimator": "logistic"}
        operation = f"operations/{self.api.post(f'models/{MODEL}/train', asked)['id']}"
        over = ("succeeded", "failed")
        eventually(lambda: self.api.get(operation)["state"] in over, "training", 90)
        release = self.api.get(operation)["result"]["release"]
        self.api.post(f"releases/{release}/publish", {})
        plan = {"release": release, "stages": [{"name": "all"}], "deadline_s": 30 * 86_400.0}
        self.rollout = self.api.post("rollouts", plan)["id"]
        devices = f"rollouts/{self.rollout}/devices"
        eventually(lambda: self.api.get(devices)["items"][0]["state"] == "ASSIGNED", "the order")
        return release

    def agent(self, *words: str) -> str:
        """`shoal-agent ...`"""
        return self._run("shoal.agent", *words, "--folder", str(self.folder))

    def shoal(self, *words: str) -> Any:
        """`shoal ...`"""
        return json.loads(self._run("shoal.cli", *words, "--json"))

    def import_at_controller(self, *options: str) -> dict[str, Any]:
        """Import the bundle at the controller; number of messages, and of new ones."""
        receipts = self.shoal("bundle", "import", str(self.bundle), *options)["parcels"]
        return {key: sum(one[key] for one in receipts) for key in ("letters", "fresh")}

    def ledger(self) -> dict[str, Any]:
        (only,) = self.api.get(f"devices/{NAME}/ledger")["items"]
        return only

    def status(self, process: Process) -> dict[str, Any]:
        return process.request("GET", "/status")[1]

    def waiting(self) -> int:
        outbox = SqliteOutbox(self.folder / "outbox.db", limit_bytes=2**20, boot_name=str)
        outbox.close()
        return outbox.waiting

    def _run(self, module: str, *words: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", module, *words],
            env=self.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout


@pytest.fixture
def gap(served: Served, tmp_path: Path) -> Gap:
    return Gap(served.start().ready(), tmp_path)


def test_an_offline_bundle_brings_a_release_and_returns_the_devices_telemetry(
    gap: Gap, tmp_path: Path
) -> None:
    table = write_digits(tmp_path / "digits.csv")
    gap.enrol(table)
    release = gap.train(table)
    exported = gap.shoal("bundle", "export", str(gap.bundle), "--site", "north")
    assert (exported["releases"], exported["devices"]) == ([release], [NAME])
    assert release in gap.agent("import", str(gap.bundle))  # before the agent's first start

    process = Process(gap.folder)
    try:
        models = f"/v2/models/{MODEL}/ready"
        process.wait_until(models)
        process.wait_for(lambda: gap.status(process)["models"][0]["state"] == "SUCCEEDED")
        gap.agent("export", str(gap.bundle))  # while it runs
        imported = gap.import_at_controller()
        assert imported["letters"] == imported["fresh"] + 1  # the inventory has no number
        eventually(lambda: gap.api.get(f"rollouts/{gap.rollout}")["state"] == "FINISHED", "it")
        device = gap.api.get(f"devices/{NAME}")
        assert (device["releases"], device["online"]) == ({MODEL: release}, False)
        assert device["facts"]["peer"].startswith("127.0.0.1:")
    finally:
        process.end()

    gap.agent("export", str(gap.bundle))  # while it does not: the last window went to the outbox
    twice = tmp_path / "lost and found"
    shutil.copytree(gap.bundle, twice)
    assert gap.import_at_controller()["fresh"] >= 1
    assert gap.shoal("bundle", "import", str(twice))["parcels"][0]["fresh"] == 0
    ledger = gap.ledger()
    assert (ledger["missing"], ledger["windows"] > 0, ledger["rows"] > 0) == (0, True, True)
    assert gap.waiting() == ledger["received"]  # an export removes nothing from the outbox

    gap.shoal("bundle", "export", str(gap.bundle), "--device", NAME)
    process = Process(gap.folder)
    try:
        process.wait_until(models)
        gap.agent("import", str(gap.bundle))  # while it runs
        process.wait_for(lambda: not (gap.folder / "carried").exists())
    finally:
        process.end()
    assert 0 < gap.waiting() < 5  # since this start: the import event and the last window

    gap.settings.write_text(gap.at_home)
    process = Process(gap.folder)
    try:
        process.wait_for(lambda: gap.api.get(f"devices/{NAME}")["online"])
        process.wait_for(lambda: gap.status(process)["waiting"] == 0)
    finally:
        process.end()
    after = gap.ledger()
    assert after["missing"] == 0
    assert after["received"] == after["highest"] > ledger["received"]
    verbs = [entry["verb"] for entry in gap.api.get("audit?limit=100")["items"]]
    assert verbs.count("folder.export") == 2
    assert verbs.count("folder.import") == 3
    timeline = gap.api.get(f"devices/{NAME}/timeline")["items"]
    assert [event["cause"] for event in timeline].count("folder-imported") == 2
