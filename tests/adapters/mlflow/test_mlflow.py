"""Models in the registry of a real MLflow server become releases, and remember where from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.controller_app import ControllerApp, is_problem, make_template
from controllers import run
from mlflow_server import PYTHON_ONLY, MlflowServer, X, in_two_files
from shoal.controller.app import create_app
from shoal.controller.host.settings import Mlflow
from shoal.controller.operations import operations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def controller(
    mlflow: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControllerApp]:
    folder = tmp_path_factory.mktemp("controller")
    made = ControllerApp(make_template(folder / "template"), folder / "controller")
    settings = msgspec.structs.replace(made.ctx.settings, mlflow=Mlflow(url=mlflow.url))
    made.ctx = made.ctx._replace(settings=settings)
    made.app = create_app(made.ctx)
    made.client = made.app.test_client()
    yield made
    made.ctx.store.close()


def imported(controller: ControllerApp, model: str, source: str, **more: Any) -> Any:
    body = {"source": source, "task": "tensors", **more}
    return controller.post(f"/api/v1/models/{model}/import-mlflow", "operator", json=body)


def test_a_version_in_two_files_becomes_a_release_that_remembers_where_it_is_from(
    controller: ControllerApp, mlflow: MlflowServer
) -> None:
    version = mlflow.register("press", in_two_files())
    mlflow.point("press", "champion", version)
    started = imported(controller, "press", "mlflow:press@champion")
    assert started.status_code == 202, started.json
    ended = run(controller.ctx, operations.get_operation(controller.ctx, started.json["id"]))
    assert ended.result == {"release": "press@1"}, ended.error
    found = controller.get("/api/v1/runs/press@1").json
    source = found["source"]
    assert (source["name"], source["asked"]) == (f"press/{version}", "press@champion")
    assert (found["revision"], source["code"]) == ("8c1f2ab9", "train.py")
    assert source["tags"] == {"line": "7"}
    assert source["url"] == f"{mlflow.url}/#/models/press/versions/{version}"
    up = controller.get("/api/v1/lineage?thing=press@1").json
    assert f"mlflow:press/{version}" in {f"{t['kind']}:{t['name']}" for t in up["things"]}
    down = controller.get(f"/api/v1/lineage?thing=mlflow:press/{version}").json
    assert [t["name"] for t in down["things"] if t["kind"] == "release"] == ["press@1"]
    assert list((controller.ctx.folder / "uploads").iterdir()) == []
    controller.sign_in()
    for page in ("releases/press@1", "runs/press@1", f"lineage?thing=mlflow:press/{version}"):
        assert f"press/{version}" in controller.client.get(
            f"/{page}", base_url="https://localhost"
        ).get_data(as_text=True), page


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no ONNX flavour": ({"flavours": PYTHON_ONLY}, "no ONNX flavour, only: python_function"),
    "a tensor of another name": ({"inputs": X.replace('"x"', '"rows"')}, "input 'rows'"),
    "no weights beside it": ({"files": {"model.onnx": in_two_files()["model.onnx"]}}, "no file w"),
    "no model": ({"files": {"other": b""}}, "no file model.onnx"),
    "no ONNX at all": ({"files": {"model.onnx": b"GIF89a" * 99}}, "is not an ONNX"),
    "artifacts elsewhere": ({"source": "s3://bucket/model"}, "which MLflow does not serve"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_version_that_cannot_be_imported_is_refused_with_what_to_do(
    controller: ControllerApp, mlflow: MlflowServer, what: str
) -> None:
    given, words = UNUSABLE[what]
    version = mlflow.register("odd", **given)
    before = len(operations.list_operations(controller.ctx))
    answer = imported(controller, "odd", f"mlflow:odd/{version}")
    assert is_problem(answer, 422, "unusable-model")
    assert words in answer.json["detail"]
    assert answer.json["hint"]
    assert len(operations.list_operations(controller.ctx)) == before


@pytest.mark.parametrize("source", ["mlflow:nothing/1", "mlflow:odd@nobody"])
def test_a_version_or_alias_that_is_not_there_is_named(
    controller: ControllerApp, source: str
) -> None:
    answer = imported(controller, "odd", source)
    assert is_problem(answer, 404)
    assert source in answer.json["detail"]


def test_without_a_server_or_with_one_that_is_down_the_setting_is_named(
    controller: ControllerApp, tmp_path: Path
) -> None:
    for url, status in (("", 422), ("http://127.0.0.1:1", 503)):
        settings = msgspec.structs.replace(controller.ctx.settings, mlflow=Mlflow(url=url))
        app = create_app(controller.ctx._replace(settings=settings))
        answer = app.test_client().post(
            "/api/v1/models/odd/import-mlflow",
            json={"source": "mlflow:odd/1", "task": "tensors"},
            headers=controller.bearer("operator"),
        )
        assert is_problem(answer, status)
        assert "[mlflow]" in answer.json["hint"]
