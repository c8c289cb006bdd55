"""What the CLI does, against the real API on a real store."""

from pathlib import Path

import click
import msgspec
import pytest

import onnx_files
from cli.conftest import Cli
from shoal.agent.identity.io.enrol import EnrolOptions, enrol
from shoal.cli.__main__ import cli
from shoal.cli.plan_options import stages
from shoal.controller.rollouts.records import StagePlan
from shoal.controller.store.tables import device

JSON_COLUMNS = ("labels", "releases", "variants", "facts")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        deeper = isinstance(command, click.Group)
        found += commands(command, (*path, name)) if deeper else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_every_command_teaches_with_an_example_and_takes_json(
    path: tuple[str, ...], stranger: Cli
) -> None:
    text = stranger(*path, "--help").stdout
    assert f"shoal {' '.join(path)}" in text.split("Example")[1]
    assert "--json" in text


def test_a_join_token_comes_with_the_line_to_type_on_the_device(shoal: Cli) -> None:
    made = shoal.json("device", "token", "--site", "north", "--ring", "canary", "--ttl", "1h")
    assert made["secret"].startswith("sj1.")
    assert made["secret"].endswith(shoal.controller.fingerprint)
    assert f"--controller {shoal.controller.url}" in made["command"]
    assert "--ring canary" in made["command"]
    assert "shoal-agent enroll" in shoal("device", "token", "--site", "north").stdout


def test_devices_are_listed_by_the_end_of_their_certificate(shoal: Cli) -> None:
    with shoal.controller.ctx.store.write() as db:
        for name, days in (("late", -10), ("soon", 10), ("fine", 80)):
            ends = shoal.controller.ctx.clock() + days * 86_400
            row = {"name": name, "state": "enrolled", "certificate_expires_at": ends}
            db.execute(device.insert().values(row | {k: {} for k in JSON_COLUMNS}))
    found = [one["name"] for one in shoal.json("device", "list", "--expiring")]
    assert found == ["late", "soon"]
    assert [one["name"] for one in shoal.json("device", "list", "--expiring", "1h")] == ["late"]
    assert "ended 10 d ago" in shoal("device", "list", "--expiring").stdout


def test_the_same_table_again_is_the_same_version(shoal: Cli, parts: Path) -> None:
    add = ("dataset", "add", str(parts), "--name", "same", "--label", "defect", "--site", "plant")
    first, again = shoal.json(*add), shoal.json(*add)
    assert (first["version"], again["version"]) == (1, 1)
    assert first["sites"] == {"n": 80, "s": 40}
    assert "defect" in shoal("dataset", "show", "same").stdout


def test_a_table_without_the_label_is_refused_by_name(shoal: Cli, parts: Path) -> None:
    result = shoal("dataset", "add", str(parts), "--name", "bad", "--label", "colour")
    assert result.exit_code == 2
    assert "colour" in result.stderr


def test_a_model_goes_from_table_to_signed_release(shoal: Cli, parts: Path) -> None:
    shoal.json(
        "dataset", "add", str(parts), "--name", "whole", "--label", "defect", "--site", "plant"
    )
    started = shoal.json(
        "model", "train", "defects", "--dataset", "whole", "--estimator", "logistic", "--no-wait",
        "--param", "max_iter=50", "--param", "scaler=minmax",
    )  # fmt: skip
    assert started["state"] == "queued"
    shoal.work(started["id"])
    ended = shoal.json("operation", "watch", started["id"])
    assert ended["result"] == {"release": "defects@1"}
    assert "validated" in shoal("release", "show", "defects@1").stdout
    published = shoal.json("release", "publish", "defects@1")
    assert [s["role"] for s in published["signatures"]] == ["release"]
    released = {model["name"]: model["released"] for model in shoal.json("model", "list")}
    assert released["defects"] == "defects@1"
    policy = shoal.json("model", "policy", "defects", "--retrain-on-drift", "--dataset", "whole")
    assert (policy["retrain_on_drift"], policy["dataset"]) == (True, "whole")
    assert "when it drifts" in shoal("model", "policy", "defects").stdout


def test_an_operation_that_is_canceled_ends_the_wait_with_exit_code_1(
    shoal: Cli, parts: Path
) -> None:
    add = ("dataset", "add", str(parts), "--name", "given-up", "--label", "defect")
    shoal.json(*add, "--site", "plant")
    started = shoal.json("model", "train", "given-up", "--dataset", "given-up", "--no-wait")
    ended = shoal.json("operation", "cancel", started["id"])
    assert (ended["state"], ended["canceled_by"]) == ("canceled", "admin")
    result = shoal("operation", "watch", started["id"])
    assert result.exit_code == 1
    assert "canceled by admin" in result.stderr
    assert shoal("operation", "cancel", started["id"]).exit_code == 5


def test_an_operation_that_fails_ends_the_wait_with_exit_code_1(
    shoal: Cli, parts: Path, tmp_path: Path
) -> None:
    shoal.json(
        "dataset", "add", str(parts), "--name", "fails", "--label", "defect", "--site", "plant"
    )
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(onnx_files.linear(width=5))
    args = ("model", "import", "broken", str(bad), "--dataset", "fails", "--no-wait")
    started = shoal.json(*args)
    shoal.work(started["id"])
    result = shoal("operation", "watch", started["id"])
    assert result.exit_code == 1
    assert "the dataset has 2 features" in result.stderr


def test_a_wait_that_is_too_long_ends_with_exit_code_7(shoal: Cli, parts: Path) -> None:
    shoal.json(
        "dataset", "add", str(parts), "--name", "late", "--label", "defect", "--site", "plant"
    )
    args = ("model", "train", "late", "--dataset", "late", "--timeout", "0.5")
    result = shoal(*args)
    assert result.exit_code == 7
    assert "it continues" in result.stderr


def test_without_canary_devices_a_rollout_has_one_stage_and_reports_it(
    shoal: Cli, parts: Path, tmp_path: Path
) -> None:
    token = shoal.json("device", "token", "--site", "north")["secret"]
    for other in shoal.json("device", "list"):  # of other tests at this controller
        shoal("device", "decommission", other["name"], "--yes")
    wish = EnrolOptions(controller=shoal.controller.url, token=token, name="north-1")
    enrol(tmp_path / "device", wish, {"arch": "x86_64", "flags": ["avx2"]})
    profiles = {one["name"]: one["profile"] for one in shoal.json("device", "list")}
    assert profiles["north-1"] == "x86-avx2"
    shoal.json("dataset", "add", str(parts), "--name", "go", "--label", "defect", "--site", "plant")
    asked = ("model", "train", "go", "--dataset", "go", "--estimator", "logistic", "--no-wait")
    started = shoal.json(*asked)
    shoal.work(started["id"])
    shoal.json("release", "publish", "go@1")
    result = shoal("rollout", "start", "go@1")
    assert result.exit_code == 0, result.output
    assert "no device is in the canary ring" in result.stderr
    found = shoal.json("rollout", "list")[0]
    assert [stage["name"] for stage in found["stages"]] == ["everyone"]
    whole = shoal.json("rollout", "show", found["id"])
    assert {"rollout", "devices", "failures", "evidence"} == set(whole)
    late = shoal("rollout", "watch", found["id"], "--timeout", "0.5")
    assert late.exit_code == 7
    assert "everyone RUNNING, 0 of 1 succeeded" in late.stderr
    assert f"shoal rollout watch {found['id']}" in late.stderr
    unasked = shoal("rollout", "abort", found["id"], given="")
    assert unasked.exit_code == 1
    assert "nothing was done" in unasked.stderr
    assert "--yes" in unasked.stderr
    assert shoal("rollout", "abort", found["id"], "--yes").exit_code == 0
    assert shoal("rollout", "resume", found["id"]).exit_code == 5
    assert shoal("device", "decommission", "north-1", "--yes").exit_code == 0
    assert "decommissioned" in shoal("device", "show", "north-1").stdout


def test_a_stage_may_name_how_often_a_release_may_answer_otherwise() -> None:
    (stage,) = stages(("canary:ring=canary,disagree=5",))
    assert stage == {"name": "canary", "select": {"ring": "canary"}, "max_disagree_pct": 5.0}
    assert msgspec.convert(stage, StagePlan).max_disagree_pct == 5.0
