"""Datasets of images, audio and tensors, by API and console."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from PIL import Image

from api.controller_app import ORIGIN, ControllerApp, is_problem
from item_files import picture, pictures, tarred, tone, zipped
from onnx_files import node, onnx_of
from shoal.controller.data import adding, datasets
from shoal.controller.data.io import packing
from shoal.controller.deletion import deletion
from shoal.controller.operations import operations
from shoal.controller.wiring import operation_kinds
from shoal.errors import ConflictError


def send(controller: ControllerApp, path: Path, **fields: str) -> Any:
    form = {"name": "parts", **fields, "file": (io.BytesIO(path.read_bytes()), path.name)}
    return controller.post("/api/v1/datasets", "operator", data=form)


def refusal(response: Any, status: int = 422) -> str:
    """Detail of the expected problem, which has a hint."""
    assert is_problem(response, status)
    assert response.json["hint"]
    return str(response.json["detail"])


def page(controller: ControllerApp, path: str) -> str:
    controller.sign_in("viewer")
    response = controller.client.get(path, base_url=ORIGIN)
    assert response.status_code == 200
    return response.get_data(as_text=True)


def test_an_archive_of_images_becomes_a_version_with_what_was_found(
    controller: ControllerApp, tmp_path: Path
) -> None:
    files = pictures() | {"parts/notes.txt.bak": b"x"}
    made = send(controller, zipped(tmp_path / "parts.zip", files))
    assert made.status_code == 201
    assert (made.json["kind"], made.json["rows"], made.json["version"]) == ("images", 12, 1)
    assert made.json["contents"]["classes"] == {"bad": 4, "good": 8}
    assert made.json["contents"]["left_out"][0]["names"] == ["parts/notes.txt.bak"]
    again = send(controller, tarred(tmp_path / "parts.tgz", dict(sorted(files.items()))))
    assert again.json["version"] == 1
    assert list((controller.ctx.folder / "uploads").iterdir()) == []
    version = datasets.get_dataset(controller.ctx, "parts")
    assert adding.items_of(controller.ctx, version).read(0)["image"].shape == (16, 24, 3)


def test_sounds_and_arrays_and_tables_without_labels_are_datasets(
    controller: ControllerApp, tmp_path: Path
) -> None:
    sounds = zipped(tmp_path / "s.zip", {f"{i}.wav": tone(i) for i in range(3)})
    assert send(controller, sounds, unlabelled="true").json["kind"] == "audio"
    np.savez(tmp_path / "a.npz", x=np.ones((5, 2)))
    made = send(controller, tmp_path / "a.npz", unlabelled="true").json
    assert (made["kind"], made["rows"], made["version"]) == ("tensors", 5, 2)
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n3,4\n")
    made = send(controller, table, unlabelled="true", name="flows").json
    assert (made["kind"], made["label"]) == ("table", "")
    body = {"dataset": "flows"}
    refused = controller.post("/api/v1/models/m/train", "operator", json=body)
    assert "flows@1 has no label" in refusal(refused)
    refused = controller.post("/api/v1/models/m/train", "operator", json={"dataset": "parts"})
    assert "parts@2 is a dataset of tensors" in refusal(refused)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "nothing says what each of the 2 items is"),
        ({"labels_from": "csv"}, "labels are in one CSV file, there are 0"),
        ({"labels_from": "guess"}, "labels_from"),
        ({"kind": "audio"}, "has no sounds"),
        ({"unlabelled": "true", "label": "x"}, "labels of an unlabelled dataset"),
        ({"name": "No Name", "unlabelled": "true"}, "dataset name"),
    ],
)
def test_what_cannot_be_a_dataset_is_a_problem_with_a_hint(
    controller: ControllerApp, tmp_path: Path, fields: dict[str, str], words: str
) -> None:
    path = zipped(tmp_path / "p.zip", {"a.png": picture(), "b.png": picture(1)})
    assert words in refusal(send(controller, path, **fields))
    assert controller.get("/api/v1/datasets").json["items"] == []


def test_the_console_shows_a_dataset_with_thumbnails_to_those_who_may_read_it(
    controller: ControllerApp, tmp_path: Path
) -> None:
    files = {f"{'a' if i % 2 else 'b'}/<b>{i:02}.png": picture(i, (400, 300)) for i in range(30)}
    send(controller, zipped(tmp_path / "p.zip", files | {"a/broken.png": b"x"}))
    anyone = controller.get("/api/v1/datasets/parts@1/thumbnails/3", "")
    assert anyone.status_code == 401
    shown = page(controller, "/datasets/parts@1")
    assert shown.count("<img") == 24
    assert "&lt;b&gt;" in shown
    assert "<b>00" not in shown
    assert "a/broken.png" in shown
    assert page(controller, "/datasets/parts@1?cursor=24").count("<img") == 6
    small = controller.get("/api/v1/datasets/parts@1/thumbnails/3")
    assert small.mimetype == "image/webp"
    assert Image.open(io.BytesIO(small.data)).size == (160, 120)
    assert is_problem(controller.get("/api/v1/datasets/parts@1/thumbnails/30"), 404)


def means() -> bytes:
    """The mean of each channel of images of any size."""
    return onnx_of(
        [node("Cast", ["picture"], ["x"], to=TensorProto.FLOAT),
         node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)],
        [("picture", TensorProto.UINT8, ["N", "H", "W", 3])],
        [("y", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip


def test_the_images_of_a_dataset_are_the_inputs_on_which_an_import_is_measured(
    controller: ControllerApp, tmp_path: Path
) -> None:
    files = {f"{'a' if i % 2 else 'b'}/{i:02}.png": picture(i) for i in range(24)}
    send(controller, zipped(tmp_path / "p.zip", files))
    form = {"task": "tensors", "dataset": "parts", "onnx": (io.BytesIO(means()), "means.onnx")}
    asked = controller.post("/api/v1/models/means/import", "operator", data=form)
    assert asked.status_code == 202
    blobs = sum(1 for path in (controller.ctx.folder / "blobs").rglob("*") if path.is_file())
    assert blobs == 2  # the dataset and the model: the dataset is not stored twice
    claimed = operations.claim_next(controller.ctx)
    assert claimed is not None
    done = operations.run(controller.ctx, claimed.id, operation_kinds())
    assert done.error == ""
    assert done.state == "succeeded"
    release = controller.get("/api/v1/releases/means@1").json
    assert release["tensors"]["inputs"][0]["datatype"] == "UINT8"
    assert release["dataset"] == "parts@1"
    with pytest.raises(ConflictError, match="made with it"):
        deletion.delete_dataset(controller.ctx, actor="ana", ref="parts@1")
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n3,4\n")
    send(controller, table, name="rows", label="b")
    form |= {"dataset": "rows", "onnx": (io.BytesIO(means()), "means.onnx")}
    refused = controller.post("/api/v1/models/means/import", "operator", data=form)
    assert "a table has rows" in refusal(refused)


def test_the_form_adds_a_dataset_and_shows_it(controller: ControllerApp, tmp_path: Path) -> None:
    controller.sign_in("operator")
    headers = {"Sec-Fetch-Site": "same-origin"}

    def add(path: Path, **fields: str) -> Any:
        form = {"name": "parts", **fields, "file": (io.BytesIO(path.read_bytes()), path.name)}
        return controller.client.post("/datasets/add", data=form, base_url=ORIGIN, headers=headers)

    path = zipped(tmp_path / "p.zip", pictures())
    assert "Add a dataset" in page(controller, "/datasets/add")
    controller.sign_in("operator")
    made = add(path)
    assert (made.status_code, made.location) == (303, "/datasets/parts@1")
    only = zipped(tmp_path / "o.zip", {"a.png": picture()})
    assert add(only, unlabelled="true").location == "/datasets/parts@2"
    assert "say --unlabelled" in add(only).get_data(as_text=True)
    controller.sign_in("viewer")
    assert add(path).status_code == 403


def test_the_child_that_reads_an_upload_ends_at_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controller: ControllerApp
) -> None:
    monkeypatch.setattr(packing, "DATA_MB", 60)
    path = zipped(tmp_path / "p.zip", {"a.npz": b"0"} | pictures())
    assert "p.zip takes more than 60 MB of memory" in refusal(send(controller, path))


def test_how_a_table_was_read_and_what_was_left_out_is_in_the_api_and_the_console(
    controller: ControllerApp, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        "Prüfstand\nheat;ok\n".encode("latin-1") + b"1,5;1\n2,5;0\n" * 20 + b"1,5;\n7\n"
    )
    assert "--encoding cp1252" in refusal(send(controller, path, label="ok"))
    controller.sign_in()
    form = {"name": "parts", "label": "ok", "encoding": "latin-1", "skip": "1"}
    added = controller.client.post(
        "/datasets/add", base_url=ORIGIN, headers={"Sec-Fetch-Site": "same-origin"},
        data=form | {"file": (io.BytesIO(path.read_bytes()), path.name)},
    )  # fmt: skip
    assert added.headers["Location"] == "/datasets/parts@1"
    made = controller.get("/api/v1/datasets/parts@1").json
    assert (made["csv"]["decimal"], made["csv"]["skip"], made["duplicates"]) == (",", 1, 38)
    assert {one["reason"]: one["count"] for one in made["left_out"]} == {
        "not as many values as columns": 1, "label missing": 1
    }  # fmt: skip
    report = controller.get("/api/v1/datasets/parts@1/report").json
    assert {f["check"]: (f["count"], f["rows"][:1]) for f in report["findings"]} == {
        "left out": (1, [41]), "missing": (1, [41]), "duplicates": (38, [3]),
    }  # fmt: skip
    shown = page(controller, "/datasets/parts@1")
    for words in (
        "decimal mark ,", "encoding iso8859-1", "line 44", "label missing", ">38 rows",
        "Cleaning report", "3, 4, 5, 6, 7",
    ):  # fmt: skip
        assert words in shown
    assert send(controller, path, label="ok", encoding="latin-1", skip="1").json["version"] == 1
    assert "separator" in refusal(send(controller, path, label="ok", separator="ab"), 422)
    path.write_bytes(b"heat;ok;load\n" + b"1,5;1;3\n2,5;0;4\n" * 20)
    assert send(controller, path, label="ok").json["version"] == 2
    assert "diff?before=parts@1" in page(controller, "/datasets/parts@2").replace("%40", "@")
    changed = controller.get("/api/v1/datasets/parts@2/diff?before=parts@1").json["table"]
    assert (changed["rows_same"], changed["rows_removed"]) == (40, 1)
    shown = page(controller, "/datasets/parts@2/diff")
    for words in ("parts@1 to parts@2", "load", "not there", "40 the same"):
        assert words in shown


def test_an_excel_workbook_is_refused_with_what_to_do(
    controller: ControllerApp, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "t.xlsx", {"[Content_Types].xml": b"<Types/>"})
    refused = send(controller, path, label="ok")
    assert "an Excel workbook" in refusal(refused)
    assert "save the sheet as CSV UTF-8" in refused.json["hint"]
