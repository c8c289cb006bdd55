"""`shoal run`: runs are listed, shown, compared and tagged."""

from sqlalchemy import insert

from cli.conftest import Cli, Controller
from shoal.controller.store.run_tables import run_value
from shoal.controller.store.tables import operation


def test_runs_are_listed_compared_and_tagged(shoal: Cli, controller: Controller) -> None:
    row = {
        "kind": "train", "state": "succeeded", "subject": "runs-of-cli", "created_by": "ana",
        "params": {"dataset": "parts@1", "estimator": "mlp"}, "result": {}, "started_at": 5.0,
        "finished_at": 8.5,
    }  # fmt: skip
    values = [("op-a", "metric", "rmse", 0.5), ("op-b", "metric", "rmse", 0.25)]
    values += [("op-a", "param", "alpha", 0.1), ("op-b", "param", "alpha", 0.2)]
    with controller.ctx.store.write() as db:
        db.execute(
            insert(operation), [row | {"id": i, "created_at": 5.0} for i in ("op-a", "op-b")]
        )
        db.execute(
            insert(run_value),
            [dict(zip(("run", "kind", "name", "number"), one, strict=True)) for one in values],
        )
    listed = shoal.json("run", "list", "--model", "runs-of-cli", "--sort", "rmse")
    assert [one["id"] for one in listed] == ["op-b", "op-a"], "less of an error is better"
    shown = shoal(
        "run", "list", "--where", "rmse < 0.3", "--where", "params.alpha = 0.2", "--sort", "rmse"
    )
    assert "op-b" in shown.stdout
    assert "rmse 0.25" in shown.stdout
    assert "op-a" not in shown.stdout
    side = shoal("run", "compare", "op-a", "op-b")
    assert "0.25 *" in side.stdout
    assert "alpha" in side.stdout
    assert shoal("run", "tag", "op-a", "team=vision", "--note", "first").exit_code == 0
    assert shoal.json("run", "show", "op-a")["tags"] == {"team": "vision"}
    assert "team=vision" in shoal("run", "show", "op-a").stdout
    assert shoal.json("run", "tag", "op-a", "--remove", "team")["tags"] == {}
    wrong = shoal("run", "tag", "op-a", "team")
    assert wrong.exit_code != 0
    assert "NAME=VALUE" in wrong.output
    assert shoal("run", "list", "--where", "rmse <").exit_code != 0
