"""A model of tensors on its way: imported by a controller, signed, rolled out to a real agent."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.served import Api
from shoal.onnx_outline import data_locations
from shoal.profile import FURTHER
from waiting import eventually

AGENT = [sys.executable, "-m", "shoal.agent"]


def enrol(api: Api, folder: Path, name: str = "cam-a") -> Path:
    """Folder of an agent without a source, enrolled under `name`."""
    token = api.post("join-tokens", {"site": "plant", "rings": ["stable"], "uses": 1})["secret"]
    enroll = [
        *AGENT, "enroll", "--folder", folder, "--controller", api.url, "--token", token,
        "--name", name,
    ]  # fmt: skip
    subprocess.run(enroll, check=True)
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + "\n[update]\nobserve_s = 1.0\n")
    return folder


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """The agent of an enrolled folder."""
    patient = {FURTHER: str(Path(__file__).parents[1] / "firmware_profiles")}
    process = subprocess.Popen([*AGENT, "run", "--folder", folder], env=os.environ | patient)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def running_agent(api: Api, folder: Path) -> Iterator[Path]:
    """Folder of a running agent without a source, known to the controller."""
    with running(enrol(api, folder)):
        eventually(lambda: api.get("devices/cam-a")["online"], "the agent at the controller", 60)
        yield folder


def released(
    api: Api, models: Mapping[str, tuple[Path, Path | None] | tuple[Path, Path | None, Path]]
) -> dict[str, str]:
    """Import, sign and roll out models, each with a file, a sample and, where given, steps; release
    of each."""
    operations = {model: _started(api, model, *paths) for model, paths in models.items()}
    releases = {}
    for model, operation in operations.items():
        ended = _ended(api, f"operations/{operation}", ("succeeded", "failed"))
        assert ended["state"] == "succeeded", ended["error"]
        releases[model] = str(ended["result"]["release"])
        api.post(f"releases/{releases[model]}/publish", {})
    rollouts = [
        api.post("rollouts", {"release": release, "stages": [{"name": "all"}]})["id"]
        for release in releases.values()
    ]
    for rollout in rollouts:
        ended = _ended(api, f"rollouts/{rollout}", ("FINISHED", "PAUSED"))
        assert ended["state"] == "FINISHED", ended["reason"]
    return releases


def _started(
    api: Api, model: str, file: Path, sample: Path | None, steps: Path | None = None
) -> str:
    given = {"onnx": file, "sample": sample, "steps": steps}
    paths = {name: path for name, path in given.items() if path is not None}
    paths |= {f"data:{name}": file.parent / name for name in data_locations(file, file.name)}
    with contextlib.ExitStack() as opened:
        files = {
            name: (path.name, opened.enter_context(path.open("rb"))) for name, path in paths.items()
        }
        sent = api._http.post(f"/models/{model}/import", data={"task": "tensors"}, files=files)
    return str(api._json(sent)["id"])


def _ended(api: Api, where: str, states: Sequence[str]) -> dict[str, Any]:
    eventually(lambda: api.get(where)["state"] in states, f"the end of {where}", 120)
    found: dict[str, Any] = api.get(where)
    return found
