"""Devices that share report their address, others get it, and a release is downloaded once.

A real controller with its broker and artifact server, and three real agents of one site.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.served import Api, Served, write_digits
from ports import free_port
from real_agents import Process
from shoal import bundle
from shoal.agent.host.io.config import load
from shoal.agent.peers.io.downloader import SMALL
from shoal.manifest import PIECE, File
from soaking import soak
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300), soak]

NAMES, MODEL = ("press-1", "press-2", "press-3"), "lot-codes"


class Site:
    def __init__(self, served: Served, parent: Path) -> None:
        self.api, self.parent = Api(served), parent
        self.table = write_digits(parent / "digits.csv")
        token = self.api.post("join-tokens", {"site": "north", "uses": len(NAMES)})["secret"]
        for name in NAMES:
            subprocess.run(
                [
                    sys.executable, "-m", "shoal.agent", "enroll", "--controller", self.api.url,
                    "--folder", str(parent / name), "--token", token, "--name", name,
                ],
                check=True, capture_output=True,
            )  # fmt: skip
            with (parent / name / "agent.toml").open("a") as settings:
                settings.write("[update]\nobserve_s = 0.5\n")
                settings.write(
                    f'[peers]\nenabled = true\nhost = "127.0.0.1"\nport = {free_port()}\n'
                )
        self.processes = [Process(parent / name) for name in NAMES]

    def peer(self, name: str) -> str:
        return self.api.get(f"devices/{name}")["facts"].get("peer", "")

    def train(self) -> str:
        self.api.upload("datasets", self.table, {"name": "digits", "label": "digit"})
        params = {"hidden": [512, 512], "max_iter": 3}
        asked = {"dataset": "digits@1", "estimator": "mlp", "params": params}
        operation = f"operations/{self.api.post(f'models/{MODEL}/train', asked)['id']}"
        over = ("succeeded", "failed")
        eventually(lambda: self.api.get(operation)["state"] in over, "training", 120)
        ended = self.api.get(operation)
        assert ended["state"] == "succeeded", ended["error"]
        return ended["result"]["release"]

    def roll_out(self, release: str) -> None:
        self.api.post(f"releases/{release}/publish", {"override": "a test"})
        ident = self.api.post("rollouts", {"release": release, "stages": [{"name": "all"}]})["id"]
        over = ("FINISHED", "PAUSED")
        eventually(lambda: self.api.get(f"rollouts/{ident}")["state"] in over, "the rollout", 120)
        assert self.api.get(f"rollouts/{ident}")["state"] == "FINISHED"

    def downloaded(self, name: str) -> int:
        """Bytes of files that came to this device from the artifact server."""
        events: list[dict[str, Any]] = self.api.get(f"devices/{name}/timeline")["items"]
        (event,) = [event for event in events if event["state"] == "DOWNLOADED"]
        return event["facts"]["bytes"]

    def files(self) -> list[File]:
        folder = self.parent / NAMES[0]
        manifest = bundle.read_manifest(folder / "models" / MODEL / "a")
        return manifest.files_for(load(folder).device.profile)

    def end(self) -> None:
        for process in self.processes:
            process.end()


@pytest.fixture
def site(served: Served, tmp_path: Path) -> Iterator[Site]:
    made = Site(served.start().ready(), tmp_path)
    yield made
    made.end()


def test_a_release_comes_to_a_site_once(site: Site) -> None:
    for name in NAMES:
        eventually(lambda n=name: site.peer(n).startswith("127.0.0.1:"), f"where {name} shares", 60)
    site.roll_out(site.train())
    files = site.files()
    large = sum(file.size for file in files if file.size >= SMALL)
    small = sum(file.size for file in files if file.size < SMALL)
    assert large > PIECE
    came = sum(site.downloaded(name) for name in NAMES)
    assert large + small <= came <= large + len(NAMES) * small + PIECE, came / (large + small)
