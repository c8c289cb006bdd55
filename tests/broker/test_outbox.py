"""A real agent, a real controller, and a broker that is killed again and again: nothing is lost."""

import csv
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from sklearn.datasets import load_digits

from broker.real import eventually
from broker.served import Served

pytestmark = [pytest.mark.broker, pytest.mark.slow]
AGENT = [sys.executable, "-m", "shoal.agent"]
KILLS = 3


class Api:
    """The controller's API as its admin."""

    def __init__(self, served: Served) -> None:
        context = ssl.create_default_context(cafile=str(served.folder / "pki" / "ca.pem"))
        self.url = served.facts["url"]
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", verify=context, timeout=30)
        password = served.facts["admin_password"]
        asked = {"user": "admin", "password": password, "name": "test", "role": "admin"}
        secret = self.post("tokens", asked)["secret"]
        self._http.headers["Authorization"] = f"Bearer {secret}"

    def get(self, path: str) -> Any:
        return self._json(self._http.get(f"/{path}"))

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self._json(self._http.post(f"/{path}", json=body, **more))

    def upload(self, path: str, file: Path, fields: dict[str, str]) -> Any:
        with file.open("rb") as stream:
            sent = self._http.post(f"/{path}", data=fields, files={"file": (file.name, stream)})
        return self._json(sent)

    def _json(self, answer: httpx.Response) -> Any:
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None


def write_digits(path: Path) -> Path:
    """The digits as a table: 64 pixels and the true class."""
    images, truth = load_digits(return_X_y=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*(f"p{n}" for n in range(images.shape[1])), "digit"])
        out.writerows([*row, label] for row, label in zip(images, truth, strict=True))
    return path


def release_to_everybody(api: Api, table: Path) -> None:
    """Train, sign and roll out one model."""
    api.upload("datasets", table, {"name": "digits", "label": "digit"})
    started = api.post("models/lot-codes/train", {"dataset": "digits@1", "estimator": "logistic"})
    operation = f"operations/{started['id']}"
    eventually(lambda: api.get(operation)["state"] in ("succeeded", "failed"), "training", 90)
    ended = api.get(operation)
    assert ended["state"] == "succeeded", ended["error"]
    release = ended["result"]["release"]
    api.post(f"releases/{release}/publish", {})
    rollout = api.post("rollouts", {"release": release, "stages": [{"name": "all"}]})
    where = f"rollouts/{rollout['id']}"
    eventually(lambda: api.get(where)["state"] in ("FINISHED", "PAUSED"), "the rollout", 90)
    told = api.get(where)
    assert told["state"] == "FINISHED", told["reason"]


@pytest.fixture
def agent(served: Served, tmp_path: Path):
    """An enrolled agent that replays the digits; started by the test."""
    served.start().ready()
    api, folder = Api(served), tmp_path / "agent"
    table = write_digits(tmp_path / "digits.csv")
    token = api.post("join-tokens", {"site": "plant", "rings": ["stable"], "uses": 1})["secret"]
    enroll = [
        *AGENT, "enroll", "--folder", folder, "--controller", api.url, "--token", token,
        "--name", "cam-a", "--source", f"replay:{table}", "--source-label", "digit",
    ]  # fmt: skip
    subprocess.run(enroll, check=True)
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + "\n[update]\nobserve_s = 1.0\n")
    process = subprocess.Popen([*AGENT, "run", "--folder", folder])
    yield api, table
    process.send_signal(signal.SIGTERM)
    process.wait(30)


@pytest.mark.timeout(240)
def test_no_window_is_lost_or_counted_twice_when_the_broker_is_killed(served: Served, agent):
    api, table = agent
    release_to_everybody(api, table)

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
    eventually(lambda: ledger()["missing"] == 0, f"nothing is missing: {ledger()}", 30)
    found = ledger()
    assert found["received"] == found["highest"]
    windows = api.get("devices/cam-a/windows?limit=200")["items"]
    starts = [window["start_at"] for window in windows]
    assert len(starts) == len(set(starts))
