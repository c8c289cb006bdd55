"""What the console says of a model of tensors, without a browser: the words people look for."""

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import onnx_files
import tensor_releases
from api.controller_app import ORIGIN, ControllerApp
from shoal import topics, wire
from shoal.controller.ingest.ingest import ingest
from shoal.controller.monitoring import window_validation
from shoal.controller.operations import operations
from shoal.controller.releases.records import TaskReport
from shoal.controller.store import tables
from shoal.manifest import DeclaredSteps
from shoal.signature import State
from shoal.tasks import Regression


@pytest.fixture
def signed_in(controller: ControllerApp) -> Iterator[ControllerApp]:
    controller.sign_in()
    return controller


def page(controller: ControllerApp, path: str) -> str:
    answer = controller.client.get(path, base_url=ORIGIN)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return str(answer.get_data(as_text=True))


def send(controller: ControllerApp, onnx: bytes, **fields: Any) -> Any:
    form = {"model": "mine", **fields, "onnx": (io.BytesIO(onnx), "mine.onnx")}
    headers = {"Sec-Fetch-Site": "same-origin"}
    return controller.client.post("/import", data=form, base_url=ORIGIN, headers=headers)


def test_the_page_of_its_release_shows_the_signature_and_that_nothing_is_claimed(
    signed_in: ControllerApp,
) -> None:
    made = tensor_releases.built()
    assert made.tensors is not None
    state = State(taken="x", given="y", shape=[1, 3])
    report = msgspec.structs.replace(made.tensors, states=[state])
    ref = tensor_releases.packed(signed_in.ctx, msgspec.structs.replace(made, tensors=report))
    shown = page(signed_in, f"/releases/{ref}")
    for words in (
        "[N (items), 3]", "INT64", "Nothing is claimed about this model", "its shapes were tried",
        "is y of the step before", "in-toto, SLSA v1", "none: nothing was measured",
        "1 input, 1 output", "about 9 MB", f"/releases/{ref}/bom",
    ):  # fmt: skip
        assert words in shown
    assert "Cosine" not in shown
    assert "not measured: tensors" in page(signed_in, "/models/counts")
    assert ref in page(signed_in, "/models")


def test_steps_are_sent_with_the_form_and_are_on_the_page_of_the_release(
    signed_in: ControllerApp,
) -> None:
    file = b'[[output]]\nname = "y"\nas = "best"\nsteps = [{ step = "argmax" }]\n'
    assert 'name="steps"' in page(signed_in, "/import")
    answer = send(
        signed_in, onnx_files.linear(), task="tensors", steps=(io.BytesIO(file), "s.toml")
    )
    assert answer.status_code == 303
    [one] = operations.list_operations(signed_in.ctx)
    assert signed_in.ctx.blobs.read(one.params["steps"]) == file
    wrong = file.replace(b"argmax", b"argmin")
    answer = send(
        signed_in, onnx_files.linear(), task="tensors", steps=(io.BytesIO(wrong), "s.toml")
    )
    assert answer.status_code == 422
    assert "no step" in answer.get_data(as_text=True)

    made = tensor_releases.built()
    assert made.tensors is not None
    declared = DeclaredSteps(
        source_sha256="f" * 64, output=[{"name": "y", "as": "best", "steps": [{"step": "argmax"}]}]
    )
    report = msgspec.structs.replace(made.tensors, steps=declared)
    ref = tensor_releases.packed(signed_in.ctx, msgspec.structs.replace(made, tensors=report))
    shown = page(signed_in, f"/releases/{ref}")
    assert "output y, as best: argmax" in shown
    assert "f" * 64 in shown


def test_its_drift_page_says_why_there_is_nothing(signed_in: ControllerApp) -> None:
    ctx, ref = signed_in.ctx, tensor_releases.released(signed_in.ctx)
    with ctx.store.write() as db:
        empty = {"labels": {}, "releases": {}, "variants": {}, "facts": {}}
        db.execute(tables.device.insert().values(name="cam", state="enrolled", site="s", **empty))
        known = window_validation.references_of(db, ref)
    report = wire.WindowReport(
        device="cam", boot="b", seq=1, sent_s=ctx.clock(), model="counts", release=ref,
        reference=known.id, window_start_s=ctx.clock(), window_s=10.0, rows=5, latency=[0, 5],
    )  # fmt: skip
    ingest(ctx, [(topics.up("cam", "window"), wire.encode(report))])
    shown = page(signed_in, "/drift?model=counts&scope=device&subject=cam")
    assert "has no reference" in shown
    assert "Baseline" not in shown
    assert "/drift?" in page(signed_in, f"/releases/{ref}"), "its site, in service"
    assert page(signed_in, "/devices/cam")


def test_an_import_starts_from_the_form_and_waits_in_the_queue(signed_in: ControllerApp) -> None:
    assert "Tensors: any model" in page(signed_in, "/import")
    nothing = (io.BytesIO(b""), "")
    answer = send(signed_in, onnx_files.linear(), task="tensors", dataset="", sample=nothing)
    assert answer.status_code == 303
    [one] = operations.list_operations(signed_in.ctx)
    assert (one.subject, one.params["task"], one.params["sample"]) == ("mine", "tensors", "")
    assert answer.headers["Location"].endswith(one.id)
    assert "Place in the queue: 1" in page(signed_in, f"/operations/{one.id}")
    assert "place 1 in the queue" in page(signed_in, "/operations")


def test_data_files_are_chosen_together_and_keep_their_names(signed_in: ControllerApp) -> None:
    assert 'name="data" type="file" multiple' in page(signed_in, "/import")
    model, files = onnx_files.kept_apart(onnx_files.layers(2), ["a.bin", "b.bin"])
    chosen = [(io.BytesIO(content), name) for name, content in files.items()]
    answer = send(signed_in, model, task="tensors", data=chosen)
    assert answer.status_code == 303, answer.get_data(as_text=True)
    [one] = operations.list_operations(signed_in.ctx)
    assert set(one.params["data"]) == {"a.bin", "b.bin"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "tensors", "labels": "a,b"}, "takes no labels"),
        ({"task": ""}, "needs data to be measured on"),
        ({"task": "tensors", "model": "No Name"}, "inner hyphens"),
    ],
)
def test_a_form_that_makes_no_sense_is_answered_with_the_reason(
    signed_in: ControllerApp, fields: dict[str, str], words: str
) -> None:
    answer = send(signed_in, onnx_files.linear(), **fields)
    assert answer.status_code == 422
    assert words in answer.get_data(as_text=True)
    assert operations.list_operations(signed_in.ctx) == []


def test_a_viewer_cannot_import(controller: ControllerApp) -> None:
    controller.sign_in("viewer")
    assert "Operators import models" in page(controller, "/import")
    assert send(controller, onnx_files.linear(), task="tensors").status_code == 403


def test_the_page_of_a_release_with_a_task_shows_labels_and_what_was_measured(
    signed_in: ControllerApp,
) -> None:
    made = tensor_releases.built()
    assert made.tensors is not None
    claimed = TaskReport(
        meaning=Regression(outputs=["y"], names=["left", "middle", "right"], units=["mm"] * 3),
        metrics={"r2": 0.9125, "mae": 0.25}, main="r2", items=40, given=50,
        notes=["targets were named by <hand>"],
    )  # fmt: skip
    report = msgspec.structs.replace(made.tensors, task=claimed)
    changed = msgspec.structs.replace(
        made, task="regression", metrics=claimed.metrics, main="r2", tensors=report
    )
    ref = tensor_releases.packed(signed_in.ctx, changed)
    text = page(signed_in, f"/releases/{ref}")
    for words in ("Task: regression", "left, middle, right", "0.9125", "40 of 50 items",
                  "r2 (judged)", "named by &lt;hand&gt;"):  # fmt: skip
        assert words in text
    assert "Nothing is claimed" not in text
    assert "labels of a sample" in page(signed_in, "/models/counts")
    assert '<option value="segmentation">' in page(signed_in, "/import")
    found = signed_in.get(f"/api/v1/releases/{ref}").json
    assert found["tensors"]["task"]["meaning"]["task"] == "regression"
