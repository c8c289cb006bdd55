"""Files that people send: good ones are kept, bad ones are told why, and nothing is left lying."""

import gzip
import io
import shutil
from typing import Any

import pytest

from api.controller_app import ControllerApp, is_problem
from onnx_files import linear
from shoal.controller.api import request_parsing

CSV = b"a,b,ok\n" + b"".join(b"%d.5,%d,%d\n" % (n, n % 7, n % 2) for n in range(200))


def send(
    controller: ControllerApp, data: bytes = CSV, filename: str = "parts.csv", **fields: str
) -> Any:
    form = {"name": "parts", "label": "ok", **fields, "file": (io.BytesIO(data), filename)}
    return controller.post("/api/v1/datasets", "operator", data=form)


def left(controller: ControllerApp) -> list[Any]:
    return list((controller.ctx.folder / "uploads").iterdir())


def test_a_table_becomes_a_version_and_the_same_table_the_same_version(
    controller: ControllerApp,
) -> None:
    first, again = send(controller), send(controller)
    assert first.status_code == again.status_code == 201
    assert first.json["version"] == again.json["version"] == 1
    assert first.json["rows"] == 200
    assert send(controller, CSV + b"9,9,1\n").json["version"] == 2
    assert controller.get("/api/v1/datasets/parts").json["version"] == 2
    assert controller.get("/api/v1/datasets/parts@1").json["rows"] == 200
    assert left(controller) == []


def test_an_upload_that_the_disk_has_no_room_for_is_refused_before_it_is_stored(
    controller: ControllerApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = request_parsing.RESERVE + 1_000
    usage = shutil.disk_usage("/")._replace(free=room)
    monkeypatch.setattr(request_parsing.shutil, "disk_usage", lambda folder: usage)
    response = send(controller)
    assert is_problem(response, 507, "storage")
    assert "the controller has 64 MB free" in response.json["detail"]
    assert left(controller) == []


def test_drop_and_parents_are_separated_by_commas(controller: ControllerApp) -> None:
    send(controller)
    made = send(controller, CSV + b"9,9,1\n", drop=" a,", parents="parts@1").json
    assert [c["name"] for c in made["columns"] if c["role"] == "dropped"] == ["a"]
    assert made["parents"] == ["parts@1"]


@pytest.mark.parametrize("filename", ["", "parts.exe", "../../../../etc/passwd", "parts.csv.gz"])
def test_the_name_of_an_uploaded_file_is_not_a_path(
    controller: ControllerApp, filename: str
) -> None:
    assert send(controller, filename=filename).status_code == 201
    assert left(controller) == []


@pytest.mark.parametrize(
    ("data", "filename", "fields"),
    [
        (b"", "parts.csv", {}),
        (b"\x00\xff" * 1000, "parts.csv", {}),
        (b"\x00\xff" * 1000, "parts.parquet", {}),
        (gzip.compress(CSV)[:-20], "parts.csv.gz", {}),
        (b'"a', "parts.csv", {}),
        (CSV, "parts.csv", {"label": "no-such"}),
        (CSV, "parts.csv", {"label": ""}),
        (CSV, "parts.csv", {"name": "../up"}),
        (CSV, "parts.csv", {"name": ""}),
        (CSV, "parts.csv", {"site": "no-such"}),
        (CSV, "parts.csv", {"drop": "no-such"}),
        (CSV, "parts.csv", {"parents": "no-such@7"}),
        (CSV, "parts.csv", {"unheard-of": "x"}),
    ],
)  # fmt: skip
def test_a_refused_dataset_gets_a_reason(
    controller: ControllerApp, data: bytes, filename: str, fields: dict[str, str]
) -> None:
    response = send(controller, data, filename, **fields)
    assert 400 <= response.status_code < 500, response.get_data()
    assert is_problem(response, response.status_code)
    assert left(controller) == []
    assert controller.get("/api/v1/datasets").json["items"] == []


def test_a_form_without_its_file_or_with_another_is_refused(controller: ControllerApp) -> None:
    form: dict[str, Any] = {"name": "parts", "label": "ok", "other": (io.BytesIO(CSV), "x.csv")}
    response = controller.post("/api/v1/datasets", data=form)
    assert is_problem(response, 422, "bad-input")
    assert "other" in response.json["detail"]
    form = {"name": "parts", "label": "ok"}
    response = controller.post("/api/v1/datasets", data=form, content_type="multipart/form-data")
    assert is_problem(response, 422, "bad-input")
    assert "no file 'file'" in response.json["detail"]
    assert is_problem(controller.post("/api/v1/datasets", json={"name": "parts"}), 415)


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: x\r\n"]
)
def test_a_malformed_form_is_a_problem(controller: ControllerApp, body: bytes) -> None:
    kind = "multipart/form-data; boundary=x"
    response = controller.post("/api/v1/datasets", data=body, content_type=kind)
    assert 400 <= response.status_code < 500
    assert is_problem(response, response.status_code)


def test_long_work_is_accepted_with_an_address_to_watch(controller: ControllerApp) -> None:
    send(controller)
    body = {"dataset": "parts", "estimator": "logistic"}
    response = controller.post("/api/v1/models/parts/train", "operator", json=body)
    assert response.status_code == 202, response.get_data()
    where = response.headers["Location"]
    assert where == f"/api/v1/operations/{response.json['id']}"
    assert controller.get(where, "viewer").json["state"] == "queued"
    listed = controller.get("/api/v1/operations?state=queued", "viewer").json["items"]
    assert [item["id"] for item in listed] == [response.json["id"]]


def test_the_same_training_asked_for_twice_is_one(controller: ControllerApp) -> None:
    send(controller)
    key = {"Idempotency-Key": "k"}
    body = {"dataset": "parts", "estimator": "logistic"}
    first = controller.post("/api/v1/models/parts/train", json=body, headers=key)
    again = controller.post("/api/v1/models/parts/train", json=body, headers=key)
    assert first.headers["Location"] == again.headers["Location"]
    assert len(controller.get("/api/v1/operations").json["items"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"dataset": "no-such"},
        {"dataset": "parts@99"},
        {"dataset": "parts@x"},
        {"dataset": "parts", "estimator": "oracle"},
        {"dataset": "parts", "sites": ["no-such"]},
        {"dataset": "parts", "params": {"actor": "x", "ctx": 1, "db": 2, "operation": 3}},
        {"dataset": "parts", "params": {"holdout": "much"}},
        {"dataset": "parts", "params": {"holdout": 7}},
    ],
)
def test_a_training_that_cannot_be_is_refused_at_once(
    controller: ControllerApp, body: dict[str, Any]
) -> None:
    send(controller)
    response = controller.post("/api/v1/models/parts/train", json=body)
    assert 400 <= response.status_code < 500, response.get_data()
    assert is_problem(response, response.status_code)
    assert is_problem(
        controller.post("/api/v1/models/Bad Name/train", json={"dataset": "parts"}), 422
    )


def test_a_model_from_elsewhere_is_taken_with_its_variants(controller: ControllerApp) -> None:
    send(controller)
    onnx, onnx8 = linear(), linear(width=4)
    form = {
        "dataset": "parts",
        "labels": "bad,good",
        "onnx": (io.BytesIO(onnx), "m.onnx"),
        "variant:int8-u8s8-pc": (io.BytesIO(onnx8), "m8.onnx"),
    }
    response = controller.post("/api/v1/models/parts/import", data=form)
    assert response.status_code == 202, response.get_data()
    params = response.json["params"]
    assert controller.ctx.blobs.read(params["onnx"]) == onnx
    assert controller.ctx.blobs.read(params["variants"]["int8-u8s8-pc"]) == onnx8
    assert left(controller) == []


def test_a_pipeline_comes_with_its_model_and_one_that_is_none_is_refused(
    controller: ControllerApp,
) -> None:
    send(controller)

    def take(pipeline: str) -> Any:
        onnx = (io.BytesIO(linear()), "m.onnx")
        form = {"dataset": "parts", "onnx": onnx, "pipeline": pipeline}
        return controller.post("/api/v1/models/parts/import", data=form)

    made = take('{"missing": "last", "stale_s": 5}')
    assert made.status_code == 202, made.get_data()
    assert made.json["params"]["params"]["pipeline"] == {"missing": "last", "stale_s": 5.0}
    for wrong in ("{", "[]", '{"missing": "guess"}'):
        assert is_problem(take(wrong), 422)
    assert left(controller) == []
