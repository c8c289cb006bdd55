"""Imports of ONNX files: what cannot become a release is told so before anything is queued."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnx_files
from api.controller_app import ControllerApp, is_problem
from shoal.controller.app import READING, _one_at_a_time
from shoal.controller.operations import operations
from shoal.errors import ConflictError

X, Y = [("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 3])]


def one_node(operator: str, domain: str = "", opset: int = 17, ir: int = 8) -> bytes:
    nodes = [helper.make_node(operator, ["x"], ["y"], domain=domain)]
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return onnx_files.onnx_of(nodes, X, Y, opsets=opsets, ir=ir)


def with_external_weights() -> bytes:
    model = onnx.load_model_from_string(onnx_files.linear())
    weights = model.graph.initializer[0]
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    return bytes(model.SerializeToString())


def send(
    controller: ControllerApp, onnx: bytes, path: str = "/api/v1/models/mine/import", **fields: Any
) -> Any:
    files = {
        name: (io.BytesIO(data), name) for name, data in fields.items() if isinstance(data, bytes)
    }
    text = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
    form = {**text, **files, "onnx": (io.BytesIO(onnx), "C:\\models\\mine.onnx")}
    return controller.post(path, "operator", data=form)


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no ONNX": (lambda: b"GIF89a" * 100, "mine.onnx is not an ONNX"),
    "nothing": (lambda: b"", "mine.onnx is not an ONNX"),
    "an operator of its own": (lambda: one_node("Wobble", "acme"), "Wobble"),
    "an opset of the future": (lambda: one_node("Relu", opset=99), "opset"),
    "an IR of the future": (lambda: one_node("Relu", ir=99), "IR"),
    "weights elsewhere": (with_external_weights, "'weights.bin', which has 'w', was not given"),
    "a function that calls itself": (
        lambda: onnx_files.hostile()["a function that calls itself"], "calls itself"
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", ["tensors", ""])
@pytest.mark.parametrize("what", UNUSABLE)
def test_a_file_that_no_device_could_run_is_refused_before_it_is_queued(
    controller: ControllerApp, what: str, task: str
) -> None:
    make, words = UNUSABLE[what]
    more = {"task": task} if task else {"dataset": "any"}
    response = send(controller, make(), **more)
    assert is_problem(response, 422, "unusable-model")
    assert words.lower() in response.json["detail"].lower()
    assert response.json["hint"]
    assert operations.list_operations(controller.ctx) == []
    assert controller.get("/api/v1/models").json["items"] == []
    assert list((controller.ctx.folder / "uploads").iterdir()) == []


SENSELESS: dict[str, tuple[dict[str, Any], str]] = {
    "a dataset": ({"task": "tensors", "dataset": "parts"}, "no dataset 'parts'"),
    "labels": ({"task": "tensors", "labels": "a,b"}, "takes no labels"),
    "a pipeline": ({"task": "tensors", "pipeline": "{}"}, "takes no pipeline"),
    "variants": (
        {"task": "tensors", "variant:int8-u8s8-pc": onnx_files.linear()},
        "takes no variant:int8-u8s8-pc: the file is served as it is",
    ),
    "a sample of rows": ({"dataset": "parts", "sample": b"x"}, "sample is for named tensors"),
    "neither": ({}, "needs data to be measured on, or task tensors"),
    "another task": ({"task": "pose"}, "form: task"),
    "settings without a task": ({"settings": "{}"}, "the import has no task"),
    "a task of tensors with a dataset": (
        {"task": "detection", "dataset": "parts"},
        "no dataset 'parts'",
    ),
    "settings of another task": (
        {"task": "embedding", "settings": '{"labels": ["a"]}'},
        "no field 'labels'",
    ),
    "no such dataset": ({"dataset": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("what", SENSELESS)
def test_what_makes_no_sense_together_is_refused_by_name(
    controller: ControllerApp, what: str
) -> None:
    fields, words = SENSELESS[what]
    response = send(controller, onnx_files.linear(), **fields)
    assert response.status_code in (404, 422)
    assert words in response.json["detail"]
    assert operations.list_operations(controller.ctx) == []


def test_an_import_of_tensors_waits_in_the_queue_with_its_place(controller: ControllerApp) -> None:
    sample = io.BytesIO()
    np.savez(sample, x=np.zeros((2, 1, 3), np.float32))
    first = send(controller, onnx_files.linear(), task="tensors", sample=sample.getvalue())
    assert first.status_code == 202
    assert first.json["params"]["task"] == "tensors"
    controller.clock.now += 1
    second = send(controller, onnx_files.linear(), task="tensors")
    assert (first.json["position"], second.json["position"]) == (1, 2)
    listed = controller.get("/api/v1/operations").json["items"]
    assert [one["position"] for one in listed] == [2, 1]
    operations.claim_next(controller.ctx)
    location = second.headers["Location"]
    assert controller.get(location).json["position"] == 1
    assert controller.get(first.headers["Location"]).json["position"] == 0


def apart(*names: str) -> tuple[bytes, dict[str, bytes]]:
    """A model that keeps its weights in files, and these as fields of a form."""
    model, files = onnx_files.kept_apart(onnx_files.layers(2), names)
    return model, {f"data:{name}": content for name, content in files.items()}


def test_data_files_are_stored_and_wait_with_their_model(controller: ControllerApp) -> None:
    model, files = apart("a.bin", "b.bin")
    response = send(controller, model, task="tensors", **files)
    assert response.status_code == 202
    stored = response.json["params"]["data"]
    assert {name: controller.ctx.blobs.read(stored[name]) for name in stored} == {
        name.removeprefix("data:"): content for name, content in files.items()
    }
    found = send(controller, model, "/api/v1/models/inspect", **files)
    assert found.json["size"] == len(model) + 2 * 64 * 64 * 4
    assert found.json["facts"]["parameters"] == 2 * 64 * 64


WRONG_DATA: dict[str, tuple[dict[str, bytes], str, str]] = {
    "missing": ({}, "'a.bin', which has 'w0', was not given", "the file data:a.bin"),
    "one of another name": (
        {"data:a.bin": bytes(32_768), "data:c.bin": b"x"},
        "has no weights in 'c.bin'; the data files that it names: a.bin", "as the model does",
    ),
    "one cut short": ({"data:a.bin": bytes(32_767)}, "which has 32767", "complete?"),
    "one in a folder": (
        {"data:../a.bin": bytes(32_768)}, "cannot be called '../a.bin'", "weights.bin"
    ),
    "one called as a release's own": (
        {"data:fp32.onnx": bytes(32_768)}, "cannot be called 'fp32.onnx'", "weights.bin"
    ),
    "too many": (
        {f"data:{n}.bin": b"x" for n in range(9)}, "weights in 9 files, 8 at most", "weights.bin"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_DATA)
def test_data_files_that_do_not_fit_are_refused_at_once_by_name(
    controller: ControllerApp, what: str
) -> None:
    files, words, hint = WRONG_DATA[what]
    model, _ = apart("a.bin")
    for path, fields in (("mine/import", {"task": "tensors"}), ("inspect", {})):
        response = send(controller, model, f"/api/v1/models/{path}", **fields, **files)
        assert is_problem(response, 422, "unusable-model")
        assert words in response.json["detail"]
        assert hint in response.json["hint"]
    assert operations.list_operations(controller.ctx) == []


def test_an_inspection_says_what_a_file_is_and_who_can_carry_it_and_stores_nothing(
    controller: ControllerApp,
) -> None:
    blobs = list((controller.ctx.folder / "blobs").rglob("*"))
    response = send(controller, onnx_files.two_inputs(), "/api/v1/models/inspect")
    assert response.status_code == 200
    found = response.json
    assert [(i["name"], i["type"]) for i in found["facts"]["inputs"]] == [
        ("a", "FP32"), ("b", "INT64"),
    ]  # fmt: skip
    assert found["facts"]["operators"] == {"Add": 1, "Cast": 1, "Greater": 1}
    assert found["size"] == len(onnx_files.two_inputs())
    carried = {v["profile"]: (v["passed"], v["why"]) for v in found["verdicts"]}
    assert carried["rpi4"] == (True, "")
    assert "reflash" in carried["rpi3-armv7"][1]
    assert list((controller.ctx.folder / "blobs").rglob("*")) == blobs
    assert controller.get("/api/v1/models").json["items"] == []


def test_an_inspection_refuses_what_an_import_would(controller: ControllerApp) -> None:
    response = send(controller, one_node("Wobble", "acme"), "/api/v1/models/inspect")
    assert is_problem(response, 422, "unusable-model")
    assert "Wobble" in response.json["detail"]


def test_files_that_are_slow_to_read_do_not_take_every_thread_of_the_api(tmp_path: Path) -> None:
    go, begun = threading.Event(), threading.Event()

    def slow(path: Path, name: str, data: Any = None, steps: Any = None) -> Any:
        begun.set()
        go.wait(10)

    read = _one_at_a_time(slow)
    refused: list[str] = []
    ended = threading.Semaphore(0)

    def send_one() -> None:
        try:
            read(tmp_path, "it")
        except ConflictError as error:
            refused.append(error.message)
        ended.release()

    threads = [threading.Thread(target=send_one) for _ in range(READING + 3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    for _ in range(3):
        assert ended.acquire(timeout=10)
    assert refused == [f"{READING} files are being read"] * 3
    go.set()
    for thread in threads:
        thread.join(10)
    read(tmp_path, "it")
