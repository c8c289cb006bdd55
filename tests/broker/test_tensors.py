"""A model without a dataset, from its file to the answers of a real agent: bit for bit those of
onnxruntime."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import onnx_files
from broker.served import Api, Served
from broker.tensor_rollouts import released, running_agent
from shoal.agent.serving.io.client import Client
from waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def api(served: Served) -> Api:
    return Api(served.start().ready())


@pytest.fixture
def agent(api: Api, tmp_path: Path) -> Iterator[Path]:
    """Folder of a running agent."""
    with running_agent(api, tmp_path / "agent") as folder:
        yield folder


@pytest.mark.timeout(240)
def test_a_file_is_imported_rolled_out_and_answered_bit_for_bit(
    api: Api, agent: Path, tmp_path: Path
) -> None:
    apart, weights = onnx_files.kept_apart(onnx_files.layers(2))
    models = {"two": onnx_files.two_inputs(), "texts": onnx_files.upper_case(), "apart": apart}
    for name, content in weights.items():
        (tmp_path / name).write_bytes(content)
    numbers = np.random.default_rng(1)
    sample = tmp_path / "two.npz"
    np.savez(
        sample,
        a=numbers.normal(size=(40, 1, 2)).astype(np.float32),
        b=numbers.integers(-(2**40), 2**40, (40, 1, 2)),
    )
    feeds: dict[str, dict[str, Any]] = {
        "two": {
            "a": numbers.normal(size=(5, 2)).astype(np.float32),
            "b": numbers.integers(-(2**40), 2**40, (5, 2)),
        },
        "texts": {"texts": np.array(["straße", "", "ok"], object)},
        "apart": {"x": numbers.normal(size=(3, 64)).astype(np.float32)},
    }
    for name, data in models.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        release = released(api, {name: (path, sample if name == "two" else None)})[name]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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

    def sketched() -> int:
        subject = "model=two&scope=device&subject=cam-a"
        with Client("two", folder=agent) as client:
            for _ in range(200):
                client.infer_tensors(feeds["two"])
        return int(api.get(f"drift/histogram?{subject}&feature=a.value1")["rows"])

    eventually(lambda: rows() > 0, "its windows, which hold counts", 60)
    eventually(lambda: sketched() > 0, "windows that hold sketches of some items", 60)
    found = api.get("drift?model=two&scope=device&subject=cam-a")
    assert found["words"]["a.value1"] == "value 1 of input a"
    assert api.get("performance?model=two")["items"][0]["errors"] == 0
