"""Marked values of masked columns are searched for in all that a controller keeps and answers."""

import base64
import io
import logging
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert

from api.controller_app import ORIGIN, ControllerApp, is_problem
from controllers import run
from shoal.controller import backup
from shoal.controller.api import registry
from shoal.controller.data import datasets
from shoal.controller.deletion import unused_files
from shoal.controller.operations import operations
from shoal.controller.store.tables import device

N = 300
POLICY = """
[columns.name]
rule = "drop"
[columns.email]
rule = "hash"
[columns.town]
rule = "generalise"
top = 2
[columns.born]
rule = "shift"
subject = "email"
[columns.income]
rule = "bucket"
width = 1000
"""
#: What is in the columns that are masked; each is in the table once or more.
TEXTS = ("Zyxgeheim Quoll", "zyxgeheim", "Zyxstadt", "1931-07-09")
NUMBER = 48_731.906_5
#: What is in columns that are not masked: the search finds it.
OPEN = "Wvuoffen"


def patients() -> dict[str, list[Any]]:
    rng = np.random.default_rng(5)
    pulse, income = rng.normal(70, 9, N).round(3), rng.uniform(1_000, 90_000, N).round(4)
    income[::50] = NUMBER
    return {
        "name": [f"{TEXTS[0]} {i}" for i in range(N)],
        "email": [f"{TEXTS[1]}.{i // 2}@example.org" for i in range(N)],
        "town": ["Ulm", "Hof"] * (N // 2 - 2) + [TEXTS[2]] * 4,
        "born": [TEXTS[3]] * 9 + ["1970-02-03"] * (N - 9),
        "income": income.tolist(),
        "ward": [f"{OPEN}{i % 3}" for i in range(N)],
        "pulse": pulse.tolist(),
        "sick": ["yes" if p > 0 else "no" for p in pulse - 70 + rng.normal(0, 4, N)],
    }  # fmt: skip


def forms(text: str) -> Iterator[bytes]:
    """A text as files may hold it: UTF-8, UTF-16, and base64 at any of its three offsets."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        yield text.encode(encoding)
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + text.encode()).rstrip(b"=")
        yield coded[-(-offset * 8 // 6) : -2]  # without the digits that its neighbours share


def needles() -> list[bytes]:
    texts = [form for text in TEXTS for form in forms(text)]
    return [*texts, *numbers_of(NUMBER)]


def numbers_of(value: float) -> Iterator[bytes]:
    yield repr(value).encode()
    for code in "<d", ">d", "<f", ">f":
        yield struct.pack(code, value)


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file, and what is packed in it: members of archives, columns of Parquet."""
    yield name, data
    if data.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(data))
        for column in table.column_names:
            values = table.column(column).to_pylist()
            texts = "\n".join(map(str, values)).encode()
            packed = (struct.pack("<d", v) for v in values if isinstance(v, int | float))
            yield f"{name}:{column}", texts + b"".join(packed)
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from contents(f"{name}:{member}", archive.read(member))


def files_of(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found |= contents(str(path.relative_to(folder)), path.read_bytes())
    return found


def holding(found: Mapping[str, bytes], wanted: list[bytes]) -> list[tuple[str, bytes]]:
    return [(name, one) for name, data in found.items() for one in wanted if one in data]


class Lived(NamedTuple):
    """A controller after a masked table went through it; every answer, by route; its log."""

    controller: ControllerApp
    answers: dict[str, bytes]
    log: str


@pytest.fixture(scope="module")
def lived(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    controller = ControllerApp(template, tmp_path_factory.mktemp("masked") / "controller")
    answers: dict[str, bytes] = {}
    log = io.StringIO()
    listener = logging.StreamHandler(log)
    logging.getLogger().addHandler(listener)
    logging.getLogger().setLevel(logging.DEBUG)

    def keep(name: str, response: Any, status: int = 200) -> Any:
        assert response.status_code == status, (name, response.get_data(as_text=True)[:500])
        answers[name] = response.get_data()
        return response

    def add(name: str, content: bytes, status: int, **fields: str) -> Any:
        form = {
            "name": "patients", "label": "sick", "site": "ward", "split": "email",
            "drop": "name,town,born", **fields, "file": (io.BytesIO(content), "patients.csv"),
        }  # fmt: skip
        return keep(name, controller.post("/api/v1/datasets", "operator", data=form), status)

    good = pd.DataFrame(patients()).to_csv(index=False).encode()
    uneven = good + f"{TEXTS[0]},{TEXTS[1]},{TEXTS[2]}\n".encode() * 200
    add("uneven", uneven, 422, mask=POLICY)
    add("no header", good.partition(b"\n")[2], 422, mask=POLICY)
    add("not UTF-8", good + TEXTS[0].encode() + b"\xff", 422, mask=POLICY)
    add("no label", good, 422, mask=POLICY, label="name")
    add("added", good, 201, mask=POLICY)
    add("the same", good, 201)
    body = {"dataset": "patients", "params": {"strength": 1.0}, "estimator": "logistic"}
    asked = controller.post("/api/v1/models/risk/train", "operator", json=body)
    ident = keep("train", asked, 202).json["id"]
    run(controller.ctx, operations.get_operation(controller.ctx, ident))
    release = "/api/v1/releases/risk@1"
    keep("publish", controller.post(f"{release}/publish", "approver", json={"override": "test"}))
    for path in (
        "datasets/patients@1", "datasets/patients/report", "releases/risk@1", "models/risk",
        f"operations/{ident}", f"runs/{ident}", "runs/risk@1", "lineage?thing=dataset:patients@1",
        "lineage?thing=release:risk@1",
    ):  # fmt: skip
        keep(path, controller.get(f"/api/v1/{path}"))
    for path in {r.path for r in registry.all_routes() if r.method == "GET"}:
        if "<" not in path and "stream" not in path:
            answers[path] = controller.get(path).get_data()
    controller.sign_in()
    for path in (
        "/datasets", "/datasets/patients@1", "/models/risk", "/releases/risk@1", "/audit",
        f"/operations/{ident}", f"/runs/{ident}", "/lineage?thing=dataset:patients@1",
    ):  # fmt: skip
        keep(path, controller.client.get(path, base_url=ORIGIN))
    logging.getLogger().removeHandler(listener)
    yield Lived(controller, answers, log.getvalue())
    controller.ctx.store.close()


def test_no_masked_value_is_in_any_file_of_the_controller(lived: Lived, tmp_path: Path) -> None:
    folder = lived.controller.ctx.folder
    found = files_of(folder)
    assert {"controller.db", "controller.db-wal"} <= found.keys()
    assert holding(found, needles()) == []
    # What is not masked is found by the same search: in the table, the database, the release.
    where = {name for name, _ in holding(found, list(forms(OPEN)))}
    assert any(name.startswith("controller.db") for name in where)
    assert any(name.endswith(":ward") for name in where)
    copy = tmp_path / "backup"
    backup.back_up(folder, copy, lived.controller.clock())
    assert holding(files_of(copy), needles()) == []
    assert list((folder / "uploads").iterdir()) == []


def test_no_masked_value_is_in_any_answer_or_log(lived: Lived) -> None:
    assert holding(lived.answers, needles()) == []
    assert holding({"log": lived.log.encode()}, needles()) == []
    assert holding(lived.answers, [OPEN.encode()])
    assert b"not quoted" in lived.answers["not UTF-8"] or b"not UTF-8" in lived.answers["not UTF-8"]


def test_the_search_finds_each_form_of_a_value() -> None:
    for text in TEXTS:
        for before in (b"", b"a", b"ab"):
            coded = base64.b64encode(before + text.encode() + b"xyz")
            assert any(form in coded for form in forms(text)), (text, before)
    frame = pd.DataFrame({"income": [NUMBER], "name": [TEXTS[0]]})
    packed = io.BytesIO()
    frame.to_parquet(packed, compression="zstd")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("t.parquet", packed.getvalue())
    found = holding(dict(contents("a.zip", archive.getvalue())), needles())
    assert {name for name, _ in found} >= {"a.zip:t.parquet:income", "a.zip:t.parquet:name"}


def test_the_console_shows_what_was_masked_and_takes_a_policy(lived: Lived) -> None:
    page = lived.answers["/datasets/patients@1"].decode()
    assert "keyed hash, key &#39;default&#39;" in page
    assert "dates moved by up to 180 days" in page
    controller = lived.controller
    content = pd.DataFrame(patients())[100:].to_csv(index=False).encode()
    form = {
        "name": "console", "label": "sick", "drop": "email,town,born,ward", "mask": POLICY,
        "file": (io.BytesIO(content), "patients.csv"),
    }  # fmt: skip
    headers = {"Sec-Fetch-Site": "same-origin"}
    made = controller.client.post("/datasets/add", data=form, base_url=ORIGIN, headers=headers)
    assert made.status_code == 303, made.get_data(as_text=True)[:800]
    found = controller.get("/api/v1/datasets/console").json["masking"]
    assert {one["name"]: one["rule"] for one in found["columns"]} == {
        "name": "drop", "email": "hash", "town": "generalise", "born": "shift", "income": "bucket",
    }  # fmt: skip


def forget(lived: Lived, role: str = "approver", **body: str) -> Any:
    body = {"column": "email", "value": f"{TEXTS[1]}.7@example.org"} | body
    name = body.pop("name", "patients")
    return lived.controller.post(f"/api/v1/datasets/{name}/forget", role, json=body)


def test_what_a_subject_is_forgotten_by_is_checked(lived: Lived) -> None:
    assert is_problem(forget(lived, "operator"), 403)
    assert "income" in forget(lived, column="income", value="1000").json["detail"]
    assert "stores no column" in forget(lived, column="name", value="x").json["detail"]
    nobody = forget(lived, value=f"{TEXTS[1]}.7000@example.org")
    assert is_problem(nobody, 404)
    assert TEXTS[1] not in nobody.get_data(as_text=True)
    key = lived.controller.ctx.folder / "keys" / "masking" / "default.key"
    kept = key.read_bytes()
    key.write_bytes(b"x" * 32)
    gone = forget(lived)
    key.write_bytes(kept)
    assert is_problem(gone, 409)
    assert "is not the one" in gone.json["detail"]


def test_a_forgotten_subject_is_in_no_version_and_what_it_trained_is_named(lived: Lived) -> None:
    controller, ctx = lived.controller, lived.controller.ctx
    row = {
        "name": "bed-1", "state": "enrolled", "labels": {}, "variants": {}, "facts": {},
        "releases": {"risk": "risk@1"},
    }  # fmt: skip
    with ctx.store.write() as db:
        db.execute(insert(device), [row])
    before = datasets.get_dataset(ctx, "patients@1")
    table = pq.read_table(ctx.blobs.path(before.sha256))
    hashed = table.column("email")[14].as_py()
    content = pd.DataFrame(patients()).to_csv(index=False).encode()
    form = {
        "name": "twin", "label": "sick", "drop": "email,town,born,ward", "mask_as": "patients@1",
        "file": (io.BytesIO(content), "patients.csv"),
    }  # fmt: skip
    assert controller.post("/api/v1/datasets", "operator", data=form).status_code == 201
    found = forget(lived).json
    assert found["derived"] == ["twin@1"], "it is stored in the same file"
    assert forget(lived, name="twin").json["made"] == "twin@2"
    assert (found["rows"], found["made"], found["erased"]) == (
        {"patients@1": 2}, "patients@2", ["patients@1"],
    )  # fmt: skip
    assert (found["releases"], found["devices"]) == (["risk@1"], ["bed-1"])
    assert len(found["runs"]) == 1
    after = datasets.get_dataset(ctx, "patients")
    assert (after.rows, after.masking, after.parents) == (N - 2, before.masking, ["patients@1"])
    assert hashed not in pq.read_table(ctx.blobs.path(after.sha256)).column("email").to_pylist()
    body = {"dataset": "patients@1", "estimator": "logistic"}
    refused = controller.post("/api/v1/models/risk/train", "operator", json=body)
    assert is_problem(refused, 409)
    assert "patients@1 were erased" in refused.json["detail"]
    controller.clock.now += 3_600
    while unused_files.free(ctx):
        pass
    assert not ctx.blobs.exists(before.sha256)
    assert holding(files_of(ctx.folder), [hashed.encode()]) == []
    assert holding(files_of(ctx.folder), needles()) == []
    assert is_problem(forget(lived), 404)
    entry = controller.get("/api/v1/audit?verb=dataset.forget&subject=patients").json["items"][0]
    assert (entry["subject"], entry["detail"]["column"]) == ("patients", "email")
    page = controller.client.get("/datasets/patients@1", base_url=ORIGIN)
    assert page.status_code == 200
    assert "were erased" in page.get_data(as_text=True)
    shown = controller.client.get("/datasets/console/forget", base_url=ORIGIN)
    assert "email" in shown.get_data(as_text=True)


def test_a_subject_is_forgotten_in_the_console(lived: Lived) -> None:
    controller = lived.controller
    content = pd.DataFrame(patients()).to_csv(index=False).encode()
    form = {
        "name": "wards", "label": "sick", "drop": "name,email,town,born,ward", "no_mask": "true",
        "file": (io.BytesIO(content), "patients.csv"),
    }  # fmt: skip
    assert controller.post("/api/v1/datasets", "operator", data=form).status_code == 201
    headers, body = {"Sec-Fetch-Site": "same-origin"}, {"column": "town", "value": TEXTS[2]}
    path = "/datasets/wards/forget"
    page = controller.client.post(path, data=body, base_url=ORIGIN, headers=headers)
    assert page.status_code == 200
    assert "wards@2" in page.get_data(as_text=True)
    assert TEXTS[2] not in page.get_data(as_text=True)
    assert datasets.get_dataset(controller.ctx, "wards@2").rows == N - 4
