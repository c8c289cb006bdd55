"""A model without a dataset, from its file to the answers of a real agent: bit for bit those of
onnxruntime."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnx_files
from broker.served import Api, Served
from shoal.agent.serving.io.client import Client
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]
AGENT = [sys.executable, "-m", "shoal.agent"]


@pytest.fixture
def api(served: Served) -> Api:
    return Api(served.start().ready())


@pytest.fixture
def agent(api: Api, tmp_path: Path) -> Iterator[Path]:
    """Folder of a running agent without a source."""
    folder = tmp_path / "agent"
    token = api.post("join-tokens", {"site": "plant", "rings": ["stable"], "uses": 1})["secret"]
    enroll = [
        *AGENT, "enroll", "--folder", folder, "--controller", api.url, "--token", token,
        "--name", "cam-a",
    ]  # fmt: skip
    subprocess.run(enroll, check=True)
    settings = folder / "agent.toml"
    settings.write_text(settings.read_text() + "\n[update]\nobserve_s = 1.0\n")
    process = subprocess.Popen([*AGENT, "run", "--folder", folder])
    yield folder
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def released(api: Api, model: str, file: Path) -> str:
    """Import, sign and roll out; the release's name."""
    with file.open("rb") as stream:
        sent = api._http.post(
            f"/models/{model}/import", data={"task": "tensors"}, files={"onnx": (file.name, stream)}
        )
    operation = f"operations/{api._json(sent)['id']}"
    eventually(lambda: api.get(operation)["state"] in ("succeeded", "failed"), "the import", 60)
    ended = api.get(operation)
    assert ended["state"] == "succeeded", ended["error"]
    release = str(ended["result"]["release"])
    api.post(f"releases/{release}/publish", {})
    rollout = api.post("rollouts", {"release": release, "stages": [{"name": "all"}]})
    where = f"rollouts/{rollout['id']}"
    eventually(lambda: api.get(where)["state"] in ("FINISHED", "PAUSED"), "the rollout", 90)
    assert api.get(where)["state"] == "FINISHED", api.get(where)["reason"]
    return release


@pytest.mark.timeout(240)
def test_a_file_is_imported_rolled_out_and_answered_bit_for_bit(
    api: Api, agent: Path, tmp_path: Path
) -> None:
    eventually(lambda: api.get("devices/cam-a")["online"], "the agent at the controller", 60)
    models = {"two": onnx_files.two_inputs(), "texts": onnx_files.upper_case()}
    numbers = np.random.default_rng(1)
    feeds: dict[str, dict[str, Any]] = {
        "two": {
            "a": numbers.normal(size=(5, 2)).astype(np.float32),
            "b": numbers.integers(-(2**40), 2**40, (5, 2)),
        },
        "texts": {"texts": np.array(["straße", "", "ok"], object)},
    }
    for name, data in models.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        release = released(api, name, path)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        wanted = dict(zip(names, session.run(names, feeds[name]), strict=True))
        with Client(name, folder=agent) as client:
            found = client.infer_tensors(feeds[name])
            assert client.release == release
        assert found.keys() == wanted.keys()
        for output, array in wanted.items():
            assert found[output].dtype.kind == array.dtype.kind
            assert found[output].shape == array.shape
            assert found[output].tolist() == array.tolist()

    def rows() -> int:
        windows = api.get("devices/cam-a/windows?limit=200")["items"]
        return sum(window["rows"] for window in windows if window["model"] == "two")

    eventually(lambda: rows() > 0, "its windows, which hold counts", 60)
    assert api.get("drift?model=two&scope=device&subject=cam-a")["features"] == []
    assert api.get("performance?model=two")["items"][0]["errors"] == 0
