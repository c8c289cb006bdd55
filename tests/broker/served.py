"""A whole controller under a real supervisor, for tests."""

import csv
import os
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
from sklearn.datasets import load_digits

from ports import free_port
from waiting import eventually

CONTROLLER = [sys.executable, "-m", "shoal.controller"]


class Served:
    """A controller on free ports, served by a real supervisor."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.lines, self.facts = folder, [], {}
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
    def output(self) -> str:
        return "\n".join(self.lines)

    def ready(self) -> "Served":
        eventually(lambda: "ready: https://" in self.output, f"ready line in: {self.output}", 60)
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

    def kill(self, name: str) -> None:
        """SIGKILL for a child; one that is just being started again is waited for."""
        eventually(lambda: name in self.children(), f"{name} is there to be killed")
        os.kill(self.children()[name], signal.SIGKILL)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def init(folder: Path, *options: str) -> str:
    """Make a controller on free ports in `folder`; what `init` printed."""
    ports = [f"--{name}={free_port()}" for name in ("port", "artifacts-port", "mqtt-port")]
    command = [*CONTROLLER, "init", "--folder", str(folder), *ports, *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
