"""`shoal round`, against the real API on a real store; the preparing is real, no engine runs."""

import hashlib
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import numpy as np
import onnxruntime
import pytest

from cli.conftest import Cli
from recorded_rounds import DEVICES, REFUSED, UPDATED, add_round
from shoal.cli import round as round_cli
from shoal.controller.federated.planning import plans, scheduling, tasks
from shoal.controller.federated.records import TaskPlan
from shoal.controller.federated.rounds import rounds
from shoal.params import spec_of


@pytest.fixture
def release(shoal: Cli, parts: Path) -> str:
    """A release of a model of its own."""
    if not any(one["model"] == "seams" for one in shoal.json("release", "list")):
        add = ("dataset", "add", str(parts), "--name", "seams", "--label", "defect")
        shoal.json(*add, "--site", "plant")
        asked = ("model", "train", "seams", "--dataset", "seams", "--estimator", "mlp")
        shoal.work(shoal.json(*asked, "--param", "max_iter=20", "--no-wait")["id"])
    return "seams@1"


def plan(shoal: Cli, name: str, *more: str) -> dict:
    asked = ("round", "plan", name, "--goal", "3", "--least", "2", "--lr", "0.1", "--no-wait")
    return shoal.json(*asked, *more)


def test_a_task_is_planned_prepared_and_started(shoal: Cli, release: str) -> None:
    planned = plan(shoal, "first", "--release", release, "--compression", "int8")
    assert planned["state"] == "preparing"
    early = shoal("round", "start", "first")
    assert early.exit_code == 5
    assert "shoal operation show" in early.stderr

    shoal.work(planned["operation"])
    found = shoal.json("round", "show", "first")["task"]
    assert found["state"] == "ready"
    assert found["prepared"]["labels"]
    assert found["plan"]["compression"]["kind"] == "int8"

    started = shoal.json("round", "start", "first", "--rounds", "5")
    assert (started["state"], started["asked"]) == ("running", 5)
    late = shoal("round", "watch", "first", "--timeout", "0.5")
    assert late.exit_code == 7
    assert "shoal round watch first" in late.stderr
    refused = shoal("round", "abort", "first", given="n\n")
    assert refused.exit_code == 1
    assert "nothing was done" in refused.stderr
    assert "Aborted" not in refused.stderr, "that would be taken for the round"
    assert shoal.json("round", "show", "first")["task"]["state"] == "running"
    ended = shoal.json("round", "abort", "first", "--yes")
    assert (ended["state"], ended["reason"]) == ("stopped", "aborted by admin")
    watched = shoal("round", "watch", "first")
    assert watched.exit_code == 1
    assert "shoal round show first" in watched.stderr
    assert "first" in shoal("round", "tasks").stdout
    assert "first" not in shoal("round", "list").stdout, "none of its rounds was held"


def test_what_devices_train_with_computes_a_step(shoal: Cli, release: str) -> None:
    shoal.work(plan(shoal, "step", "--release", release)["operation"])
    made = shoal.json("round", "show", "step")["task"]["prepared"]
    blobs = shoal.controller.ctx.blobs
    session = onnxruntime.InferenceSession(blobs.read(made["graph"]))
    spec = spec_of(session.get_modelmeta().custom_metadata_map)
    theta = np.frombuffer(blobs.read(made["theta"]), "<f4")
    assert spec.size == theta.size == made["size"]
    feed = {"theta": theta, "x": np.ones((2, len(made["features"])), np.float32)}
    after, loss = session.run(
        ["theta_out", "loss"], feed | {"y": np.array([0, 1]), **spec.scalars(0.1, 1)}
    )
    assert np.isfinite(loss)
    assert (after != theta).any()


def test_a_task_names_its_graphs_by_the_hashes_that_devices_pin(shoal: Cli, release: str) -> None:
    planned = plan(shoal, "pinned", "--release", release)
    assert "train graph" not in shoal("round", "show", "pinned").stdout, "before it is made"
    shoal.work(planned["operation"])
    made = shoal.json("round", "show", "pinned")["task"]["prepared"]
    shown = " ".join(shoal("round", "show", "pinned").stdout.replace("│", " ").split())
    assert f"train graph {made['graph']}" in shown
    assert f"loss graph {made['loss_graph']}" in shown
    blobs, pins = shoal.controller.ctx.blobs, [made["graph"], made["loss_graph"]]
    assert [hashlib.sha256(blobs.read(sha256)).hexdigest() for sha256 in pins] == pins


def test_a_round_lists_the_devices_that_refused_its_graph(shoal: Cli, release: str) -> None:
    shoal.work(plan(shoal, "unlisted", "--release", release)["operation"])
    asked = rounds.get_task(shoal.controller.ctx, "unlisted").plan
    marks = dict.fromkeys(DEVICES, UPDATED) | {"mill-1": REFUSED}
    add_round(shoal.controller.ctx, asked, 1, np.zeros(3, np.float32), marks=marks,
              refusal="unknown-graph")  # fmt: skip
    shown = shoal("round", "show", "unlisted.1").stdout.splitlines()
    assert ["unknown-graph" in line for line in shown if "mill-1" in line] == [True]
    assert "unknown-graph=1" in shoal("round", "list", "unlisted").stdout


def test_drift_can_request_rounds_of_a_task_and_no_more(shoal: Cli, release: str) -> None:
    plan(shoal, "on-drift", "--release", release)
    asked = ("model", "policy", "seams")
    told = shoal.json(*asked, "--task", "on-drift", "--rounds", "20", "--cooldown", "12h")
    assert (told["task"], told["rounds"], told["cooldown_s"]) == ("on-drift", 20, 43_200.0)
    shown = " ".join(shoal(*asked).stdout.split())
    assert shown.startswith("20 rounds of on-drift are run when seams drifts, every 12 h at most")
    assert shoal.json(*asked, "--cooldown", "1h")["task"] == "on-drift"
    assert shoal(*asked, "--task", "nobody").exit_code == 4
    assert shoal.json(*asked, "--task", "")["task"] == ""
    assert "manually only" in shoal(*asked).stdout


def test_a_task_may_begin_with_a_dataset_that_is_trained_on_first(shoal: Cli, parts: Path) -> None:
    add = ("dataset", "add", str(parts), "--name", "welds", "--label", "defect", "--site", "plant")
    shoal.json(*add)
    planned = plan(shoal, "welds", "--dataset", "welds", "--model", "welds")
    shoal.work(planned["operation"])
    found = shoal.json("round", "show", "welds")["task"]
    assert (found["state"], found["release"], found["model"]) == ("ready", "welds@1", "welds")
    assert shoal.json("operation", "show", planned["operation"])["result"]["task"] == "welds"


def test_a_model_that_cannot_be_trained_fails_the_task_with_a_hint(shoal: Cli, parts: Path) -> None:
    shoal.json("dataset", "add", str(parts), "--name", "trees", "--label", "defect",
               "--site", "plant")  # fmt: skip
    asked = ("model", "train", "trees", "--dataset", "trees", "--estimator", "random-forest")
    shoal.work(shoal.json(*asked, "--param", "trees=3", "--no-wait")["id"])
    planned = plan(shoal, "trees", "--release", "trees@1")
    shoal.work(planned["operation"])
    tasks.sweep(shoal.controller.ctx)
    found = shoal.json("round", "show", "trees")["task"]
    assert found["state"] == "failed"
    assert "train mlp or logistic instead" in found["reason"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            (
                "--strategy",
                "krum",
                "--set",
                "malicious=1",
                "--secure",
                "--goal",
                "9",
                "--least",
                "7",
            ),
            "compares",
        ),
        (("--secure", "--compression", "int8", "--least", "3"), "cannot be made smaller"),
        (("--strategy", "best"), "no strategy 'best'"),
        (("--privacy", "where=central,clip=1,noise=1"), "set most_examples to 1"),
        (("--privacy", "where=distributed,clip=1,noise=1", "--set", "most_examples=1"), "secure"),
        (("--budget", "3"), "no noise"),
        (("--set", "speed"), "KEY=VALUE"),
        (("--privacy", "where=everywhere,clip=1,noise=1"), "everywhere"),
        (
            ("--privacy", "where=local,klip=1,noise=1"),
            "unknown field 'klip'; there are: where, clip",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_reason(
    shoal: Cli, release: str, more: tuple[str, ...], said: str
) -> None:
    asked = ("round", "plan", "odd", "--release", release, "--goal", "3", "--least", "2")
    result = shoal(*asked, "--lr", "0.1", *more)
    assert result.exit_code in (2, 5), result.output
    assert said in result.stderr
    assert shoal("round", "show", "odd").exit_code == 4


def test_a_plan_may_come_from_a_file_and_options_win(
    shoal: Cli, release: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        f'release = "{release}"\nevaluate = 5\n[learning]\nlr = 0.5\nepochs = 4\n'
        '[pace]\ngoal = 8\nleast = 4\n[demands]\nsites = ["north"]\n'
    )
    planned = plan(shoal, "filed", "--file", str(path))["plan"]
    assert planned["learning"] | {"lr": 0.1, "epochs": 4} == planned["learning"]
    assert (planned["evaluate"], planned["pace"]["goal"]) == (5, 3)
    assert planned["demands"]["sites"] == ["north"]
    path.write_text("evaluation = 5\n")
    result = shoal("round", "plan", "misspelt", "--file", str(path), "--release", release)
    assert result.exit_code == 2
    assert "evaluation" in result.stderr or "learning" in result.stderr


def test_the_hint_of_an_empty_list_of_tasks_can_be_copied(shoal: Cli, release: str) -> None:
    asked = ("--release", release, "--goal", "10", "--least", "5", "--no-wait")
    planned = shoal.json("round", "plan", "copied", *asked)
    assert planned["plan"]["learning"]["lr"] == 0.05
    without = shoal("round", "plan", "nobody", "--release", release)
    assert "--goal and --least" in without.stderr
    named = shoal("round", "plan", "No_Name", "--release", release, "--goal", "3", "--least", "3")
    assert (named.exit_code, "lower-case letters" in named.stderr) == (2, True)


def test_a_sum_smaller_than_devices_join_is_warned_of(shoal: Cli, release: str) -> None:
    asked = ("round", "plan", "pair", "--release", release, "--goal", "3", "--no-wait")
    assert "unless cohort" in " ".join(shoal(*asked, "--least", "2").stdout.split())
    assert "cohort" not in shoal(*asked[:2], "three", *asked[3:], "--least", "3").stdout


def test_a_budget_is_judged_at_the_delta_of_privacy(shoal: Cli, release: str) -> None:
    private = ("--privacy", "where=local,clip=1,noise=1,delta=1e-5", "--budget", "8")
    private = (*private, "--set", "most_examples=1")
    assert plan(shoal, "spender", "--release", release, *private)["plan"]["budget"] == {
        "epsilon": 8.0, "delta": 1e-5
    }  # fmt: skip


def test_a_task_whose_budget_is_spent_does_not_suggest_starting_again() -> None:
    spent = {"name": "walk", "reason": "budget-spent: another round would bring epsilon to 9"}
    assert "larger --budget" in round_cli._next_step(spent)
    assert "round start walk" in round_cli._next_step({"name": "walk", "reason": "aborted by ana"})


def test_a_watch_in_a_pipe_prints_each_finished_round_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = {"id": "walk.1", "state": "DONE", "loss": 0.25, "seconds": 3.0, "reason": ""}
    failed = ended | {"id": "walk.2", "state": "FAILED", "reason": "too-few-joined"}
    running = ended | {"id": "walk.3", "state": "TRAINING"}
    said: set[str] = set()
    for newest in ([ended], [running, failed, ended]):
        round_cli._print_finished(newest, said)
    assert capsys.readouterr().err.splitlines() == [
        "walk.1  DONE  loss 0.25  3 s",
        "walk.2  FAILED  loss 0.25  3 s  too-few-joined",
    ]


def test_a_round_without_devices_waits_and_the_task_has_the_reason(
    shoal: Cli, release: str
) -> None:
    shoal.work(plan(shoal, "lonely", "--release", release)["operation"])
    shoal.json("round", "start", "lonely")
    assert scheduling.start_due(shoal.controller.ctx) == []
    assert "0 devices for a round of 2 to 3" in shoal("round", "show", "lonely").stdout


def test_the_plan_on_the_page_is_whole_and_nothing_in_it_contradicts_itself() -> None:
    page = (Path(__file__).parents[2] / "docs/federated/running.md").read_text()
    shown, adaptive = (tomllib.loads(part.split("```")[0]) for part in page.split("```toml\n")[1:])
    asked = msgspec.convert(shown, TaskPlan)
    assert plans.check_task(asked) == asked
    shown |= adaptive
    assert set(shown) == set(TaskPlan.__struct_fields__)
    for name, kind in get_type_hints(TaskPlan).items():
        structs = [one for one in (kind, *get_args(kind)) if hasattr(one, "__struct_fields__")]
        wanted = set(structs[0].__struct_fields__) if structs else set()
        unsaid = {"demands": {"model"}, "learning": {"terms"}}.get(name, set())
        assert wanted - unsaid == (set(shown[name]) if structs else set()), name
