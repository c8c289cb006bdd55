"""Named tensors from a program: by `Client` over a socket, by `Session` in its own process."""

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import helper

from devices import MODEL as ROWS_MODEL
from devices import softmax
from endpoints import Running, connect, named, read
from endpoints import request as http_request
from shoal import bundle
from shoal.agent import Client, Session
from shoal.agent.host.io import config
from shoal.agent.host.io.folder import MODELS as FOLDER
from shoal.agent.host.io.folder import SETTINGS, SPOOL
from shoal.agent.installed.io.slots import DiskSlots
from shoal.agent.serving.io.window_spool import WindowSpool
from shoal.errors import ConflictError, InputError
from shoal.signature import Signature, State
from shoal.tensors import to_bytes
from shoal.wire import Health, WindowReport
from tensor_models import (
    MODEL,
    MODELS,
    TensorModel,
    graph,
    identity,
    loaded,
    picture,
    put_tensors,
    raw,
    running_sum,
    scaled,
    slot_of,
    tensor,
)
from waiting import eventually

ROOT = Path(__file__).parents[3]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[type]:
    """A function that serves a model, in onnxruntime, and returns a client of it."""
    started: list[Running] = []

    def of(model: TensorModel) -> Client:
        started.append(Running(tmp_path, loaded(tmp_path, model)))
        return Client(MODEL, tmp_path)

    yield of
    for running in started:
        running.stop()


@pytest.mark.parametrize("name", MODELS)
def test_a_client_gets_what_onnxruntime_answers(name: str, serve) -> None:
    model = MODELS[name]()
    client = serve(model)
    found = client.infer_tensors(model.feeds[0])
    assert list(found) == [output.name for output in model.signature.outputs]
    for got, want in zip(found.values(), raw(model, model.feeds[0]), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert to_bytes(got) == to_bytes(want)
    assert client.release == "any@1"


def test_a_client_chooses_outputs_and_may_send_lists(serve) -> None:
    model = picture()
    client = serve(model)
    found = client.infer_tensors(model.feeds[0], ["best"])
    assert list(found) == ["best"]
    with pytest.raises(InputError, match="no output 'worst'"):
        client.infer_tensors(model.feeds[0], ["worst"])
    assert client.describe().labels == client.describe().features == []


def test_lists_are_arrays_of_numpy_s_own_choice(serve) -> None:
    client = serve(scaled())
    assert client.infer_tensors({"x": [[1.0], [2.0], [3.0]]})["y"].tolist() == [[2], [4], [6]]
    with pytest.raises(InputError, match="'x' is FP64, got datatype 'INT64'; convert it to FP64"):
        client.infer_tensors({"x": [[1], [2], [3]]})


@pytest.mark.parametrize("model", [picture(), scaled(), identity("FP32")],
                         ids=["bytes-do-not-fit", "two-inputs", "bytes-happen-to-fit"])  # fmt: skip
def test_a_client_that_sends_rows_is_told_that_tensors_are_taken(model: TensorModel, serve) -> None:
    client = serve(model)
    with pytest.raises(InputError):
        client.infer(np.zeros((2, 3), np.float32))
    with pytest.raises(InputError):
        client.infer(np.zeros((2, 3), np.float32), raw=True)


def test_rows_whose_bytes_fit_are_refused_by_name(serve) -> None:
    client = serve(identity("FP32"))
    with pytest.raises(InputError, match="any@1 takes tensors, not rows; use infer_tensors"):
        client.infer(np.zeros((2, 3), np.float32))


def test_a_client_streams_a_sequence_through_an_update(tmp_path: Path) -> None:
    running = Running(tmp_path, loaded(tmp_path, running_sum()))
    client, x = Client(MODEL, tmp_path), np.float32([[1, 2]])
    client.infer_tensors({"x": x}, sequence="mic", start=True)
    running.serving.swap(loaded(tmp_path, running_sum(), 2), Health())
    assert client.infer_tensors({"x": x}, sequence="mic")["y"].tolist() == [[2, 4]]
    assert client.release == "any@1"
    running.serving.retire()
    with pytest.raises(ConflictError, match="start the sequence again"):
        client.infer_tensors({"x": x}, sequence="mic")
    found = client.infer_tensors({"x": x}, sequence="mic", start=True, end=True)
    assert (found["y"].tolist(), client.release) == ([[1, 2]], "any@2")
    with pytest.raises(InputError, match="unknown sequence 'mic'"):
        client.infer_tensors({"x": x}, sequence="mic")
    running.stop()


def test_a_release_of_rows_answers_named_tensors_too(tmp_path: Path) -> None:
    running = Running(tmp_path)
    rows = np.float32([[0.5, -0.5]])
    found = Client(ROWS_MODEL, tmp_path).infer_tensors({"input": rows})
    np.testing.assert_allclose(found["output"], softmax(rows, 3), rtol=1e-5)
    running.stop()


def test_clients_that_wait_for_one_model_are_answered_by_few_runs(tmp_path: Path) -> None:
    engine = loaded(tmp_path, picture())
    engine.slot.timings_us["fp32"] = 5_000.0
    run, runs = engine.session.run_tensors, list[int]()
    started, go = threading.Event(), threading.Event()

    def blocked(feeds: Any, outputs: Any) -> Any:
        runs.append(len(feeds["picture"]))
        started.set()
        assert go.wait(20)
        return run(feeds, outputs)

    engine.session.run_tensors = blocked  # type: ignore[method-assign]
    running = Running(tmp_path, engine)
    pixels = np.random.default_rng(1).integers(0, 256, (9, 3, 4, 4), np.uint8)
    clients = [connect(running.tcp) for _ in pixels]
    for client, part in zip(clients, pixels, strict=True):
        size = "Inference-Header-Content-Length: 0"
        client.sendall(http_request(part.tobytes(), size, model=MODEL))
        assert started.wait(10)
    queue = running.endpoint._shared.batcher._queues[MODEL]
    eventually(lambda: len(queue._waiting) == 8, "eight requests wait")
    go.set()
    for client in clients:
        file = client.makefile("rb")
        assert file.readline().split()[1] == b"200"
        client.close()
    assert runs == [1, 8]
    assert (running.serving.vitals.requests, running.serving.vitals.rows) == (9, 9)
    running.stop()


def test_json_over_a_socket(tmp_path: Path) -> None:
    running = Running(tmp_path, loaded(tmp_path, identity("BYTES")))
    client = connect(running.tcp)
    given = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"BYTES","data":["a","\xc3\xa9",""]}]}'
    client.sendall(http_request(given, model=MODEL))
    status, found = read(client)
    assert (status, found["outputs"][0]["data"]) == (200, ["a", "é", ""])
    client.close()
    running.stop()


def test_the_example_in_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/agent.md").read_text().split("### Named tensors\n")[1]
    example = text.split("```python\n")[1].split("```")[0]
    signature = Signature(
        inputs=[
            tensor("input", "FP32", [1, 512]),
            tensor("state", "FP32", [2, 1, 128]),
            tensor("sr", "INT64", [], default=[16_000]),
        ],
        outputs=[tensor("output", "FP32", [1, 1]), tensor("stateN", "FP32", [2, 1, 128])],
        states=[State(taken="state", given="stateN", shape=[2, 1, 128])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["input", "axes"], ["output"]),
        helper.make_node("Add", ["state", "output"], ["stateN"]),
    ]
    weights = {"axes": np.array([1])}
    zeros = {"input": np.zeros((1, 512), np.float32), "sr": np.array(16_000),
             "state": np.zeros((2, 1, 128), np.float32)}  # fmt: skip
    speech = TensorModel(graph(signature, nodes, weights), signature, [zeros])
    engines = [loaded(tmp_path / "pictures", picture()), loaded(tmp_path / "speech", speech)]
    servings = [named(n, e) for n, e in zip(("parts", "speech"), engines, strict=True)]
    running = Running(tmp_path, *servings)
    client = functools.partial(Client, folder=tmp_path)
    monkeypatch.setattr("shoal.agent.Client", client, raising=False)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 4), np.uint8)
    frames = np.random.default_rng(2).normal(size=(3, 1, 512)).astype(np.float32)
    names: dict[str, Any] = {"pixels": pixels, "frames": frames}
    exec(example, names)
    assert names["best"].tolist() == raw(picture(), {"picture": pixels})[1].tolist()
    np.testing.assert_allclose(names["spoken"], frames.max(axis=(1, 2)))
    running.stop()


# ---------------------------------------------------------------------------- Session


def install(folder: Path, model: TensorModel) -> None:
    """An agent's folder with an installed release of tensors."""
    device = config.Device(name="cam-1", profile="x86-vnni")
    (folder / SETTINGS).write_text(config.dump(config.Settings(device=device)))
    slots = DiskSlots(folder / FOLDER)
    manifest = put_tensors(slots.path(MODEL, "a"), model)
    signed = bundle.sha256_of(slots.path(MODEL, "a") / bundle.MANIFEST)
    model_sha256 = manifest.variant("fp32").file.sha256
    slot = msgspec.structs.replace(slot_of(), sha256=signed, model_sha256=model_sha256)
    slots.point(MODEL, slot)


def test_a_session_infers_in_process_and_its_window_counts(tmp_path: Path) -> None:
    model = scaled()
    install(tmp_path, model)
    with Session(folder=tmp_path) as session:
        found = session.infer_tensors({"x": model.feeds[0]["x"]})
        np.testing.assert_array_equal(found["y"], raw(model, model.feeds[0])[0])
        for wrong in ({}, {"x": np.zeros((3, 2), np.float32)}):
            with pytest.raises(InputError):
                session.infer_tensors(wrong)
        with pytest.raises(InputError, match=r"takes tensors \(x, scale\), not rows"):
            session.infer(np.zeros((1, 3), np.float32))
    windows: list[WindowReport] = []
    WindowSpool(tmp_path / SPOOL).take(lambda report, key: not windows.append(report), print)
    (window,) = windows
    assert (window.release, window.rows, window.errors) == ("any@1", 2, 3)
    assert window.inputs == window.outputs == b""


def test_a_session_keeps_the_states_of_a_sequence(tmp_path: Path) -> None:
    install(tmp_path, running_sum())
    x = np.float32([[1, 2]])
    with Session(folder=tmp_path) as session:
        session.infer_tensors({"x": x}, sequence=1, start=True)
        assert session.infer_tensors({"x": x}, ["hn"], sequence=1)["hn"].tolist() == [[2, 4]]
