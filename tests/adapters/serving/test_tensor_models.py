"""A release of tensors, in onnxruntime, answers as onnxruntime does: bit for bit, in any form."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endpoints import inference_of, served
from shoal import bundle
from shoal.agent.serving.engine import Engine
from shoal.agent.serving.inference import Inference
from shoal.agent.serving.io.client import tensors_of
from shoal.agent.serving.io.runtime import OrtLoader
from shoal.agent.serving.io.session_cache import SessionCache
from shoal.agent.serving.routes import Request
from shoal.agent.serving.served_model import ServedModel
from shoal.errors import BundleError, InputError, ModelError
from shoal.profile import profile
from shoal.signature import Signature
from shoal.tensors import DTYPES, Array
from tensor_models import (
    MODEL,
    MODELS,
    TensorModel,
    ask,
    graph,
    identity,
    loaded,
    lookup,
    picture,
    put_tensors,
    raw,
    running_sum,
    same,
    scaled,
    slot_of,
    stack,
    table,
    tensor,
)

INFER = f"/v2/models/{MODEL}/infer"


def put_in_service(engine: Engine) -> tuple[Inference, ServedModel]:
    serving = served(engine)
    return inference_of({MODEL: serving}), serving


def post(inference: Inference, body: Any, data: bytes = b"") -> tuple[int, Any]:
    head = json.dumps(body).encode()
    response = inference.respond(Request("POST", INFER, head + data, len(head)))
    return response.status, json.loads(response.body)


@pytest.mark.parametrize("name", MODELS)
def test_a_request_in_bytes_is_answered_bit_for_bit_as_onnxruntime_does(
    name: str, tmp_path: Path
) -> None:
    model = MODELS[name]()
    inference, serving = put_in_service(loaded(tmp_path, model))
    for feeds in model.feeds:
        found = ask(inference, feeds)
        names = [output.name for output in model.signature.outputs]
        assert list(found) == names
        for got, want in zip(found.values(), raw(model, feeds, *names), strict=True):
            assert same(got, want)
    assert (serving.vitals.requests, serving.vitals.errors) == (len(model.feeds), 0)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("name", [name for name in MODELS if "FP16" not in name])
def test_a_request_in_json_is_answered_bit_for_bit_as_onnxruntime_does(
    name: str, nested: bool, tmp_path: Path
) -> None:
    model = MODELS[name]()
    inference, _ = put_in_service(loaded(tmp_path, model))
    feeds = model.feeds[0]
    inputs = [
        {
            "name": t.name,
            "shape": feeds[t.name].shape,
            "datatype": t.datatype,
            "data": (feeds[t.name] if nested else feeds[t.name].ravel()).tolist(),
        }
        for t in model.signature.inputs
    ]
    status, found = post(inference, {"inputs": inputs[::-1]})
    assert status == 200, found
    for output, tensor_, want in zip(
        found["outputs"], model.signature.outputs, raw(model, feeds), strict=True
    ):
        assert (output["name"], output["datatype"]) == (tensor_.name, tensor_.datatype)
        got = np.array(output["data"], DTYPES[tensor_.datatype]).reshape(output["shape"])
        assert same(got, want)


def test_json_and_bytes_mix_and_outputs_are_chosen_one_by_one(tmp_path: Path) -> None:
    model = picture()
    inference, _ = put_in_service(loaded(tmp_path, model))
    pixels = model.feeds[0]["picture"]
    asked = {
        "id": "7",
        "inputs": [{"name": "picture", "shape": pixels.shape, "datatype": "UINT8",
                    "parameters": {"binary_data_size": pixels.nbytes}}],
        "outputs": [{"name": "best"}, {"name": "means", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    head = json.dumps(asked).encode()
    response = inference.respond(Request("POST", INFER, head + pixels.tobytes(), len(head)))
    found = json.loads(response.body[: response.json_bytes])
    means, best = raw(model, model.feeds[0])
    assert found["id"] == "7"
    assert found["outputs"][0] == {
        "name": "best", "datatype": "INT64", "shape": [2], "data": best.tolist()
    }  # fmt: skip
    assert response.body[response.json_bytes :] == means.tobytes()


def test_a_body_of_nothing_but_the_one_tensor_is_enough(tmp_path: Path) -> None:
    model = picture()
    inference, _ = put_in_service(loaded(tmp_path, model))
    pixels = model.feeds[0]["picture"]
    response = inference.respond(Request("POST", INFER, pixels.tobytes(), 0))
    found = json.loads(response.body[: response.json_bytes])
    outputs = tensors_of(found["outputs"], response.body, response.json_bytes)
    for got, want in zip(outputs.values(), raw(model, model.feeds[0]), strict=True):
        assert same(got, want)
    assert inference.respond(Request("POST", INFER, pixels.tobytes()[1:], 0)).status == 400


def test_an_input_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    model = scaled()
    inference, _ = put_in_service(loaded(tmp_path, model))
    x = model.feeds[0]["x"]
    np.testing.assert_array_equal(ask(inference, {"x": x})["y"], 2 * x)
    np.testing.assert_array_equal(ask(inference, {"x": x, "scale": np.array(3.0)})["y"], 3 * x)


def test_what_the_runtime_refuses_is_the_request_s_fault_and_the_next_one_is_answered(
    tmp_path: Path,
) -> None:
    inference, serving = put_in_service(loaded(tmp_path, lookup()))
    ids = {"name": "ids", "shape": [1, 1], "datatype": "INT64"}
    status, found = post(inference, {"inputs": [ids | {"data": [9]}]})
    assert status == 400
    assert "fp32.onnx" in found["error"]
    assert post(inference, {"inputs": [ids | {"data": [4]}]})[0] == 200
    assert (serving.vitals.requests, serving.vitals.errors) == (2, 1)


def test_its_metadata_lists_every_tensor(tmp_path: Path) -> None:
    inference, _ = put_in_service(loaded(tmp_path, scaled()))
    found = json.loads(inference.respond(Request("GET", f"/v2/models/{MODEL}", b"")).body)
    assert found["inputs"] == [
        {"name": "x", "datatype": "FP64", "shape": [3, -1]},
        {"name": "scale", "datatype": "FP64", "shape": [], "optional": True},
    ]
    assert found["outputs"] == [{"name": "y", "datatype": "FP64", "shape": [3, -1]}]
    assert found["parameters"] == {
        "features": [],
        "labels": [],
        "task": "tensors",
        "variant": "fp32",
    }


@pytest.mark.parametrize("name", ["picture", "scaled", "lookup", "identity BYTES"])
def test_requests_that_wait_run_as_one_and_each_gets_what_it_gets_alone(
    name: str, tmp_path: Path
) -> None:
    model = MODELS[name]()
    engine = loaded(tmp_path, model)
    serving = served(engine)
    runs = counted(engine)
    requests = [request_of(engine, feeds) for feeds in [model.feeds[0]] * 3]
    assert requests[0].joins(requests[1])
    for result in serving.infer_requests(engine, requests):
        assert isinstance(result, dict)
        for got, want in zip(result.values(), raw(model, model.feeds[0]), strict=True):
            assert same(got, want)
    assert len(runs) == 1
    assert serving.vitals.requests == 3
    assert serving.vitals.rows == 3 * requests[0].items


def test_one_bad_request_fails_no_other_that_runs_with_it(tmp_path: Path) -> None:
    engine = loaded(tmp_path, lookup())
    serving = served(engine)
    requests = [request_of(engine, {"ids": np.array([[i]])}) for i in (1, 9, 2)]
    good, bad, other = serving.infer_requests(engine, requests)
    assert isinstance(good, dict)
    assert isinstance(other, dict)
    assert other["vectors"].tolist() == [[[4.0, 5.0]]]
    assert isinstance(bad, InputError)
    assert (serving.vitals.requests, serving.vitals.errors) == (3, 1)


def counted(engine: Engine) -> list[int]:
    """A list that grows with every run of the engine."""
    runs, run = list[int](), engine.session.run_tensors

    def once(feeds: Any, outputs: Any) -> Any:
        runs.append(1)
        return run(feeds, outputs)

    engine.session.run_tensors = once  # type: ignore[method-assign]
    return runs


def request_of(engine: Engine, feeds: dict[str, Array]) -> Any:
    from shoal.agent.serving.tensor_requests import of_arrays

    return of_arrays(engine, feeds)


def test_a_client_that_names_a_sequence_need_not_carry_its_state(tmp_path: Path) -> None:
    inference, serving = put_in_service(loaded(tmp_path, running_sum()))
    x = np.float32([[1, 2]])
    assert ask(inference, {"x": x}, sequence="a", start=True)["y"].tolist() == [[1, 2]]
    assert ask(inference, {"x": x}, sequence=7, start=True)["y"].tolist() == [[1, 2]]
    found = ask(inference, {"x": x}, sequence="a")
    assert list(found) == ["y"]
    assert found["y"].tolist() == [[2, 4]]
    assert ask(inference, {"x": x}, sequence="a", end=True)["y"].tolist() == [[3, 6]]
    status, error = post(inference, sequence_body(x, "a"))
    assert status == 400
    assert "unknown sequence 'a'; send sequence_start" in error["error"]
    found = json.loads(inference.respond(Request("GET", f"/v2/models/{MODEL}", b"")).body)
    assert found["parameters"]["states"] == [{"input": "h", "output": "hn", "shape": [1, 2]}]
    assert found["parameters"]["sequences"] == {"open": 1, "dropped": 0}
    assert serving.vitals.requests == 5


def sequence_body(x: Array, name: str, **more: Any) -> dict[str, Any]:
    given = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    return {"inputs": [given], "parameters": {"sequence_id": name}, **more}


def test_a_client_that_names_no_sequence_sends_the_state_and_gets_it_back(tmp_path: Path) -> None:
    inference, _ = put_in_service(loaded(tmp_path, running_sum()))
    x, h = np.float32([[1, 2]]), np.float32([[5, 5]])
    assert ask(inference, {"x": x, "h": h})["hn"].tolist() == [[6, 7]]
    status, error = post(inference, {"inputs": sequence_body(x, "")["inputs"]})
    assert status == 400
    assert "'h' is missing" in error["error"]


def test_a_step_that_fails_leaves_the_sequence_as_it_was(tmp_path: Path) -> None:
    engine = loaded(tmp_path, running_sum())
    inference, _ = put_in_service(engine)
    x = np.float32([[1, 2]])
    ask(inference, {"x": x}, sequence="a", start=True)
    run = engine.session.run_tensors
    engine.session.run_tensors = broken  # type: ignore[method-assign]
    assert post(inference, sequence_body(x, "a"))[0] == 500
    engine.session.run_tensors = run  # type: ignore[method-assign]
    assert ask(inference, {"x": x}, sequence="a")["y"].tolist() == [[2, 4]]


def broken(feeds: Any, outputs: Any) -> Any:
    raise ModelError("broken")


def test_an_open_sequence_stays_on_its_release_until_that_is_unloaded(tmp_path: Path) -> None:
    from shoal.wire import Health

    inference, serving = put_in_service(loaded(tmp_path, running_sum()))
    x = np.float32([[1, 2]])
    ask(inference, {"x": x}, sequence="old", start=True)
    serving.swap(loaded(tmp_path, running_sum(), 2), Health())
    status, found = post(inference, sequence_body(x, "old"))
    assert (status, found["model_version"]) == (200, "1")
    assert found["outputs"][0]["data"] == [2, 4]
    assert post(inference, sequence_body(x, "new", parameters=_start("new")))[1][
        "model_version"
    ] == "2"  # fmt: skip
    serving.retire()
    status, error = post(inference, sequence_body(x, "old"))
    assert status == 409
    assert "the release has changed; start the sequence again" in error["error"]
    assert post(inference, sequence_body(x, "new"))[0] == 200
    again = sequence_body(x, "old", parameters=_start("old"))
    assert post(inference, again)[1]["model_version"] == "2"


def _start(name: str) -> dict[str, Any]:
    return {"sequence_id": name, "sequence_start": True}


def test_a_release_is_not_loaded_whose_graph_is_not_as_signed(tmp_path: Path) -> None:
    model = identity("FP32")
    for signature, message in (
        (replaced(model, inputs=[tensor("z", "FP32", ["N", 3])]), "no input 'z'; it has: x"),
        (replaced(model, inputs=[tensor("x", "INT8", ["N", 3])]), "INT8 is needed"),
        (replaced(model, outputs=[tensor("y", "FP64", ["N", 3])]), "FP64 is needed"),
        (replaced(model, inputs=[]), "needs the inputs x"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        put_tensors(folder, model)
        put_tensors(folder, TensorModel(model.graph, signature, model.feeds), golden=[{}])
        with pytest.raises(ModelError, match=message):
            OrtLoader(lambda model, slot, at=folder: at).load(slot_of(), profile("x86-vnni"))


def replaced(model: TensorModel, **fields: Any) -> Signature:
    import msgspec

    return msgspec.structs.replace(model.signature, **fields)


def test_an_input_that_the_graph_itself_fills_in_may_be_signed_or_not(tmp_path: Path) -> None:
    """An initializer that is listed as an input can be overridden, and need not be."""
    from onnx import ModelProto, helper

    x, w, y = (tensor(name, "FP32", ["N"]) for name in "xwy")
    both = Signature(inputs=[x, w], outputs=[y])
    built = graph(both, [helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.float32([5])})
    assert len(ModelProto.FromString(built).graph.input) == 2
    feeds = {"x": np.float32([1]), "w": np.float32([7])}
    for signature, names in ((both, "xw"), (Signature(inputs=[x], outputs=[y]), "x")):
        given = {name: feeds[name] for name in names}
        engine = loaded(tmp_path / names, TensorModel(built, signature, [given]))
        want = [8.0] if names == "xw" else [6.0]
        assert served(engine).infer_tensors(given)["y"].tolist() == want


def test_the_agents_own_test_of_a_release_uses_inputs_that_fit(tmp_path: Path) -> None:
    engine = loaded(tmp_path, lookup())
    serving = served(engine)
    runs = counted(engine)
    serving.self_test()
    assert (len(runs), serving.vitals.requests) == (1, 0)


def test_a_cached_graph_answers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.agent.serving.io import runtime

    monkeypatch.setattr(runtime, "SMALLEST", 1)
    model = picture()
    put_tensors(tmp_path / "a", model)
    cache = SessionCache(tmp_path / "cache", lambda: {"arch": "x86"})
    loader = OrtLoader(lambda model, slot: tmp_path / "a", cache)
    loader.settle(slot_of(), profile("x86-vnni"))
    assert list((tmp_path / "cache").glob("*.onnx"))
    engine = loader.load(slot_of(), profile("x86-vnni"))
    found = served(engine).infer_tensors(model.feeds[0])
    for got, want in zip(found.values(), raw(model, model.feeds[0]), strict=True):
        assert same(got, want)


@pytest.mark.parametrize("names", [["weights.bin"], ["a.data", "b.data"]])
def test_weights_in_data_files_answer_like_weights_in_the_file(
    names: list[str], tmp_path: Path
) -> None:
    model = stack(3, 64)
    found = ask(inference_of({MODEL: served(loaded(tmp_path, model, apart=names))}), model.feeds[0])
    assert same(found["y"], raw(model, model.feeds[0])[0])
    assert {path.name for path in (tmp_path / "1").iterdir()} >= {*names}


def test_a_slot_without_its_data_file_is_damaged(tmp_path: Path) -> None:
    put_tensors(tmp_path, stack(1, 64), apart=["weights.bin"])
    bundle.verify(tmp_path, "generic")
    (tmp_path / "weights.bin").write_bytes(bytes(64 * 64 * 4))
    with pytest.raises(BundleError, match=r"weights\.bin"):
        bundle.verify(tmp_path, "generic")


def test_a_model_with_data_files_is_not_cached_in_optimised_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.agent.serving.io.runtime.SMALLEST", 1)
    put_tensors(tmp_path / "a", stack(1, 64), apart=["weights.bin"])
    cache = SessionCache(tmp_path / "cache", lambda: {"arch": "x86"})
    OrtLoader(lambda model, slot: tmp_path / "a", cache).settle(slot_of(), profile("x86-vnni"))
    assert not (tmp_path / "cache").exists()


#: Prints by how many MB loading a table of 32 MB and looking one row up raised the most memory.
LOOK_UP = """
import re, sys
from pathlib import Path
import numpy as np
from shoal.agent.serving.io.session import OrtSession, import_ort
from shoal.profile import SessionOptions
from tensor_models import table
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
import_ort()
before = peak()
session = OrtSession(Path(sys.argv[1]), SessionOptions(), table(1, 1).signature)
assert session.run_tensors({"ids": np.array([7])}, ["vectors"])[0].tolist() == [[7.0] * 1024]
print((peak() - before) / 1024)
"""


def test_the_weights_of_a_large_file_are_mapped_and_not_read(tmp_path: Path) -> None:
    put_tensors(tmp_path, table(8_192, 1_024))
    script = [sys.executable, "-c", LOOK_UP, str(tmp_path / "fp32.onnx")]
    tests = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(script, capture_output=True, text=True, env=os.environ | tests)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 24


def test_rows_are_refused_in_plain_words(tmp_path: Path) -> None:
    serving = served(loaded(tmp_path, picture()))
    with pytest.raises(InputError, match=r"any@1 takes tensors \(picture\), not rows"):
        serving.infer(np.zeros((1, 0), np.float32))
    assert serving.recent() is None
