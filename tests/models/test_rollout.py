"""Real files on their whole way: imported, signed, rolled out to one running agent, and answered
bit for bit as onnxruntime does, to Triton's client and to the SDK.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

import onnx_files
from broker.served import Api, Served, init
from broker.tensor_rollouts import released, running_agent
from models.test_real_models import CONVERTED, ROOT, STATEFUL, WHEELS, files, path_of, sample_of
from programs import nats_server
from shoal.agent.host.io.folder import ADDRESS
from shoal.agent.serving.io.client import Client
from shoal.controller.training.io import inspection, runtime, zip_maps
from shoal.golden import GoldenTensors
from shoal.tensors import Array, to_bytes
from soaking import SOAKED

__all__ = ["files"]
pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(1_200)]

MADE = {
    "opset-7": onnx_files.of_opset(7),
    "opset-24": onnx_files.of_opset(24),
    "fixed-batch": onnx_files.fixed_batch(),
    "no-axis": onnx_files.scalars(),
    "strings": onnx_files.upper_case(),
    "bool-out": onnx_files.two_inputs(),
}
#: One of each kind of input: bytes, a picture, sound with a state, maps, text, columns of three
#: types. test_real_models asks every file; its way to the device, asked here, is the same for all.
FEW = (
    "magika/models/standard_v3_3/model.onnx",
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "silero_vad/data/silero_vad.onnx", "logistic-with-maps", "tf-idf", "columns-of-three-types",
)  # fmt: skip
REAL = (*WHEELS, *CONVERTED) if SOAKED else FEW


class Deployed(NamedTuple):
    """An agent's folder; model on it -> the file that was imported, and items for it."""

    folder: Path
    models: dict[str, tuple[Path, list[dict[str, Array]]]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    nats_server()
    served = Served(tmp_path_factory.mktemp("site") / "controller")
    served.facts = json.loads(init(served.folder, "--json", "--window-s", "1"))
    yield Api(served.start().ready())
    served.end()


@pytest.fixture(scope="module")
def deployed(api: Api, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    models: dict[str, tuple[Path, Path | None]] = {}
    for name, data in MADE.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(data)
        models[name] = path, None
    for name in REAL:
        path = path_of(files, name)
        own = folder / name_of(name)
        own.mkdir()
        models[name_of(name)] = path, few_items(sample_of(name, path, own), own / "few.npz")
    with running_agent(api, folder / "agent") as agent:
        released(api, models)
        yield Deployed(
            agent, {model: (paths[0], _items(*paths)) for model, paths in models.items()}
        )


def few_items(sample: Path, few: Path) -> Path:
    """Its first six items: too few for other variants, which are not what is asked here."""
    with np.load(sample) as arrays:
        np.savez(few, **{name: arrays[name][:6] for name in arrays.files})
    return few


def name_of(name: str) -> str:
    """The model's name on the device."""
    return Path(name).stem.lower().replace("_", "-").replace(".", "-")


def _items(path: Path, sample: Path | None) -> list[dict[str, Array]]:
    found = inspection.inspect(path, path.name, sample)
    golden = msgspec.msgpack.decode(found.golden, type=GoldenTensors)
    return [vector.arrays() for vector in golden.vectors[:3]]


def raw(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    session = runtime.open_session(zip_maps.flattened(path) or path.read_bytes(), "raw")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_same(found: dict[str, Array], wanted: dict[str, Array], what: str) -> None:
    assert found.keys() == wanted.keys(), what
    for name, array in wanted.items():
        assert found[name].shape == array.shape, (what, name)
        assert to_bytes(found[name]) == to_bytes(array), (what, name)


def test_the_sdk_gets_what_onnxruntime_answers(deployed: Deployed) -> None:
    for model, (path, items) in deployed.models.items():
        with Client(model, deployed.folder) as client:
            for feeds in items:
                assert_same(client.infer_tensors(feeds), raw(path, feeds), model)


def test_triton_s_client_gets_what_onnxruntime_answers(deployed: Deployed, tmp_path: Path) -> None:
    made = subprocess.run(
        [ROOT / "scripts/clients.sh"], capture_output=True, text=True, timeout=600, check=False
    )
    if made.returncode:
        pytest.skip(f"the clients could not be installed: {made.stderr.strip()[-200:]}")
    for model, (_, items) in deployed.models.items():
        plain = {k: v.astype(str) if v.dtype == object else v for k, v in items[0].items()}
        np.savez(tmp_path / f"{model}.in.npz", **plain)  # type: ignore[arg-type]
    url = (deployed.folder / ADDRESS).read_text()
    script = Path(__file__).with_name("triton.py")
    python = ROOT / ".venv-clients/bin/python"
    ran = subprocess.run(
        [python, script, url, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2_000:]
    for model, (path, items) in deployed.models.items():
        with np.load(tmp_path / f"{model}.out.npz") as arrays:
            found = {name: arrays[name] for name in arrays.files}
        assert_same(found, raw(path, items[0]), model)


def test_a_stream_of_audio_keeps_its_state_in_the_agent(deployed: Deployed) -> None:
    for name in set(STATEFUL) & set(REAL):
        model = name_of(name)
        path, _ = deployed.models[model]
        state = np.zeros((2, 1, 128), np.float32)
        with Client(model, deployed.folder) as client:
            for step in range(8):
                feeds = WHEELS[name](np.random.default_rng(step))
                wanted = raw(path, {**feeds, "state": state})
                state = wanted.pop("stateN")
                del feeds["state"]
                found = client.infer_tensors(feeds, sequence=7, start=not step, end=step == 7)
                assert_same(found, wanted, f"{model}, step {step}")


def test_the_controller_knows_what_the_device_serves(api: Api, deployed: Deployed) -> None:
    served = api.get("devices/cam-a")["releases"]
    assert served == {model: f"{model}@1" for model in deployed.models}
