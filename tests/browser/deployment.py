"""A complete deployment on this machine: `shoal-controller serve` and agents as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sklearn.datasets import load_digits

from ports import free_port

_T = TypeVar("_T")
AGENT = """
[source]
kind = "replay"
path = "{data}"
label = "digit"
rate_hz = 20.0

[update]
observe_s = 3.0
"""


class Deployment:
    """Made in `folder`; `end` ends every process that it started, and no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        made = self._run(
            "controller", "init", "--folder", str(folder / "controller"), "--json",
            "--port", str(free_port()), "--artifacts-port", str(free_port()),
            "--mqtt-port", str(free_port()), "--window-s", "2", "--baseline-windows", "8",
            "--cycle", "none",
        )  # fmt: skip
        told = json.loads(made)
        self.url, self.password = told["url"], told["admin_password"]
        self._start("controller", "serve", "--folder", str(folder / "controller"))
        self.until(lambda: "ready" in self.log("controller"))
        self.api = httpx.Client(base_url=f"{self.url}/api/v1", verify=False, timeout=20)
        token = self.post("tokens", user="admin", password=self.password, name="test")["secret"]
        self.api.headers["Authorization"] = f"Bearer {token}"

    def post(self, path: str, **body: Any) -> Any:
        answer = self.api.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.api.get(path)
        assert answer.is_success, answer.text
        return answer.json()

    def add_agents(self, rings: dict[str, str], data: Path) -> None:
        """Enrol and start one agent a name; ring "canary" or "stable"."""
        token = self.post(
            "join-tokens", site="harbour", rings=["stable", "canary"], uses=len(rings), ttl_s=600
        )["secret"]
        for name, ring in rings.items():
            folder = self.folder / name
            self._run(
                "agent", "enroll", "--folder", str(folder), "--controller", self.url,
                "--token", token, "--name", name, "--ring", ring,
            )  # fmt: skip
            settings = folder / "agent.toml"
            kept = settings.read_text().partition("[source]")[0].partition("[update]")[0]
            settings.write_text(kept + AGENT.format(data=data))
            self._start("agent", "run", "--folder", str(folder), log=name)

    def release_digits(self, data: Path) -> str:
        """Train on `data`, publish; "lot-codes@1"."""
        with data.open("rb") as file:
            answer = self.api.post(
                "datasets", files={"file": file}, data={"name": "lot-codes", "label": "digit"}
            )
        assert answer.is_success, answer.text
        job = self.post("models/lot-codes/train", dataset="lot-codes", estimator="mlp")
        done = self.until(lambda: self._ended(job["id"]))
        assert done["state"] == "succeeded", done["error"]
        ref = str(done["result"]["release"])
        self.post(f"releases/{ref}/publish")
        return ref

    def _ended(self, ident: str) -> Any:
        found = self.get(f"operations/{ident}")
        return found if found["state"] in ("succeeded", "failed") else None

    def until(self, look: Callable[[], _T | None], seconds: float = 60) -> _T:
        """What `look` finds; waits for it, and fails with the controller's log."""
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            if found := look():
                return found
            time.sleep(0.1)
        raise AssertionError(f"not in {seconds:.0f} s: {self.log('controller')[-2000:]}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, side: str, *words: str, log: str = "") -> None:
        with (self.folder / f"{log or side}.log").open("wb") as file:
            command = [sys.executable, "-m", f"shoal.{side}", *words]
            self._running.append(subprocess.Popen(command, stdout=file, stderr=file))

    def _run(self, side: str, *words: str) -> str:
        command = [sys.executable, "-m", f"shoal.{side}", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def write_digits(path: Path) -> Path:
    digits = load_digits(as_frame=True)
    table = digits.data.assign(digit=digits.target)
    table.to_csv(path, index=False)
    return path
