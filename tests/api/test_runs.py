"""Runs by API and console: what a training leaves, and pages, searches and comparisons of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from api.controller_app import ORIGIN, ControllerApp, is_problem
from controllers import add_digits, run
from shoal.controller.runs import recording
from shoal.controller.store.run_tables import run_value
from shoal.controller.store.tables import operation
from shoal.controller.training import training

MANY = 1_200


@pytest.fixture(scope="module")
def trained(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ControllerApp, str, str]]:
    """A controller, and two runs: a network with a curve, and a linear model."""
    made = ControllerApp(template, tmp_path_factory.mktemp("runs") / "controller")
    add_digits(made.ctx)
    network = {"hidden": [8], "max_iter": 12, "seed": 3}
    jobs = [
        {"params": network, "revision": "8c1f2ab"},
        {"params": {"strength": 0.5}, "estimator": "logistic"},
    ]
    idents = []
    for job in jobs:
        started = training.start_training(
            made.ctx, actor="ana", model="digits", dataset="stations", **job
        )
        idents.append(run(made.ctx, started).id)
        made.clock.now += 60
    yield made, idents[0], idents[1]
    made.ctx.store.close()


def test_a_run_holds_what_went_in_and_what_came_out(
    trained: tuple[ControllerApp, str, str],
) -> None:
    controller, first, _ = trained
    found = controller.get(f"/api/v1/runs/{first}", "viewer").json
    assert (found["model"], found["state"], found["release"]) == ("digits", "succeeded", "digits@1")
    assert (found["seed"], found["revision"], found["main"]) == (3, "8c1f2ab", "balanced_accuracy")
    assert found["dataset"] == "stations@1"
    assert len(found["dataset_sha256"]) == 64
    assert found["params"]["hidden"] == "8"
    assert found["params"]["holdout"] == 0.25, "defaults are parameters too"
    release = controller.get("/api/v1/releases/digits@1").json
    assert found["metrics"] == pytest.approx(release["metrics"])
    assert len(found["curves"]["loss"]) == 12
    assert found["curves"]["loss"][-1] < found["curves"]["loss"][0]
    assert {"python", "onnxruntime", "scikit-learn", "machine"} <= found["environment"].keys()
    assert {"fp32.onnx", "card.md"} <= {one["name"] for one in found["artifacts"]}
    assert controller.get("/api/v1/runs/digits@1").json["id"] == first


def test_runs_are_found_sorted_and_compared(trained: tuple[ControllerApp, str, str]) -> None:
    controller, first, second = trained

    def ids(query: str) -> list[str]:
        answer = controller.get(f"/api/v1/runs?{query}")
        assert answer.status_code == 200, answer.json
        return [one["id"] for one in answer.json["items"]]

    assert ids("") == [second, first]
    assert ids("q=params.hidden = 8 and seed = 3") == []
    assert ids("q=params.hidden = 8 and params.seed = 3") == [first]
    assert ids("q=params.strength < 1&dataset=stations") == [second]
    assert ids("dataset=stations@1") == [second, first]
    assert ids("dataset=station") == []
    both = controller.get("/api/v1/runs?sort=accuracy").json["items"]
    scores = [one["metrics"]["accuracy"] for one in both]
    assert scores == sorted(scores, reverse=True)
    assert ids("sort=site_gap&order=desc") == ids("sort=site_gap")[::-1]
    best = ids("model=digits&sort=best")
    assert best == [
        one["id"] for one in controller.get("/api/v1/runs?sort=balanced_accuracy").json["items"]
    ]
    side = controller.get(f"/api/v1/runs/compare?runs={first},digits@2").json
    assert [one["id"] for one in side["runs"]] == [first, second]
    [accuracy] = [one for one in side["metrics"] if one["name"] == "balanced_accuracy"]
    assert side["runs"][accuracy["best"]]["id"] == best[0]
    assert {one["name"] for one in side["params"] if one["differs"]} >= {"hidden", "strength"}
    for query in ("sort=best", "q=accuracy", "order=up", "sort=;", "cursor=x"):
        assert controller.get(f"/api/v1/runs?{query}").status_code in (400, 422), query
    assert is_problem(controller.get(f"/api/v1/runs/compare?runs={first}"), 422)
    assert is_problem(controller.get("/api/v1/runs/op-nothing"), 404, "not-found")


def test_tags_and_a_note_are_set_searched_and_removed(
    trained: tuple[ControllerApp, str, str],
) -> None:
    controller, first, _ = trained
    at = f"/api/v1/runs/{first}/annotate"
    body = {"tags": {"team": "vision", "budget": "12.5"}, "note": "lamp was new"}
    assert controller.post(at, "viewer", json=body).status_code == 403
    assert controller.post(at, "operator", json=body).json["tags"] == body["tags"]
    for query in ("tags.team = vision", "tags.budget > 12", "tags.budget = 12.5"):
        [one] = controller.get(f"/api/v1/runs?q={query}").json["items"]
        assert (one["id"], one["note"]) == (first, "lamp was new")
    after = controller.post(at, "operator", json={"tags": {"team": None}}).json
    assert (after["tags"], after["note"]) == ({"budget": "12.5"}, "lamp was new")
    assert is_problem(controller.post(at, json={"tags": {"": "x"}}), 422)
    assert is_problem(controller.post(at, json={"note": "x" * 20_000}), 422)


def test_the_console_lists_shows_compares_and_annotates(
    trained: tuple[ControllerApp, str, str],
) -> None:
    controller, first, second = trained
    controller.sign_in()

    def page(path: str) -> str:
        answer = controller.client.get(path, base_url=ORIGIN)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return str(answer.get_data(as_text=True))

    shown = page("/runs?model=digits&sort=best")
    assert first in shown
    assert second in shown
    assert "digits@2" in shown
    assert "No run fits" in page("/runs?q=accuracy > 2")
    side = page(f"/runs/compare?run={first}&run={second}")
    assert "strength" in side
    assert "best</span>" in side
    assert "scikit-learn" not in side, "it is the same in both"
    assert "scikit-learn" in page(f"/runs/compare?run={first}&run={second}&all=true")
    assert "Learning curves" in side
    headers = {"Sec-Fetch-Site": "same-origin"}
    form = {"tags": "line = 3\n", "note": "kept"}
    path = f"/runs/{first}/annotate"
    answer = controller.client.post(path, data=form, base_url=ORIGIN, headers=headers)
    assert answer.status_code == 303
    assert controller.get(f"/api/v1/runs/{first}").json["tags"] == {"line": "3"}
    assert "line=3" in page(f"/runs/{first}")


def test_a_failed_run_keeps_its_parameters_and_environment(controller: ControllerApp) -> None:
    add_digits(controller.ctx)
    started = training.start_training(
        controller.ctx, actor="ana", model="digits", dataset="stations", params={"alpha": 0.5}
    )
    controller.ctx.blobs.remove(controller.get("/api/v1/datasets/stations@1").json["sha256"])
    assert run(controller.ctx, started).state == "failed"
    found = controller.get(f"/api/v1/runs/{started.id}").json
    assert (found["params"], found["release"]) == ({"alpha": 0.5}, "")
    assert found["environment"]["python"]
    assert found["error"]


def test_every_page_of_many_runs_is_as_sql_would_list_them(controller: ControllerApp) -> None:
    rows = [
        {
            "id": f"op-{i:012x}", "kind": "train", "state": "succeeded", "subject": f"m{i % 3}",
            "created_at": float(i // 2), "created_by": "ana", "params": {"dataset": f"d@{i % 7}"},
            "result": {},
        }
        for i in range(MANY)
    ]  # fmt: skip
    scores = [
        {"run": row["id"], "kind": "metric", "name": "rmse", "number": float(i % 50), "value": ""}
        for i, row in enumerate(rows)
    ]
    with controller.ctx.store.write() as db:
        db.execute(insert(operation), rows)
        db.execute(insert(operation).values(**rows[0] | {"id": "op-x", "kind": "federate"}))
        db.execute(insert(run_value), scores)
    for query in ("", "sort=rmse&model=m1", "q=rmse >= 25&dataset=d@3", "sort=rmse&order=desc"):
        seen: list[dict] = []
        cursor = ""
        while True:
            found = controller.get(f"/api/v1/runs?{query}&limit=400&cursor={cursor}").json
            seen += found["items"]
            cursor = found["page"]["next"]
            if not cursor:
                break
        assert len({one["id"] for one in seen}) == len(seen) == found["page"]["total"]
        values = [one["metrics"]["rmse"] for one in seen]
        if "sort" in query:
            assert values == sorted(values, reverse="desc" in query), "less of an error is better"
        if "dataset" in query:
            assert all(
                v >= 25 and one["dataset"] == "d@3" for v, one in zip(values, seen, strict=True)
            )


def test_long_curves_are_thinned_and_what_is_not_finite_is_left_out() -> None:
    points = recording._thinned([float("nan"), *map(float, range(10_001))])
    assert len(points) == recording.POINTS
    assert (points[0], points[-1]) == (0.0, 10_000.0)
