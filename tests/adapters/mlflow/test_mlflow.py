"""A real MLflow server: models become releases, runs are mirrored, aliases start rollouts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, update

from api.controller_app import ControllerApp, is_problem, make_template
from controllers import run
from mlflow_server import PYTHON_ONLY, MlflowServer, X, in_two_files
from shoal.controller.app import create_app
from shoal.controller.host.settings import Mlflow
from shoal.controller.mlflow.following import Follower
from shoal.controller.mlflow.io.server import Server
from shoal.controller.mlflow.mirror import Mirror
from shoal.controller.operations import operations
from shoal.controller.rollouts import rollouts, stepper
from shoal.controller.runs import recording
from shoal.controller.store import changes
from shoal.controller.store.mlflow_tables import mlflow_run, mlflow_version
from shoal.controller.store.tables import device, operation
from shoal.controller.training.io import inspection

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


# ---- runs


def a_run(controller: ControllerApp, ident: str, **more: Any) -> None:
    """A run of Shoal that has ended, as its operation leaves it."""
    values = {
        "id": ident, "kind": "train", "state": "succeeded", "progress": 1.0, "subject": "mirrored",
        "created_at": 5.0, "started_at": 6.0, "finished_at": 9.0, "created_by": "ana",
        "params": {"dataset": "parts@1", "estimator": "mlp", "revision": "8c1f2ab9"}, "result": {},
    } | more  # fmt: skip
    ctx = controller.ctx
    with ctx.store.write() as db:
        db.execute(insert(operation).values(values))
        recording.record(
            db, ident, main="accuracy", metrics={"accuracy": 0.9}, params={"alpha": 0.1},
            curves={"loss": [3.0, 2.0, 1.0]},
        )  # fmt: skip
        changes.note(db, ctx, "operation", ident)


def copies(mlflow: MlflowServer, ident: str) -> list[Any]:
    """The runs in MLflow that are copies of one."""
    experiment = mlflow.get("experiments/get-by-name", experiment_name="shoal")["experiment"]
    found = mlflow.post(
        "runs/search", experiment_ids=[experiment["experiment_id"]],
        filter=f"tags.`shoal.run` = '{ident}'",
    )  # fmt: skip
    return list(found.get("runs", []))


def test_runs_are_mirrored_with_steps_once_whatever_ends_in_between(
    controller: ControllerApp, mlflow: MlflowServer
) -> None:
    ctx = controller.ctx
    a_run(controller, "op-mirrored")
    a_run(controller, "op-goes-on", state="running", progress=0.4, finished_at=0.0)
    down = Mirror(ctx, Server(Mlflow(url="http://127.0.0.1:1"), ctx.folder))
    assert down.step() == 0
    waits = controller.get("/api/v1/mlflow").json["runs"]
    assert waits["waiting"] >= 2
    assert "127.0.0.1:1" in waits["error"]
    server = Server(ctx.settings.mlflow, ctx.folder)
    mirror = Mirror(ctx, server)
    while mirror.step():
        pass
    [copy] = copies(mlflow, "op-mirrored")
    assert copy["info"]["status"] == "FINISHED"
    assert {one["key"]: one["value"] for one in copy["data"]["params"]} == {"alpha": "0.1"}
    tags = {one["key"]: one["value"] for one in copy["data"]["tags"]}
    assert tags["mlflow.source.git.commit"] == "8c1f2ab9"
    assert tags["shoal.url"].endswith("/runs/op-mirrored")
    history = mlflow.get("metrics/get-history", run_id=copy["info"]["run_id"], metric_key="loss")
    assert [(m["step"], m["value"]) for m in history["metrics"]] == [(0, 3), (1, 2), (2, 1)]
    [open_one] = copies(mlflow, "op-goes-on")
    assert open_one["info"]["status"] == "RUNNING"
    with ctx.store.write() as db:  # the power failed before the id of the copy was written down
        db.execute(update(mlflow_run).values(remote="", due_at=1.0))
    recording.annotate(ctx, actor="ana", ident="op-mirrored", tags={"team": "vision"}, note=None)
    again = Mirror(ctx, server)
    while again.step():
        pass
    [copy] = copies(mlflow, "op-mirrored")
    assert {"key": "team", "value": "vision"} in copy["data"]["tags"]
    history = mlflow.get("metrics/get-history", run_id=copy["info"]["run_id"], metric_key="loss")
    assert len(history["metrics"]) == 3, "nothing is logged twice"
    state = controller.get("/api/v1/mlflow").json["runs"]
    assert (state["waiting"], state["error"]) == (0, "")
    assert again.step() == 0


# ---- aliases


def outcome(mlflow: MlflowServer, name: str, version: str) -> dict[str, str]:
    found = mlflow.get("model-versions/get", name=name, version=version)["model_version"]
    return {one["key"]: one["value"] for one in found.get("tags", [])}


def test_an_alias_that_moves_starts_one_signed_rollout_and_its_version_is_tagged(
    controller: ControllerApp, mlflow: MlflowServer
) -> None:
    ctx = controller.ctx
    row = {
        "name": "cam-1", "site": "north", "labels": {}, "ring": "stable", "profile": "generic",
        "state": "enrolled", "enrolled_at": 1.0, "releases": {}, "variants": {}, "facts": {},
    }  # fmt: skip
    with ctx.store.write() as db:
        db.execute(insert(device).values(**row))
    mlflow.point("pump", "prod", old := mlflow.register("pump"))
    rule = {
        "alias": "pump@prod", "model": "pumps", "task": "tensors",
        "plan": {"stages": [{"name": "everyone"}]},
    }  # fmt: skip
    assert is_problem(controller.post("/api/v1/mlflow/follows", "operator", json=rule), 403)
    made = controller.post("/api/v1/mlflow/follows", "approver", json=rule)
    assert made.status_code == 201, made.json
    server = Server(ctx.settings.mlflow, ctx.folder)

    def step() -> Any:
        """One step of an engine that has just been restarted; the versions then."""
        Follower(ctx, server, inspection.read_facts).step()
        return controller.get("/api/v1/mlflow").json["versions"]

    assert step() == [], "what it names already is not rolled out"
    mlflow.point("pump", "prod", version := mlflow.register("pump"))
    [one] = step()
    assert (one["state"], one["version"]) == ("IMPORTING", int(version))
    with ctx.store.write() as db:  # the power failed before the import was written down
        db.execute(update(mlflow_version).values(state="SEEN", operation=""))
    [again] = step()
    assert again["operation"] == one["operation"]
    run(ctx, operations.get_operation(ctx, one["operation"]))
    [one] = step()
    assert (one["state"], one["release"]) == ("ROLLING_OUT", "pumps@1"), one["reason"]
    with ctx.store.write() as db:
        db.execute(update(mlflow_version).values(state="STARTING", rollout=""))
    assert step()[0]["rollout"] == one["rollout"]
    assert len(controller.get("/api/v1/rollouts?release=pumps@1").json["items"]) == 1
    assert controller.get("/api/v1/releases/pumps@1").json["state"] == "released"
    assert outcome(mlflow, "pump", version)["shoal.state"] == "ROLLING_OUT"
    rollouts.abort(ctx, actor="ana", id=one["rollout"])
    stepper.step_all(ctx)
    [one] = step()
    step()
    tags = outcome(mlflow, "pump", version)
    assert (tags["shoal.state"], tags["shoal.release"]) == ("STOPPED", "pumps@1")
    assert tags["shoal.rollout"] == one["rollout"]
    assert "aborted by ana" in tags["shoal.reason"]
    mlflow.point("pump", "prod", other := mlflow.register("pump", flavours=PYTHON_ONLY))
    assert step()[0]["state"] == "FAILED"
    step()
    assert "no ONNX flavour" in outcome(mlflow, "pump", other)["shoal.reason"]
    mlflow.point("pump", "prod", version)
    assert len(step()) == 2, "a version is dealt with once"
    controller.sign_in()
    page = controller.client.get("/settings", base_url="https://localhost").get_data(as_text=True)
    assert "pump@prod" in page
    assert old not in outcome(mlflow, "pump", old)
    answer = controller.request("DELETE", "/api/v1/mlflow/follows/pump@prod", "approver")
    assert answer.status_code == 204
