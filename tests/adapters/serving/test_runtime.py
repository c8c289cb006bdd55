"""A model that onnxruntime cannot run is refused with the reason and a hint."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from real_models import FEATURES, answers, mlp, model_of, put_release, slot_of
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session import OrtSession
from shoal.errors import InputError, ModelError
from shoal.profile import SessionOptions, profile
from shoal.signature import Signature, rows_signature

ROWS = np.random.default_rng(1).normal(size=(5, FEATURES)).astype(np.float32)


def signature(given: str, found: str) -> Signature:
    return rows_signature(given, FEATURES, found, 3)


SIGNATURE = signature("input", "output")


def session(path: Path, model: bytes) -> OrtSession:
    path = path / "model.onnx"
    path.write_bytes(model)
    return OrtSession(path, SessionOptions(), SIGNATURE)


def cast(source: str = "input") -> list[object]:
    return [helper.make_node("Identity", [source], ["output"])]


def node(kind: str, domain: str = "") -> list[object]:
    return [helper.make_node(kind, ["input"], ["output"], domain=domain)]


def two_inputs() -> bytes:
    model = model_of([helper.make_node("Add", ["input", "more"], ["output"])])
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", FEATURES])
    model.graph.input.append(more)
    return model.SerializeToString()


BROKEN = {
    "newer opset": (mlp(opset=99).SerializeToString(), "opset 99.*opset 2"),
    "newer format": (mlp(ir=99).SerializeToString(), "IR version 99.*ir_version"),
    "unknown operator": (model_of(node("Nope")).SerializeToString(), "operator Nope"),
    "foreign operator": (
        model_of(node("Nope", "my.lab"), domain="my.lab").SerializeToString(),
        "operator my.lab:Nope",
    ),
    "other input type": (
        model_of(
            [helper.make_node("Cast", ["input"], ["output"], to=TensorProto.FLOAT)],
            given=TensorProto.DOUBLE,
        ).SerializeToString(),
        "tensor.double.*FP32",
    ),
    "two inputs": (two_inputs(), "needs the inputs more"),
    "no model": (b"GIF89a" * 20, "no ONNX model"),
    "nothing": (b"", "model.onnx"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    data, message = BROKEN[kind]
    with pytest.raises(ModelError, match=message):
        session(tmp_path, data)


def test_a_wrong_tensor_name_in_the_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(mlp().SerializeToString())
    with pytest.raises(ModelError, match="no input 'x'; it has: input"):
        OrtSession(tmp_path / "model.onnx", SessionOptions(), signature("x", "output"))
    with pytest.raises(ModelError, match="no output 'y'"):
        OrtSession(tmp_path / "model.onnx", SessionOptions(), signature("input", "y"))


@pytest.mark.parametrize(
    "rows", [ROWS[:, :2], ROWS[0], ROWS.astype(np.float64)], ids=["narrow", "flat", "float64"]
)
def test_rows_of_another_shape_or_type_are_an_input_error(tmp_path: Path, rows: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"model\.onnx"):
        session(tmp_path, mlp().SerializeToString()).run(rows)


def test_the_newest_opset_is_detected(tmp_path: Path) -> None:
    newest = OrtLoader(lambda model, slot: tmp_path).runtime.newest()
    session(tmp_path, mlp(opset=newest).SerializeToString()).run(ROWS)
    with pytest.raises(ModelError):
        session(tmp_path, mlp(opset=newest + 1).SerializeToString())


def test_a_loaded_slot_has_the_outputs_of_its_model(tmp_path: Path) -> None:
    put_release(tmp_path)
    engine = OrtLoader(lambda model, name: tmp_path).load(slot_of(1), profile("x86-vnni"))
    want = answers((tmp_path / "fp32.onnx").read_bytes(), ROWS)
    np.testing.assert_array_equal(engine.session.run(ROWS), want)
    assert engine.slow_s == pytest.approx(0.02)


def test_a_model_with_other_outputs_than_its_manifest_declares_is_not_loaded(
    tmp_path: Path,
) -> None:
    put_release(tmp_path, labels=["a", "b"])
    with pytest.raises(ModelError, match=r"\[1, 3\].*\[1, 2\]"):
        OrtLoader(lambda model, name: tmp_path).load(slot_of(1), profile("x86-vnni"))


def test_importing_the_agent_loads_no_runtime_and_leaves_no_telemetry(tmp_path: Path) -> None:
    script = (
        "import sys, os, shoal.agent.loop, shoal.agent.serving.io.session as r; "
        "assert 'onnxruntime' not in sys.modules; r.import_ort(); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    assert run.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []
